"""What a deterministic request is answered with: what is kept, what is being generated just now, or something new."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from datetime import date
from functools import partial

from msgspec.structs import replace

from openai_gateway.cache import Answers, Kept, Reuse, deterministic
from openai_gateway.errors import ModelNotFound
from openai_gateway.flight import Flight, Record
from openai_gateway.registry import Registry
from openai_gateway.types import Event, ModelSpec, Request, Started, Untaken


class Recall:
    """Answers of the models of a registry, which `generate` generates, found in or added to `answers`."""

    def __init__(
        self, registry: Registry, answers: Answers, generate: Callable[[Request, Untaken], AsyncGenerator[Event]]
    ) -> None:
        self._registry = registry
        self._answers = answers
        self._generate = generate
        self._flights: dict[object, Flight] = {}

    def kept(self, request: Request, reuse: Reuse) -> tuple[Kept, ...] | None:
        """The answer, where it is in memory. It needs no model: that may be unloaded, or loading."""
        if not reuse.read or not deterministic(request):
            return None
        key = self._key(request, self._registry.resolve(request.model), self._answers.today())
        return self._answers.get(request.owner, key) if key else None

    def events(self, request: Request, reuse: Reuse, untaken: Untaken) -> AsyncGenerator[Event]:
        """The events of a request whose answer was not, when somebody looked."""
        if reuse.store and deterministic(request):
            return self._shared(request, reuse, untaken)
        return self._generate(request, untaken)

    async def _shared(self, request: Request, reuse: Reuse, untaken: Untaken) -> AsyncGenerator[Event]:
        if (kept := self.kept(request, reuse)) is not None:  # by now it is
            for told in kept:
                yield told
            return
        async with aclosing(self._flight(request, reuse).read(untaken)) as events:
            async for event in events:
                yield event

    def _flight(self, request: Request, reuse: Reuse) -> Flight:
        spec, day = self._registry.resolve(request.model), self._answers.today()
        key = self._key(request, spec, day) or self._answers.key(request, b"", day)
        # Without an identity the key says nothing of the model. One that may not wait is not made to, for one that may.
        place: object = (key, spec, request.priority) if reuse.read else object()
        flight = self._flights.get(place)
        if flight is None or not flight.open:
            record = Record(self._answers.most)
            flight = self._flights[place] = Flight(
                self._new(request, reuse, record, partial(self._key, request, spec, day)),
                n=request.sampling.n,
                record=record,
                limit=self._registry.settings.max_unread,
                landed=lambda: self._land(place, record),
            )
        return flight

    def _land(self, place: object, record: Record) -> None:
        flight = self._flights.get(place)
        if flight is not None and flight.record is record:  # and not one that took its place
            del self._flights[place]

    def _key(self, request: Request, spec: ModelSpec, day: date) -> bytes | None:
        """What the answer of this model is kept under, to what was asked on this day; None where nobody knows, or where
        the name means another model by now."""
        with suppress(ModelNotFound):
            if self._registry.resolve(request.model) is spec and (identity := self._registry.identity(request.model)):
                return self._answers.key(request, identity, day)
        return None

    async def _new(
        self, request: Request, reuse: Reuse, record: Record, keyed: Callable[[], bytes | None]
    ) -> AsyncGenerator[Event]:
        """Found where other gateways keep answers, or else generated and, when `record` has all of it, kept."""
        key = keyed()
        found = await self._answers.find(key) if key and reuse.read else None
        if found is not None:
            for kept in found:
                yield kept
            return
        async with aclosing(self._generate(request, lambda _: None)) as events:  # the flight takes all at once
            async for event in events:
                if isinstance(event, Started):
                    key = keyed()  # of the very files that answer
                    event = replace(event, answer="miss" if reuse.read else "bypass")
                yield event
        if key and record.whole and record.finished(request.sampling.n):
            await self._answers.put(request.owner, key, record.events)
