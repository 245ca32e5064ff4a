"""The middle: from a request to its events, whatever surface asked and whatever provider answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from openai_gateway.registry import Registry
from openai_gateway.types import Delta, Event, FinishReason, Request, Started, TokenLogprob, Usage


class Gateway:
    """Answers requests with the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def generate(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one request: `Started` first. Closing the iterator cancels it; raises `GatewayError`."""
        async with (
            self.registry.lease(request.model) as provider,
            aclosing(provider.generate(request)) as events,
        ):
            async for event in events:
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
        self.choices = [Choice() for _ in range(n)]
        self._keep = keep

    def add(self, event: Event) -> None:
        """Take one more event into account."""
        if isinstance(event, Started):
            self.usage = Usage(event.prompt_tokens, event.cached_tokens)
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
