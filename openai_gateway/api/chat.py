"""POST /v1/chat/completions: body → `ChatRequest` → gateway → OpenAI's own response classes, whole or as a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Container, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat import chat_completion as answer
from openai.types.chat import chat_completion_chunk as part
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from openai_gateway.api import body
from openai_gateway.api.messages import MessageBody
from openai_gateway.errors import InvalidRequest, UnsupportedParameter
from openai_gateway.gateway import Choice, Gateway, Tally
from openai_gateway.settings import Settings
from openai_gateway.sse import EventStream, frame, unless_gone
from openai_gateway.types import ChatRequest, Delta, Effort, Event, TokenLogprob, Usage

FLOOR = -9999.0
"""Stands for the log of zero: minus infinity is no JSON."""


class ChatBody(body.Body):
    """The parameters of a chat completion, as in OpenAI's API reference, and those that local servers add."""

    UNSUPPORTED: ClassVar[Mapping[str, Container[Any]]] = {
        **body.Body.UNSUPPORTED,
        **dict.fromkeys(("tools", "functions"), ([],)),
        **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        **dict.fromkeys(("audio", "web_search_options", "moderation"), ()),
        "verbosity": ("medium",),
        "store": (False,),
        "add_generation_prompt": (True,),
        **dict.fromkeys(("thinking_budget", "thinking_token_budget", "reasoning_budget"), (-1,)),
    }

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Annotated[body.Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: str | None = None
    reasoning_level: str | None = None
    reasoning: body.Reasoning | None = None
    include_reasoning: bool | None = None
    enable_thinking: bool | None = None
    thinking: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    metadata: dict[str, Any] | None = Field(None, max_length=16)
    service_tier: str | None = None

    def request(self, max_n: int, default: Effort | None = None) -> ChatRequest:
        """What is asked for; `default` is the model's own effort. Raises `InvalidRequest`."""
        self.check(max_n)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        messages = tuple(m.message(f"messages[{i}]") for i, m in enumerate(self.messages))
        last = messages[-1]
        prefilled = last.role == "assistant" and not last.tool_calls and bool(last.content)
        if self.continue_final_message and not prefilled:
            raise InvalidRequest("There is no final assistant message to continue.", param="continue_final_message")
        return ChatRequest(
            model=self.model,
            messages=messages,
            sampling=self.sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
            effort=self.effort(default),
            template_kwargs=self._template_kwargs(),
            continue_final=prefilled and self.continue_final_message is not False,
        )

    def effort(self, default: Effort | None) -> Effort | None:
        """The reasoning effort under any of its names; a switch means none, or any at all."""
        if self.reasoning is not None and self.reasoning.max_tokens is not None:
            raise UnsupportedParameter("'reasoning.max_tokens' is not supported yet.", param="reasoning.max_tokens")
        named = (
            body.effort("reasoning_effort", self.reasoning_effort)
            or body.effort("reasoning.effort", self.reasoning.effort if self.reasoning else None)
            or body.effort("reasoning_level", self.reasoning_level)
        )
        if named is not None:
            return named
        switches = (self.enable_thinking, self._thinking(), self.reasoning.enabled if self.reasoning else None)
        if False in switches:
            return "none"
        return (default if default not in (None, "none") else "medium") if True in switches else None

    def _thinking(self) -> bool | None:
        """`thinking` as DeepSeek, GLM and Anthropic have it: a switch, or an object with a type."""
        if self.thinking is None or isinstance(self.thinking, bool):
            return self.thinking
        kind = self.thinking.get("type") if isinstance(self.thinking, dict) else None
        if kind not in ("enabled", "adaptive", "disabled"):
            raise InvalidRequest(
                "'thinking' must be a boolean or have a 'type' of enabled or disabled.", param="thinking"
            )
        if kind == "enabled" and self.thinking.get("budget_tokens"):
            raise UnsupportedParameter("'thinking.budget_tokens' is not supported yet.", param="thinking.budget_tokens")
        return bool(kind != "disabled")

    def _template_kwargs(self) -> dict[str, Any]:
        """Which of them a template takes is the worker's to say; nested and endless ones go nowhere."""
        kwargs = self.chat_template_kwargs or {}
        for name, value in kwargs.items():
            if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) >= 2**63):
                raise InvalidRequest(f"'{name}' must be a text, a number or a boolean.", param="chat_template_kwargs")
        return kwargs

    @property
    def hide_reasoning(self) -> bool:
        """Whether reasoning is only counted, not shown."""
        return self.include_reasoning is False or bool(self.reasoning and self.reasoning.exclude)


class Chat:
    """The endpoint."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    async def create(self, http: Request) -> Response:
        asked = await body.read(http, ChatBody)
        spec = self._gateway.registry.resolve(asked.model)
        request = asked.request(self._settings.max_n, spec.defaults.reasoning_effort)
        reply = Reply(asked)
        events = self._gateway.generate(request)
        if not asked.stream:
            return await unless_gone(http, reply.whole(events))
        # Whatever can be refused is refused by the first event: after it there is no way back from the 200.
        first = await unless_gone(http, body.first_of(events))
        return EventStream(reply.stream(first, events), keep_alive=self._settings.stream_keepalive)


class Reply:
    """Renders the events of one request in OpenAI's shapes."""

    def __init__(self, asked: ChatBody) -> None:
        self._asked = asked
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._tally = Tally(asked.n or 1, keep=not asked.stream)
        # OpenAI says which tier served a request only to those who asked for one; there is one here.
        self._tier: dict[str, Any] = {"service_tier": "default"} if asked.service_tier else {}

    async def whole(self, events: AsyncGenerator[Event]) -> Response:
        """The answer in one piece."""
        async with aclosing(events):
            async for event in events:
                self._tally.add(event)
        completion = ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._asked.model,
            choices=[self._choice(i, choice) for i, choice in enumerate(self._tally.choices)],
            usage=usage(self._tally.usage),
            **self._tier,
        )
        return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")

    def _choice(self, index: int, choice: Choice) -> answer.Choice:
        message = ChatCompletionMessage(
            role="assistant",
            content="".join(choice.content),
            refusal=None,
            annotations=[],
            **self._reasoning("".join(choice.reasoning)),
        )
        logprobs = (
            answer.ChoiceLogprobs(content=_entries(choice.logprobs), refusal=None) if self._asked.logprobs else None
        )
        return answer.Choice(index=index, message=message, finish_reason=choice.finish or "stop", logprobs=logprobs)

    async def stream(self, first: Event, events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
        """The answer in chunks, framed: each choice's role first, in order; then its deltas; then why it ended."""
        async with aclosing(events):
            self._tally.add(first)
            for index in range(self._asked.n or 1):
                yield self._chunk(index, part.ChoiceDelta(role="assistant", content="", refusal=None))
            async for event in events:
                self._tally.add(event)
                if isinstance(event, Delta):
                    for chunk in self._chunks(event):
                        yield chunk
        if self._asked.include_usage:
            yield self._frame([], usage(self._tally.usage))

    def _chunks(self, delta: Delta) -> list[bytes]:
        chunks = []
        if delta.reasoning and not self._asked.hide_reasoning:
            chunks.append(self._chunk(delta.index, part.ChoiceDelta(**self._reasoning(delta.reasoning))))
        if delta.content or delta.logprobs:
            logprobs = part.ChoiceLogprobs(content=_entries(delta.logprobs), refusal=None) if delta.logprobs else None
            chunks.append(self._chunk(delta.index, part.ChoiceDelta(content=delta.content), logprobs))
        if delta.finish is not None:
            choice = part.Choice(index=delta.index, delta=part.ChoiceDelta(), finish_reason=delta.finish, logprobs=None)
            chunks.append(self._frame([choice]))
        return chunks

    def _chunk(self, index: int, delta: part.ChoiceDelta, logprobs: part.ChoiceLogprobs | None = None) -> bytes:
        return self._frame([part.Choice(index=index, delta=delta, finish_reason=None, logprobs=logprobs)])

    def _frame(self, choices: list[part.Choice], used: CompletionUsage | None = None) -> bytes:
        extra = self._tier | ({"usage": used} if self._asked.include_usage else {})
        chunk = ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._asked.model,
            choices=choices,
            **extra,
        )
        return frame(chunk.model_dump_json(exclude_unset=True))

    def _reasoning(self, text: str) -> dict[str, Any]:
        """Reasoning under both names in use: every client reads one of them and ignores the other."""
        return {"reasoning": text, "reasoning_content": text} if text and not self._asked.hide_reasoning else {}


def _entries(logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[ChatCompletionTokenLogprob]:
    # `model_construct`: an answer can hold a hundred thousand of these, and what they are made of is typed already.
    return [
        ChatCompletionTokenLogprob.model_construct(
            token=entry.token,
            bytes=list(entry.raw),
            logprob=max(entry.logprob or 0.0, FLOOR),
            top_logprobs=[
                TopLogprob.model_construct(token=token, bytes=list(raw), logprob=max(value, FLOOR))
                for token, raw, value in entry.top
            ],
        )
        for entry in logprobs
    ]


def usage(used: Usage) -> CompletionUsage:
    """Tokens, in OpenAI's shape."""
    return CompletionUsage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=used.cached_tokens, audio_tokens=0),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=used.reasoning_tokens,
            audio_tokens=0,
            accepted_prediction_tokens=0,
            rejected_prediction_tokens=0,
        ),
    )
