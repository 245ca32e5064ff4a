"""What of one request's events nobody has read yet; knows neither who makes them nor who reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby

from openai_gateway.types import CallDelta, Delta, Echo, Event, Failed, Untaken

PIECES = 64
"""Deltas of one choice that wait side by side; so many are made into one, which is what bounds their memory."""

ENTRY = 32
"""Characters that one token of log-probabilities counts for: about what it takes in a frame."""


class Unread:
    """A queue with one reader. What waits in it is joined, choice by choice: a slow reader gets few and large deltas.

    What is said of the prompt comes first, and of that the last word counts; then the prompt itself, if it is wanted,
    then the deltas, then a failure.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is how many characters may wait for a reader that is busy elsewhere."""
        self._limit = limit
        self._size = 0
        self._prompt: dict[type[Event], Event] = {}
        self._echoes: deque[Echo] = deque()
        self._deltas: dict[int, list[Delta]] = {}
        self._failure: Failed | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def overfull(self) -> bool:
        """Whether more waits than may; never while the reader wants some, and it is us who let it wait."""
        return self._size > self._limit and self._reader is None

    def put(self, event: Event) -> None:
        """Add one event."""
        if isinstance(event, Delta):
            self._size += size(event)
            pile = self._deltas.setdefault(event.index, [])
            pile.append(event)
            if len(pile) == PIECES:
                pile[:] = [joined(pile)]
        elif isinstance(event, Echo):
            self._echoes.append(event)
        elif isinstance(event, Failed):
            self._failure = event
        else:
            self._prompt[type(event)] = event
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Event:
        """The next event. All that waits of one choice is one delta."""
        while (event := self._next()) is None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return event

    def empty(self, untaken: Untaken) -> None:
        """Nobody is going to read what waits: `untaken` is told of it, but not of a failure."""
        while (event := self._next()) is not None and event is not self._failure:
            untaken(event)

    def _next(self) -> Event | None:
        if self._prompt:
            return self._prompt.pop(next(iter(self._prompt)))
        if self._echoes:
            return self._echoes.popleft()
        if self._deltas:
            delta = joined(self._deltas.pop(next(iter(self._deltas))))
            self._size -= size(delta)
            return delta
        return self._failure


def joined(deltas: Sequence[Delta]) -> Delta:
    """Consecutive deltas of one choice as one. Which of its reasoning came between which content is lost."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        deltas[0].index,
        "".join([delta.content for delta in deltas]),
        "".join([delta.reasoning for delta in deltas]),
        tuple([entry for delta in deltas for entry in delta.logprobs]),
        sum([delta.tokens for delta in deltas]),
        sum([delta.reasoning_tokens for delta in deltas]),
        deltas[-1].finish,
        tuple(_joined_calls(deltas)),
    )


def _joined_calls(deltas: Sequence[Delta]) -> Iterator[CallDelta]:
    """What begins a call stays by itself: it has an id, and a name, and no arguments."""
    calls = [call for delta in deltas for call in delta.calls]
    for (index, id, name), group in groupby(calls, lambda call: (call.index, call.id, call.name)):
        yield CallDelta(index, "".join([call.arguments for call in group]), id, name)


def size(delta: Delta) -> int:
    """Characters of a delta."""
    entries = sum([1 + len(entry.top) for entry in delta.logprobs]) if delta.logprobs else 0
    arguments = sum([len(call.arguments) + len(call.name) for call in delta.calls]) if delta.calls else 0
    return len(delta.content) + len(delta.reasoning) + arguments + ENTRY * entries
