"""The middle: from a request to its events, whatever surface asked and whatever provider answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from typing import Protocol

from openai_gateway.cache import REUSE, Answers, Kept, Reuse
from openai_gateway.recall import Recall
from openai_gateway.registry import Registry
from openai_gateway.types import (
    CallDelta,
    Delta,
    Event,
    FinishReason,
    ModelSpec,
    Request,
    Started,
    TokenLogprob,
    Untaken,
    Usage,
)


class Seen(Protocol):
    """Is told of the events of one request as they pass."""

    def add(self, event: Event) -> None:
        """One more of them; called for every token, and so to be quick."""
        ...


Watch = Callable[[ModelSpec, Request], AbstractContextManager[Seen]]
"""Entered when a request begins to wait for its model, left when it has ended, however it did."""


Meter = Callable[[ModelSpec, Sequence[Request]], AbstractAsyncContextManager[Callable[[], Seen]]]
"""The same for what is to be paid for: what is entered for the requests of one body makes a bill for each of them.
Entering it may refuse them with a `GatewayError`."""


class Unmetered:
    """Counts nothing."""

    def add(self, event: Event) -> None:
        """See `Seen`."""


def unmetered(_: ModelSpec, __: Sequence[Request]) -> AbstractAsyncContextManager[Callable[[], Seen]]:
    """No limits."""
    return nullcontext(Unmetered)


class Tab:
    """What the requests of one body are charged together: from when the first of them is to be generated, which is
    when all of them may be refused, until the last one has ended."""

    def __init__(self, charge: Callable[[], AbstractAsyncContextManager[Callable[[], Seen]]]) -> None:
        self._charge = charge
        self._charged = AsyncExitStack()
        self._opening: asyncio.Task[Callable[[], Seen]] | None = None
        self._open = 0

    @asynccontextmanager
    async def bill(self) -> AsyncIterator[Seen]:
        """That of one of the requests."""
        self._open += 1
        try:
            if self._opening is None:
                self._opening = asyncio.create_task(self._charged.enter_async_context(self._charge()))
            # Whoever came first may leave: others wait for the same.
            yield (await asyncio.shield(self._opening))()
        finally:
            self._open -= 1
            if not self._open and self._opening is not None:
                self._opening.cancel()
                self._opening = None
                await self._charged.aclose()


class Gateway:
    """Answers requests with the models of a registry, watched, or with what it has answered before."""

    def __init__(
        self, registry: Registry, watch: Watch, answers: Answers | None = None, meter: Meter = unmetered
    ) -> None:
        self.registry = registry
        self._watch = watch
        self._meter = meter
        self._recall = None if answers is None else Recall(registry, answers, self._generated)

    def generate(self, request: Request, reuse: Reuse = REUSE) -> AsyncGenerator[Event]:
        """The events of one request: `Started` first. Closing the iterator cancels it; raises `GatewayError`."""
        return self.generate_all((request,), reuse)[0]

    def generate_all(self, requests: Sequence[Request], reuse: Reuse = REUSE) -> list[AsyncGenerator[Event]]:
        """The same for each of the requests of one body, all to one model, which limits count as one."""
        spec = self.registry.resolve(requests[0].model)
        tab = Tab(lambda: self._meter(spec, self._new(requests, reuse)))
        return [self._answered(spec, request, reuse, tab) for request in requests]

    def _new(self, requests: Sequence[Request], reuse: Reuse) -> Sequence[Request]:
        """Those that are not answered with what is kept; of a single one it is known when this is asked."""
        return requests if len(requests) == 1 else [each for each in requests if self._kept(each, reuse) is None]

    def _kept(self, request: Request, reuse: Reuse) -> tuple[Kept, ...] | None:
        return None if self._recall is None else self._recall.kept(request, reuse)

    async def _answered(self, spec: ModelSpec, request: Request, reuse: Reuse, tab: Tab) -> AsyncGenerator[Event]:
        with self._watch(spec, request) as seen:
            if (kept := self._kept(request, reuse)) is not None:
                for told in kept:
                    seen.add(told)
                    yield told
                return
            async with tab.bill() as bill:

                def count(event: Event) -> None:
                    seen.add(event)
                    bill.add(event)

                async with aclosing(self._events(request, reuse, count)) as events:
                    async for event in events:
                        count(event)
                        yield event

    def _events(self, request: Request, reuse: Reuse, untaken: Untaken) -> AsyncGenerator[Event]:
        if self._recall is None:
            return self._generated(request, untaken)
        return self._recall.events(request, reuse, untaken)

    async def _generated(self, request: Request, untaken: Untaken) -> AsyncGenerator[Event]:
        async with (
            self.registry.lease(request.model) as provider,
            aclosing(provider.generate(request, untaken)) as events,
        ):
            async for event in events:
                yield event


class Call:
    """One tool call, put together from its deltas."""

    def __init__(self, begun: CallDelta) -> None:
        self.id = begun.id
        self.name = begun.name
        self.arguments: list[str] = []


class Choice:
    """One answer, put together from its deltas."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: list[Call] = []
        self.finish: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Take one more delta of it into account."""
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        self.logprobs += delta.logprobs
        for call in delta.calls:
            if call.id:
                self.calls.append(Call(call))
            self.calls[call.index].arguments.append(call.arguments)
        self.finish = delta.finish


class Tally:
    """Adds up the events of a request: its usage, and its choices where `keep` is set."""

    def __init__(self, n: int, *, keep: bool = True) -> None:
        self.usage = Usage()
        self.started: Started | None = None
        self.choices = [Choice() for _ in range(n)]
        self._keep = keep

    def add(self, event: Event) -> None:
        """Take one more event into account."""
        if isinstance(event, Started):
            self.started = event  # for the second time, where the request had to wait
            self.usage = Usage(
                event.prompt_tokens, event.cached_tokens, self.usage.completion_tokens, self.usage.reasoning_tokens
            )
        elif isinstance(event, Delta):
            self.usage = Usage(
                self.usage.prompt_tokens,
                self.usage.cached_tokens,
                self.usage.completion_tokens + event.tokens,
                self.usage.reasoning_tokens + event.reasoning_tokens,
            )
            if self._keep:
                self.choices[event.index].add(event)
