"""Requests on their way to the engine: from the socket's thread, through those that make prompts, into its inbox."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from openai_gateway.errors import GatewayError
from openai_gateway.types import Failed, Request
from openai_gateway.worker import wire
from openai_gateway.worker.engine import INTERNAL, failed
from openai_gateway.worker.prompt import Job, Prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that no job could be made of."""

    id: int
    reason: Failed


Item = Job | Refused | wire.Cancel


class Arrivals:
    """Makes jobs of requests, which `inbox` then holds.

    Prompts are made one after the other, as a tokenizer is for one thread. The forms that answers are held to are
    compiled beside that. In either place owners take turns, so that what one of them brings is in no other's way.
    """

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._prompts: Future[Prompts] = Future()
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        self._drafts = Lanes(threads=1)
        self._forms = Lanes(threads=16)

    def prepare(self, prompts: Prompts) -> None:
        """Begins; what came before waits."""
        self._prompts.set_result(prompts)

    def add(self, generate: wire.Generate) -> None:
        with self._lock:
            self._wanted.add(generate.id)
        self._drafts.submit(generate.request.owner, partial(self._attempt, generate.id, partial(self._draft, generate)))

    def cancel(self, cancel: wire.Cancel) -> None:
        """Forgets a request that is still being prepared; the engine has to do so with others."""
        with self._lock:
            if cancel.id not in self._wanted:
                self.inbox.put(cancel)
            self._wanted.discard(cancel.id)

    def _draft(self, generate: wire.Generate) -> None:
        prompts = self._prompts.result()
        job = prompts.draft(generate.id, generate.request)
        hold = partial(self._hold, prompts, job, generate.request)
        if prompts.holds(generate.request):
            self._forms.submit(job.owner, partial(self._attempt, job.id, hold))
        else:
            hold()

    def _hold(self, prompts: Prompts, job: Job, request: Request) -> None:
        self._put(job.id, prompts.held(job, request))

    def _attempt(self, id: int, work: Callable[[], None]) -> None:
        if id not in self._wanted:
            return
        try:
            work()
        except GatewayError as error:
            self._put(id, Refused(id, failed(error)))
        except BaseException:  # what libraries in Rust panic with is no Exception, and must not end the thread
            logger.exception("request %d failed while its prompt was made", id)
            self._put(id, Refused(id, failed(INTERNAL)))

    def _put(self, id: int, item: Item) -> None:
        # A cancellation either finds the request here or comes into the inbox behind it.
        with self._lock:
            if id in self._wanted:
                self._wanted.remove(id)
                self.inbox.put(item)


class Lanes:
    """Does work on threads, that of one owner one piece after the other: who brings much waits for it alone."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "lane")
        self._lock = threading.Lock()
        self._lanes: dict[str, deque[Callable[[], None]]] = {}

    def submit(self, owner: str, work: Callable[[], None]) -> None:
        with self._lock:
            lane = self._lanes.setdefault(owner, deque())
            lane.append(work)
            if len(lane) == 1:
                self._pool.submit(self._run, owner)

    def _run(self, owner: str) -> None:
        lane = self._lanes[owner]
        try:
            lane[0]()
        finally:
            with self._lock:
                lane.popleft()
                if lane:
                    # Behind the owners that wait for a thread.
                    self._pool.submit(self._run, owner)
                else:
                    del self._lanes[owner]
