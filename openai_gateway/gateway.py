"""The middle: from a request to its events, whatever surface asked and whatever provider answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Protocol

from openai_gateway.registry import Registry
from openai_gateway.types import Delta, Event, FinishReason, ModelSpec, Request, Started, TokenLogprob, Usage


class Seen(Protocol):
    """Is told of the events of one request as they pass."""

    def add(self, event: Event) -> None:
        """One more of them; called for every token, and so to be quick."""
        ...


Watch = Callable[[ModelSpec, Request], AbstractContextManager[Seen]]
"""Entered when a request begins to wait for its model, left when it has ended, however it did."""


class Gateway:
    """Answers requests with the models of a registry, watched."""

    def __init__(self, registry: Registry, watch: Watch) -> None:
        self.registry = registry
        self._watch = watch

    async def generate(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one request: `Started` first. Closing the iterator cancels it; raises `GatewayError`."""
        with self._watch(self.registry.resolve(request.model), request) as seen:
            async with (
                self.registry.lease(request.model) as provider,
                aclosing(provider.generate(request)) as events,
            ):
                async for event in events:
                    seen.add(event)
                    yield event


class Choice:
    """One answer, put together from its deltas."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None


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
                choice = self.choices[event.index]
                choice.content.append(event.content)
                choice.reasoning.append(event.reasoning)
                choice.logprobs += event.logprobs
                choice.finish = event.finish
