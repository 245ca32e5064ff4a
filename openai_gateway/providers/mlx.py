"""The MLX provider: a worker process for one model, watched, ended when it hangs, and started again when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import subprocess
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from openai_gateway import preload
from openai_gateway.errors import Crowded, ModelFailed, QueueFull, SlowClient, Unavailable, WorkerDied, named
from openai_gateway.logs import Logs
from openai_gateway.providers.process import explain, kill, order, receive, start
from openai_gateway.providers.suspects import Suspects
from openai_gateway.providers.unread import Unread
from openai_gateway.settings import Settings
from openai_gateway.types import Delta, Event, Failed, ModelInfo, ModelSpec, Request, Share, Stats, Untaken
from openai_gateway.worker import wire

logger = logging.getLogger(__name__)

ENDED = "The model's worker ended, and another is started. Please retry."

BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds to wait before start number 1, 2, 3 … in a row; a worker that answers something sets it back."""


class MLXProvider:
    """Serves one model through worker processes, one after the other; it outlives them.

    After `start` a supervising task keeps a worker alive until `close`. A request that finds none waits for the next
    one, which is there in the time that loading takes.
    """

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self._spec = spec
        self._settings = settings
        self._share = Share()
        """What the first worker was given; those that replace it have the same."""
        # Pending while none runs, before the first one and between two; failed once this is closed.
        self._worker: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._dead: Worker | None = None
        """The last one that was gone; its process may not be yet."""
        self._supervisor: asyncio.Task[None] | None = None
        self._suspects = Suspects()
        self.restarts = 0

    @property
    def info(self) -> ModelInfo | None:
        """What the running worker's model says of itself."""
        return self._running.info if self._running else None

    @property
    def stats(self) -> Stats | None:
        """How the running worker is doing."""
        return self._running.stats if self._running else None

    @property
    def _running(self) -> Worker | None:
        return self._worker.result() if self._worker.done() and not self._worker.exception() else None

    async def start(self, share: Callable[[], Awaitable[Share]]) -> ModelInfo:
        """Start the first worker; a model that cannot be loaded is the caller's to know, and is not tried again."""

        async def asked() -> Share:
            self._share = await share()
            return self._share

        worker = await Worker.spawn(self._spec, self._settings, asked)
        if chosen := preload.choose(self._settings.blas, self._settings.allocator):
            logger.info("%s %s", self._spec.id, chosen.summary)
        self._worker.set_result(worker)
        self._supervisor = asyncio.create_task(self._supervise(worker))
        return worker.info

    async def generate(self, request: Request, untaken: Untaken) -> AsyncGenerator[Event]:
        """See `types.Provider`."""
        accepted = False
        for last in (False, True):
            worker = await self._alive()
            try:
                async with contextlib.aclosing(worker.generate(request, untaken)) as events:
                    async for event in events:
                        accepted = True
                        yield event
                return
            except WorkerDied:
                self._suspects.check(request)
                if accepted or last:  # it died of something else than this request: the next one may have it
                    raise

    async def _alive(self) -> Worker:
        try:
            # Not `wait_for`: in Python 3.11 it forgets that it was cancelled when what it waits for is there already.
            async with asyncio.timeout(self._settings.load_timeout):
                return await asyncio.shield(self._worker)
        except TimeoutError:
            raise Unavailable(f"The model `{self._spec.id}` is being started again; please try again soon.") from None

    async def close(self) -> None:
        """End the worker and wait until its memory is given back; no request finds it any more."""
        worker = self._running or self._dead
        if self._worker.done():
            self._worker = asyncio.get_running_loop().create_future()
        self._worker.set_exception(Unavailable(f"The model `{self._spec.id}` was unloaded."))
        self._worker.exception()  # nobody has to be waiting for it
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if worker is not None:
            await worker.end()

    async def _supervise(self, worker: Worker) -> None:
        attempts = itertools.count()
        while True:
            await worker.gone()
            if worker.answered:
                attempts = itertools.count()
            self._suspects.died(worker.running)
            # Before the end, so that what it fails finds the next worker, not this one again.
            self._dead, self._worker = worker, asyncio.get_running_loop().create_future()
            await worker.end()
            worker = await self._replacement(attempts)
            self._worker.set_result(worker)
            self.restarts += 1
            logger.info("the worker of %s runs again (process %d)", self._spec.id, worker.info.pid)

    async def _replacement(self, attempts: itertools.count[int]) -> Worker:
        async def same() -> Share:
            return self._share

        for attempt in attempts:
            await asyncio.sleep(BACK_OFF[min(attempt, len(BACK_OFF) - 1)])
            try:
                return await Worker.spawn(self._spec, self._settings, same)
            except Exception:  # whatever it is, giving up would leave every later request without a worker
                logger.exception("the worker of %s cannot be started; trying again", self._spec.id)
        raise AssertionError("unreachable: attempts never end")


class Pending(NamedTuple):
    """What a worker is answering."""

    request: Request
    events: Unread


class Worker:
    """One worker process, from the moment it is ready until it is gone."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        info: ModelInfo,
        settings: Settings,
    ) -> None:
        self.info = info
        self.stats = Stats()
        self.answered = False
        self._ended = False
        self._process = process
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._ids = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._heard = time.monotonic()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    @classmethod
    async def spawn(cls, spec: ModelSpec, settings: Settings, share: Callable[[], Awaitable[Share]]) -> Worker:
        """Start a process and wait until it has loaded the model, with the `share` that there is when its files are
        here. Raises `ModelFailed`, `Crowded`."""
        try:
            chosen = await asyncio.to_thread(preload.choose, settings.blas, settings.allocator)
            process, ours = start(spec, Logs.of(settings), chosen.environment if chosen else {})
        except (OSError, ValueError) as error:
            logger.error("no worker can be started for %s: %s", spec.id, error)
            raise ModelFailed(f"No worker can be started for `{spec.id}`; the server's log says why.") from error
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        async with contextlib.AsyncExitStack() as failing:
            failing.push_async_callback(kill, process)
            failing.callback(writer.close)
            try:
                writer.write(wire.encode(wire.Fetch(spec)))
                answer = await receive(reader)  # a download takes as long as it takes, and shows its progress
                if isinstance(answer, wire.Fetched):
                    writer.write(wire.encode(wire.Load(order(settings, await share()))))
                    async with asyncio.timeout(settings.load_timeout):
                        answer = await receive(reader)
            except TimeoutError as error:  # an OSError as well, hence first
                raise ModelFailed(f"The model `{spec.id}` took too long to load.") from error
            except (EOFError, OSError) as error:
                await explain(process)
                raise ModelFailed(f"The worker of `{spec.id}` ended while it loaded the model.") from error
            if isinstance(answer, wire.Broken) and answer.crowded:
                raise Crowded(f"There is no memory for `{spec.id}` beside other models; please try again.")
            if not isinstance(answer, wire.Ready):
                raise ModelFailed(f"The model `{spec.id}` cannot be loaded; the server's log says why.")
            failing.pop_all()
        return cls(process, reader, writer, answer.info, settings)

    @property
    def running(self) -> list[Request]:
        """What it is answering, or will be."""
        return [pending.request for pending in self._pending.values()]

    async def generate(self, request: Request, untaken: Untaken) -> AsyncGenerator[Event]:
        """Send one request and yield its events. Closing the iterator early takes its rows out of the batch."""
        if self._ended:  # `end` is done with telling those in `_pending`
            raise WorkerDied(ENDED)
        if len(self._pending) >= self._settings.max_batch + self._settings.max_queue:
            raise QueueFull("The model's queue is full. Please try again in 1s.")
        id = next(self._ids)
        events = Unread(self._settings.max_unread)
        self._pending[id] = Pending(request, events)
        unfinished = request.sampling.n
        try:
            self._send(wire.Generate(id, request))
            with contextlib.suppress(OSError):  # a worker that is gone is `_read`'s to notice
                await self._writer.drain()
            while unfinished:
                event = await events.get()
                if isinstance(event, Failed):
                    unfinished = 0
                    raise named(event.error, event.message, event.param)
                if isinstance(event, Delta) and event.finish is not None:
                    unfinished -= 1
                yield event
        finally:
            self._pending.pop(id, None)
            if unfinished:
                self._send(wire.Cancel(id))
            events.empty(untaken)

    async def gone(self) -> None:
        """Returns when the process has hung up, or is not heard of any more; the log says why."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        _, watching = self._tasks
        if not watching.done():
            await explain(self._process)

    async def end(self) -> None:
        """Fail what it was answering, and end the process."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        for pending in self._pending.values():
            pending.events.put(Failed(WorkerDied.__name__, ENDED))
        self._writer.close()
        await kill(self._process)

    def _send(self, message: wire.ToWorker) -> None:
        # A dead worker is noticed by `_read`, which fails what is pending: there is nothing to do for it here.
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    async def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = await receive(self._reader)
                self._heard = time.monotonic()
                if isinstance(message, wire.Step):
                    self.stats = message.stats or self.stats
                    for id, event in message.events:
                        self.answered = True
                        if (pending := self._pending.get(id)) is not None:
                            pending.events.put(event)
                            if pending.events.overfull:
                                self._cut_off(id)

    def _cut_off(self, id: int) -> None:
        """Give up a request whose client does not read. Should it read on, it gets what waits, and hears why."""
        limit = self._settings.max_unread
        logger.warning("worker process %d: request %d left %d characters unread", self._process.pid, id, limit)
        self._send(wire.Cancel(id))
        message = f"More than {limit} characters of this answer were left unread, and it was given up."
        self._pending.pop(id).events.put(Failed(SlowClient.__name__, message))

    async def _watch(self) -> None:
        """Returns when the worker has not been heard of for too long."""
        patience = self._settings.heartbeat_timeout
        while (quiet := time.monotonic() - self._heard) < patience or await self._only_unheard():
            await asyncio.sleep(max(0.0, patience - quiet))
        logger.error("worker process %d was silent for %.1f s and is ended", self._process.pid, quiet)

    async def _only_unheard(self) -> bool:
        """Whether it was this process that slept: what the worker sent meanwhile is read in a moment."""
        before = self._heard
        await asyncio.sleep(self._settings.heartbeat_timeout / 10)
        return self._heard != before
