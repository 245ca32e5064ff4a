"""Requests, measured while they pass, and what the recent ones of each model say; knows a clock, nothing of HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple

from msgspec import Struct

from openai_gateway.types import ChatRequest, Delta, Echo, Event, ModelSpec, Request, Started

WINDOW = 600.0
"""Seconds for which a request that has ended is recent …"""
WINDOW_REQUESTS = 1000
"""… and the most that are, of each model."""

CANCELLED = "cancelled"

Clock = Callable[[], float]


class Rate:
    """Counts tokens by the second for the last minute."""

    LONGEST = 60
    """Seconds that can be asked for."""

    def __init__(self) -> None:
        self._stamps = [-1] * (self.LONGEST + 1)  # and the second that is not over yet
        self._tokens = [0] * (self.LONGEST + 1)

    def add(self, now: float, tokens: int) -> None:
        """Count tokens that came at `now`."""
        second = int(now)
        place = second % len(self._stamps)
        if self._stamps[place] != second:
            self._stamps[place], self._tokens[place] = second, 0
        self._tokens[place] += tokens

    def per_second(self, now: float, seconds: int) -> float:
        """The mean over the last `seconds` whole seconds, at most `LONGEST`."""
        end = int(now)
        counted = zip(self._stamps, self._tokens, strict=True)
        return sum(tokens for stamp, tokens in counted if end - seconds <= stamp < end) / seconds


class Measured:
    """One request: a context manager that `Gateway` enters, tells of each event as a surface takes it, and leaves.

    It keeps numbers only, nothing that was said. Once left, `error` is None for an answer that was complete,
    `CANCELLED`, or the name of the error's class.
    """

    __slots__ = (
        "_began", "_clock", "_done", "_first", "_generated", "_latest", "_opened", "_since", "answer",
        "cached_tokens", "completion_tokens", "ended", "error", "operation", "owner", "prompt_tokens",
        "reasoning_tokens", "spec",
    )  # fmt: skip

    def __init__(
        self, spec: ModelSpec, request: Request, generated: Rate, done: Callable[[Measured], None], clock: Clock
    ) -> None:
        self.spec = spec
        self.operation: Literal["chat", "text_completion"] = (
            "chat" if isinstance(request, ChatRequest) else "text_completion"
        )
        self.owner = request.owner
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.reasoning_tokens = 0
        self.error: str | None = None
        self.answer: Literal["hit", "miss", "bypass"] = "bypass"
        self._generated = generated
        self._done = done
        self._clock = clock
        self._began = self.ended = clock()
        self._first: float | None = None
        # The first choice alone, from its first piece to its latest: others of the request run beside it.
        self._opened: float | None = None
        self._latest = 0.0
        self._since = 0

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended = self._clock()
        if kind is not None:
            left = issubclass(kind, GeneratorExit | asyncio.CancelledError)
            self.error = CANCELLED if left else kind.__name__
        self._done(self)

    def add(self, event: Event) -> None:
        """Take one more event into account. This runs for every token of every request."""
        if isinstance(event, Started):
            self.answer = event.answer
        if self.answer == "hit":
            return  # nothing was read or generated for it
        if isinstance(event, Delta):
            self._count(event)
        elif isinstance(event, Started) and not event.queued:  # nothing of it is read in the queue
            self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
        elif isinstance(event, Echo) and self._first is None:
            self._first = self._clock()

    def _count(self, delta: Delta) -> None:
        now = self._clock()
        self.completion_tokens += delta.tokens
        self.reasoning_tokens += delta.reasoning_tokens
        self._generated.add(now, delta.tokens)
        if self._first is None:
            self._first = now
        if delta.index == 0:
            if self._opened is None:
                self._opened = now
            else:
                self._since += delta.tokens
            self._latest = now

    @property
    def duration(self) -> float:
        """Seconds from when the gateway was asked until the end."""
        return self.ended - self._began

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds until something could be shown, also an echoed prompt; None where that never came."""
        return None if self._first is None else self._first - self._began

    @property
    def time_per_output_token(self) -> float | None:
        """Seconds per token of the first choice after its first piece; None where no more than that came."""
        return None if self._opened is None or not self._since else (self._latest - self._opened) / self._since


class Finished(NamedTuple):
    """A request of the recent past; times in seconds."""

    ended: float
    complete: bool
    duration: float
    time_to_first_token: float | None
    time_per_output_token: float | None


class Percentiles(Struct, frozen=True):
    """Nearest ranks: each is a value that was measured."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Percentiles | None:
        """Those of the values that there are; None where there are none."""
        ranked = sorted(value for value in values if value is not None)
        if not ranked:
            return None
        return cls(*(ranked[math.ceil(share * len(ranked) / 100) - 1] for share in (50, 90, 99)))


@dataclass(slots=True)
class Traffic:
    """The requests of one model since the gateway started."""

    running: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    generated: Rate = field(default_factory=Rate)
    _recent: deque[Finished] = field(default_factory=lambda: deque(maxlen=WINDOW_REQUESTS))

    def end(self, seen: Measured) -> None:
        """Count a request that is over."""
        self.running -= 1
        if seen.error is None:
            self.ok += 1
        elif seen.error == CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1
        self._recent.append(
            Finished(
                seen.ended, seen.error is None, seen.duration, seen.time_to_first_token, seen.time_per_output_token
            )
        )

    def recent(self, now: float) -> list[Finished]:
        """Those that ended within the window."""
        return [request for request in self._recent if now - request.ended <= WINDOW]


class Performance:
    """Measures requests, and adds them up for each model that there is."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._traffic: dict[str, Traffic] = {}
        self._listeners: list[Callable[[Measured], None]] = []

    def subscribe(self, listener: Callable[[Measured], None]) -> None:
        """Have every request told when it is over."""
        self._listeners.append(listener)

    def of(self, spec: ModelSpec) -> Traffic:
        """The requests of a model. Keyed by the id in the list of models, so that no client's text makes it grow."""
        return self._traffic.setdefault(spec.id, Traffic())

    def watch(self, spec: ModelSpec, request: Request) -> Measured:
        """A request begins; what it returns is to be entered at once."""
        traffic = self.of(spec)
        traffic.running += 1
        return Measured(spec, request, traffic.generated, self._ended, self.clock)

    def _ended(self, seen: Measured) -> None:
        self.of(seen.spec).end(seen)
        for listener in self._listeners:
            listener(seen)
