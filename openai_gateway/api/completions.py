"""POST /v1/completions: raw prompts, any number of them, each with `n` choices; echo and log-probabilities as
lm-eval-harness reads them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from itertools import chain
from typing import Annotated, Any

from msgspec.structs import replace
from openai.types import Completion, CompletionChoice, CompletionUsage
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from openai_gateway.api import body
from openai_gateway.api.logprobs import Layout, in_pieces, sliced
from openai_gateway.api.stencil import HOLE, Stencil, encode
from openai_gateway.api.usage import caches, usage
from openai_gateway.errors import InvalidRequest
from openai_gateway.gateway import Choice, Gateway, Tally
from openai_gateway.settings import Settings
from openai_gateway.sse import EventStream, frame, unless_gone
from openai_gateway.types import CompletionRequest, Delta, Echo, Event, FinishReason, Started, Usage

MOST_SCORES = 2**22
"""Log-probabilities of prompts in one answer that is no stream: about 120 MB."""


class CompletionBody(body.Body):
    """The parameters of a completion. `max_tokens` is 16 where it is not given, as the API reference says.

    OpenAI ends `logprobs` at 5; clients that show what else might have come ask for 10, and chats may have 20.
    """

    prompt: Any = None
    suffix: str | None = None
    max_tokens: Annotated[body.Count, Field(ge=body.UNBOUNDED)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def candidates(self) -> int:
        """Choices to generate for each prompt; the `n` likeliest of them are returned."""
        return max(self.best_of or 1, self.n or 1)

    def requests(self, max_n: int, max_prompts: int, owner: str) -> list[CompletionRequest]:
        """One request for each prompt, all by `owner`. Raises `InvalidRequest`."""
        self.check(max_n)
        self._check_best_of(max_n)
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        if max_tokens == 0 and not self.echo:
            raise InvalidRequest("'max_tokens' may be 0 only with 'echo': true.", param="max_tokens")
        ranked = self.candidates > (self.n or 1)
        sampling = self.sampling(
            max_tokens=None if max_tokens == body.UNBOUNDED else max_tokens,
            logprobs=(self.logprobs or 0) if ranked else self.logprobs,
        )
        form = self.form()
        return [
            CompletionRequest(
                model=self.model,
                prompt=prompt,
                suffix=self.suffix or None,
                sampling=replace(sampling, n=self.candidates),
                grammar=form,
                echo=bool(self.echo),
                owner=owner,
                priority=self.rank,
            )
            for prompt in self._prompts(max_prompts)
        ]

    def _check_best_of(self, max_n: int) -> None:
        if self.best_of and self.best_of < (self.n or 1):
            raise InvalidRequest("'best_of' must be at least 'n'.", param="best_of")
        if self.best_of and self.best_of > max_n:
            raise InvalidRequest(f"'best_of' may be at most {max_n} on this server.", param="best_of")
        if self.stream and self.candidates > (self.n or 1):
            raise InvalidRequest("Results of 'best_of' cannot be streamed.", param="best_of")
        if self.suffix and self.echo:
            raise InvalidRequest("'echo' cannot be combined with 'suffix'.", param="echo")

    def _prompts(self, most: int) -> list[str | tuple[int, ...]]:
        """A text, a list of them, the tokens of one prompt, or a list of those. By hand: a union of lists, refused,
        is a list of errors for each of its members."""
        prompt = "" if self.prompt is None else self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise InvalidRequest(
                "'prompt' must be a text, tokens, or a list of either that is not empty.", param="prompt"
            )
        if isinstance(prompt[0], int):
            return [self._tokens(prompt, "prompt")]
        if len(prompt) > most:
            raise InvalidRequest(f"At most {most} prompts may be sent at once to this server.", param="prompt")
        return [p if isinstance(p, str) else self._tokens(p, f"prompt[{i}]") for i, p in enumerate(prompt)]

    def _tokens(self, tokens: Any, where: str) -> tuple[int, ...]:
        if not isinstance(tokens, list) or not tokens:
            raise InvalidRequest(f"'{where}' must be a text or tokens.", param=where)
        if self.suffix:
            raise InvalidRequest("'suffix' needs a text as its prompt.", param="suffix")
        for place, token in enumerate(tokens):
            if type(token) is not int or not 0 <= token < 2**31:
                raise InvalidRequest(f"'{where}[{place}]' must be a token id.", param=f"{where}[{place}]")
        return tuple(tokens)


class Completions:
    """The endpoint."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    async def create(self, http: Request) -> Response:
        asked = await body.read(http, CompletionBody)
        requests = asked.requests(self._settings.max_n, self._settings.max_queue, http.state.owner)
        generated = self._gateway.generate_all(requests, body.reuse(http))
        reply = Reply(asked, len(requests))
        if not asked.stream:
            return await unless_gone(http, reply.whole(generated))
        firsts = await unless_gone(http, firsts_of(generated))
        return EventStream(
            reply.stream(firsts, generated), keep_alive=self._settings.stream_keepalive, headers=caches(firsts)
        )


async def firsts_of(generated: list[AsyncGenerator[Event]]) -> list[Event]:
    """The first event of every prompt. When one is not to be had, all are given up, also those that have begun."""
    async with AsyncExitStack() as given_up:
        for events in generated:
            given_up.push_async_callback(events.aclose)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(body.first_of(events)) for events in generated]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        given_up.pop_all()
    return [task.result() for task in tasks]


class Reply:
    """Renders the events of all prompts of one body; prompt `p`'s choice `c` has the index `p * n + c`."""

    def __init__(self, asked: CompletionBody, prompts: int) -> None:
        self._asked = asked
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._n = asked.n or 1
        self._tallies = [Tally(asked.candidates, keep=not asked.stream) for _ in range(prompts)]
        self._stencils: dict[tuple[int, FinishReason | None], Stencil] = {}

    async def whole(self, generated: list[AsyncGenerator[Event]]) -> Response:
        """The answer in one piece."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._collect(tally, events))
                    for tally, events in zip(self._tallies, generated, strict=True)
                ]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        best = [
            (task.result(), choice)
            for task, tally in zip(tasks, self._tallies, strict=True)
            for choice in self._best(tally.choices)
        ]
        choices = [
            self._choice(index, _text(echoes) + "".join(choice.content), choice.finish or "stop")
            for index, (echoes, choice) in enumerate(best)
        ]
        rendered = Stencil(self._json(choices, self._usage()))
        logprobs = [await self._all_logprobs(*each) for each in best if self._asked.logprobs is not None]
        return Response(
            rendered.filled(*logprobs),
            headers=caches(tally.started for tally in self._tallies),
            media_type="application/json",
        )

    async def _collect(self, tally: Tally, events: AsyncGenerator[Event]) -> list[Echo]:
        """Adds all of a prompt's events up; the prompt itself is returned."""
        echoes = []
        async with aclosing(events):
            async for event in events:
                tally.add(event)
                if isinstance(event, Started):
                    self._check_size()
                elif isinstance(event, Echo):
                    echoes.append(event)
        return echoes

    def _check_size(self) -> None:
        """Raises `InvalidRequest` where log-probabilities of all prompts, as far as these are known, are too many."""
        if not self._asked.echo or self._asked.logprobs is None:
            return
        tokens = sum(tally.usage.prompt_tokens for tally in self._tallies)
        if tokens * (1 + self._asked.logprobs) * self._n > MOST_SCORES:
            raise InvalidRequest(
                f"The log-probabilities of all {tokens} tokens are too many for one answer; ask for it as a stream, "
                "with fewer prompts, or for fewer of them.",
                param="logprobs",
            )

    def _best(self, choices: list[Choice]) -> list[Choice]:
        """The `n` choices whose tokens are likeliest on the average."""
        if len(choices) == self._n:
            return choices
        return sorted(choices, key=lambda c: -sum(e.logprob or 0 for e in c.logprobs) / max(1, len(c.logprobs)))[
            : self._n
        ]

    async def _all_logprobs(self, echoes: list[Echo], choice: Choice) -> bytes:
        pieces = chain((echo.entries for echo in echoes), in_pieces(choice.logprobs))
        return await Layout().all_arrays(pieces, _text(echoes))

    def _choice(self, index: int, text: str, finish: FinishReason | None) -> CompletionChoice:
        logprobs = HOLE if self._asked.logprobs is not None else None
        # `construct`: OpenAI's class knows no choice without a finish reason, and sends them all the same.
        return CompletionChoice.model_construct(index=index, text=text, finish_reason=finish, logprobs=logprobs)

    async def stream(self, firsts: list[Event], generated: list[AsyncGenerator[Event]]) -> AsyncGenerator[bytes]:
        """The answer in chunks, framed, as the prompts bring them."""
        for prompt, event in enumerate(firsts):
            self._tallies[prompt].add(event)
        layouts = [Layout() for _ in range(len(firsts) * self._n)]
        several = merged(generated) if len(generated) > 1 else _alone(generated[0])
        async with aclosing(several) as events:
            async for prompt, event in events:
                self._tallies[prompt].add(event)
                for index, delta in self._deltas(prompt, event):
                    yield self._chunk(index, delta, layouts[index])
                    if isinstance(event, Echo):
                        await asyncio.sleep(0)  # every choice has it: others have their turn
        if self._asked.include_usage:
            yield frame(self._json([], self._usage()))

    def _deltas(self, prompt: int, event: Event) -> Iterator[tuple[int, Delta]]:
        first = prompt * self._n
        if isinstance(event, Echo):  # every choice begins with the prompt
            entries = event.entries
            for index in range(self._n):
                yield first + index, Delta(index, event.text, logprobs=entries)
        elif isinstance(event, Delta) and (event.content or event.logprobs or event.finish):
            for delta in sliced(event):
                yield first + event.index, delta

    def _chunk(self, index: int, delta: Delta, layout: Layout) -> bytes:
        if (stencil := self._stencils.get((index, delta.finish))) is None:
            stencil = Stencil(frame(self._json([self._choice(index, HOLE, delta.finish)], None)))
            self._stencils[index, delta.finish] = stencil
        text = encode(delta.content)
        if self._asked.logprobs is None:
            return stencil.filled(text)
        return stencil.filled(encode(layout.arrays(delta.logprobs, delta.content)), text)

    def _json(self, choices: list[CompletionChoice], used: CompletionUsage | None) -> bytes:
        extra: dict[str, Any] = {"usage": used} if used or self._asked.include_usage else {}
        completion = Completion.model_construct(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._asked.model,
            choices=choices,
            **extra,
        )
        return completion.model_dump_json(exclude_unset=True, warnings=False).encode()

    def _usage(self) -> CompletionUsage:
        parts = [tally.usage for tally in self._tallies]
        return usage(
            Usage(
                sum(u.prompt_tokens for u in parts),
                sum(u.cached_tokens for u in parts),
                sum(u.completion_tokens for u in parts),
                sum(u.reasoning_tokens for u in parts),
            )
        )


def _text(echoes: list[Echo]) -> str:
    return "".join([echo.text for echo in echoes])


async def _alone(generated: AsyncGenerator[Event]) -> AsyncGenerator[tuple[int, Event]]:
    async with aclosing(generated) as events:
        async for event in events:
            yield 0, event


async def merged(generated: list[AsyncGenerator[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    """The events of several requests as they come, each with its request's number. The first error ends all."""
    # Short: what the reader does not take has to wait where it is joined, and counted.
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue(1)

    async def forward(number: int, events: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    await queue.put((number, event))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(forward(number, events)) for number, events in enumerate(generated)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
