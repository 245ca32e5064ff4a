"""One answer for all who ask the same at the same time; knows neither models nor where answers are kept."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from msgspec.structs import replace

from openai_gateway.cache import Kept
from openai_gateway.errors import GatewayError, SlowClient
from openai_gateway.providers.unread import PIECES, Unread, joined, size
from openai_gateway.types import Delta, Echo, Event, Failed, Started, Untaken

logger = logging.getLogger(__name__)


class Record:
    """The events of one answer so far, as few as say the same."""

    def __init__(self, limit: int) -> None:
        """`limit` is how many characters are remembered; of a longer answer nothing is."""
        self.started: Started | None = None
        self.size = 0
        self._limit = limit
        self._echoes: list[Echo] = []
        self._deltas: dict[int, list[Delta]] = {}

    @property
    def whole(self) -> bool:
        """Whether it holds all that came."""
        return self.size <= self._limit

    @property
    def events(self) -> tuple[Kept, ...]:
        """`Started`, the prompt, then one delta for each choice, in the order of their numbers."""
        started = () if self.started is None else (replace(self.started, answer="hit"),)
        return (*started, *self._echoes, *(joined(self._deltas[index]) for index in sorted(self._deltas)))

    def finished(self, n: int) -> bool:
        """Whether all `n` choices came to an end of their own: not cut off, and none of them missing."""
        ends = [deltas[-1].finish for deltas in self._deltas.values()]
        return len(ends) == n and all(end in ("stop", "tool_calls") for end in ends)

    def add(self, event: Event) -> None:
        """Remember one event more."""
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Echo):
            self._echoes.append(event)
            self.size += len(event.text) + len(event.packed)
        elif isinstance(event, Delta):
            self.size += size(event)
            pile = self._deltas.setdefault(event.index, [])
            pile.append(event)
            if len(pile) == PIECES:
                pile[:] = [joined(pile)]
        if not self.whole:
            self._echoes.clear()
            self._deltas.clear()


class Flight:
    """Takes an answer from its source once, for any number of readers, and goes on for as long as there is one.

    Whoever leaves takes nothing from the others. The first reader is the one whom the answer is counted for: it is
    told of a miss, others of a hit, until one of them takes its place because it leaves before the end.
    """

    def __init__(
        self, source: AsyncGenerator[Event], *, n: int, record: Record, limit: int, landed: Callable[[], None]
    ) -> None:
        """`limit` is how many characters may wait for a reader; `landed` is called when no event can come any more."""
        self.record = record
        self._n = n
        self._limit = limit
        self._landed = landed
        self._readers: dict[Unread, None] = {}
        self._counted: Unread | None = None
        """The reader whom the answer is counted for."""
        self._error: BaseException = GatewayError("The answer broke off.")
        self._over = False
        self._task = asyncio.create_task(self._take(source))
        self._task.add_done_callback(self._end)

    @property
    def open(self) -> bool:
        """Whether who comes now gets all of it."""
        return self.record.whole and not self._task.done() and not self._task.cancelling()

    async def read(self, untaken: Untaken) -> AsyncGenerator[Event]:
        """The events, from the first on. Raises what the source raises, and `SlowClient`.

        `untaken` is told of those that a reader left behind whom the answer is counted for.
        """
        unread = Unread(self._limit + self.record.size)  # what was there before it came is not its fault
        for past in self.record.events:
            unread.put(past)
        self._readers[unread] = None
        self._counted = self._counted or unread
        unfinished = self._n
        try:
            while unfinished:
                event = await unread.get()
                if isinstance(event, Failed):
                    if event.message:
                        raise SlowClient(event.message)
                    raise copy.copy(self._error) from self._error  # one of its own, and the trace of that for the log
                if isinstance(event, Delta) and event.finish is not None:
                    unfinished -= 1
                yield self._seen(unread, event)
        finally:
            self._leave(unread)
            if self._counted is unread:
                unread.empty(untaken)

    async def _take(self, source: AsyncGenerator[Event]) -> None:
        unfinished = self._n
        async with aclosing(source) as events:
            async for event in events:
                self.record.add(event)
                if isinstance(event, Delta) and event.finish is not None:
                    unfinished -= 1
                    self._over = not unfinished
                for unread in list(self._readers):
                    unread.put(event)
                    if unread.overfull:
                        self._cut_off(unread)

    def _seen(self, unread: Unread, event: Event) -> Event:
        """What a reader is told: all but one that it is a hit."""
        counted = self._counted is unread
        return event if counted or not isinstance(event, Started) else replace(event, answer="hit")

    def _cut_off(self, unread: Unread) -> None:
        logger.warning("an answer was left unread beyond %d characters", self._limit)
        message = f"More than {self._limit} characters of this answer were left unread, and it was given up."
        unread.put(Failed(SlowClient.__name__, message))
        self._leave(unread)

    def _leave(self, unread: Unread) -> None:
        if unread not in self._readers or self._over:
            return
        del self._readers[unread]
        if not self._readers:
            self._task.cancel()
        elif self._counted is unread:
            self._counted = next(iter(self._readers))
            if self.record.started is not None:
                self._counted.put(self.record.started)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._error = (None if task.cancelled() else task.exception()) or self._error
        for unread in self._readers:
            unread.put(Failed(GatewayError.__name__, ""))
        self._landed()
