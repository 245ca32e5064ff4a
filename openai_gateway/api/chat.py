"""POST /v1/chat/completions: body → `ChatRequest` → gateway → OpenAI's own response classes, whole or as a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Container, Iterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat import chat_completion as answer
from openai.types.chat import chat_completion_chunk as part
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from openai_gateway.api import body
from openai_gateway.api.calls import Calls
from openai_gateway.api.chunks import Shapes
from openai_gateway.api.logprobs import all_entries, entries, sliced
from openai_gateway.api.messages import MessageBody, history
from openai_gateway.api.stencil import HOLE, Stencil, encode
from openai_gateway.api.thinking import Thinking
from openai_gateway.api.tools import Toolbox
from openai_gateway.api.usage import caches, usage
from openai_gateway.errors import InvalidRequest, UnsupportedParameter
from openai_gateway.gateway import Choice, Gateway, Tally
from openai_gateway.settings import Settings
from openai_gateway.sse import EventStream, frame, unless_gone
from openai_gateway.types import ChatRequest, Delta, Effort, Event, Grammar, Message, ToolChoice

HINTS: Mapping[str, str] = {"low": "Keep your answers short.", "high": "Answer in detail and at length."}
"""What the levels of `verbosity` other than the ordinary one are in the system prompt."""


class ChatBody(body.Body, Toolbox, Thinking):
    """The parameters of a chat completion, as in OpenAI's API reference, and those that local servers add."""

    UNSUPPORTED: ClassVar[Mapping[str, Container[Any]]] = {
        **body.Body.UNSUPPORTED,
        "modalities": (["text"],),
        **dict.fromkeys(("audio", "web_search_options"), ()),
    }

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: body.MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    def request(self, max_n: int, default: Effort | None, owner: str) -> ChatRequest:
        """What `owner` asks for; `default` is the model's own effort. Raises `InvalidRequest`."""
        self.check(max_n)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        messages = history(self.messages)
        tools = self.offered()
        choice = self.choice(tools)
        form = self.form()
        return ChatRequest(
            model=self.model,
            messages=self._with_hint(messages),
            sampling=self.sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
            effort=self.effort(default),
            thinking_budget=self.budget,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel,
            grammar=form,
            template_kwargs=self._template_kwargs(),
            continue_final=self._continues(messages[-1], choice, form),
            owner=owner,
            priority=self.rank,
        )

    def _continues(self, last: Message, choice: ToolChoice, form: Grammar | None) -> bool:
        """Whether the answer goes on with the text of the last message. Raises `InvalidRequest`.

        Where nobody says so, what must be a call or have a form is a new turn: agents ask for it behind an answer.
        """
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise UnsupportedParameter(
                "'add_generation_prompt' may be false only where 'continue_final_message' is true.",
                param="add_generation_prompt",
            )
        begun = last.role == "assistant" and not last.tool_calls and bool(last.content)
        if not self.continue_final_message:
            free = choice.mode != "required" and form is None
            return begun and free and self.continue_final_message is None
        if not begun:
            raise InvalidRequest("There is no final assistant message to continue.", param="continue_final_message")
        if choice.mode == "required":
            raise InvalidRequest(
                "The last message begins an answer, which cannot become a tool call: leave it out, or set "
                "'continue_final_message' to false.",
                param="tool_choice",
            )
        return True

    def _with_hint(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages with what `verbosity` asks for as one more of the system's, which are joined for the model.

        The last message stays the last: it may be the one that is continued.
        """
        hint = HINTS.get(self.verbosity or "medium")
        return messages if hint is None else (*messages[:-1], Message("system", hint), messages[-1])

    def _template_kwargs(self) -> dict[str, Any]:
        """Which of them a template takes is the worker's to say; nested and endless ones go nowhere."""
        kwargs = {name: value for name, value in (self.chat_template_kwargs or {}).items() if value is not None}
        for name, value in kwargs.items():
            if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) >= 2**63):
                raise InvalidRequest(f"'{name}' must be a text, a number or a boolean.", param="chat_template_kwargs")
        return kwargs


class Chat:
    """The endpoint."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    async def create(self, http: Request) -> Response:
        asked = await body.read(http, ChatBody)
        spec = self._gateway.registry.resolve(asked.model)
        request = asked.request(self._settings.max_n, spec.defaults.reasoning_effort, http.state.owner)
        reply = Reply(asked)
        events = self._gateway.generate(request, body.reuse(http))
        if not asked.stream:
            return await unless_gone(http, reply.whole(events))
        # Whatever can be refused is refused by the first event: after it there is no way back from the 200.
        first = await unless_gone(http, body.first_of(events))
        return EventStream(
            reply.stream(first, events), keep_alive=self._settings.stream_keepalive, headers=caches([first])
        )


class Reply:
    """Renders the events of one request in OpenAI's shapes."""

    def __init__(self, asked: ChatBody) -> None:
        self._asked = asked
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._tally = Tally(asked.n or 1, keep=not asked.stream)
        self._calls = Calls.of(asked)
        # OpenAI says which tier served a request only to those who asked for one.
        self._tier: dict[str, Any] = (
            {"service_tier": "flex" if asked.service_tier == "flex" else "default"} if asked.service_tier else {}
        )

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
        rendered = Stencil(completion.model_dump_json(exclude_unset=True, warnings=False).encode())
        logprobs = [await all_entries(choice.logprobs) for choice in self._tally.choices if self._asked.logprobs]
        return Response(
            rendered.filled(*logprobs),
            headers=caches([self._tally.started]),
            media_type="application/json",
        )

    def _choice(self, index: int, choice: Choice) -> answer.Choice:
        message = ChatCompletionMessage(
            role="assistant",
            content="".join(choice.content) or (None if choice.calls else ""),
            refusal=None,
            annotations=[],
            **self._reasoning("".join(choice.reasoning)),
            **self._calls.whole(choice.calls),
        )
        logprobs = answer.ChoiceLogprobs.model_construct(content=HOLE, refusal=None) if self._asked.logprobs else None
        finish = self._calls.reason(choice.finish or "stop")
        return answer.Choice(index=index, message=message, finish_reason=finish, logprobs=logprobs)

    async def stream(self, first: Event, events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
        """The answer in chunks, framed: each choice's role first, in order; then its deltas; then why it ended."""
        async with aclosing(events):
            self._tally.add(first)
            shapes = [Shapes(self._frame, index, self._calls) for index in range(self._asked.n or 1)]
            yield b"".join([shape.role for shape in shapes])
            async for event in events:
                self._tally.add(event)
                if isinstance(event, Delta):
                    for chunk in self._chunks(shapes[event.index], event):
                        yield chunk
        if self._asked.include_usage:
            yield self._frame([], usage(self._tally.usage))

    def _chunks(self, shapes: Shapes, delta: Delta) -> Iterator[bytes]:
        if delta.reasoning and not self._asked.hide_reasoning:
            reasoning = encode(delta.reasoning)
            yield shapes.reasoning.filled(reasoning, reasoning)
        if delta.logprobs:
            for some in sliced(delta):
                yield shapes.logprobs.filled(encode(some.content), encode(entries(some.logprobs)))
        elif delta.content:
            yield shapes.content.filled(encode(delta.content))
        for call in delta.calls:
            yield shapes.call(call)
        if delta.finish is not None:
            yield shapes.finish(delta.finish)

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
        return frame(chunk.model_dump_json(exclude_unset=True, warnings=False).encode())

    def _reasoning(self, text: str) -> dict[str, Any]:
        """Reasoning under both names in use: every client reads one of them and ignores the other."""
        return {"reasoning": text, "reasoning_content": text} if text and not self._asked.hide_reasoning else {}
