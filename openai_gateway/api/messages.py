"""The messages of a chat request: every role and form that clients send, as frozen `Message`s."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from openai_gateway.errors import InvalidRequest, UnsupportedParameter
from openai_gateway.types import Message, ToolCall

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The type of a part → where its text is; two are of the Responses API."""

THOUGHTS = ("thinking", "reasoning", "redacted_thinking")


class FunctionBody(BaseModel):
    """The name and arguments of a call in the history: a JSON text, or the object that Ollama's clients send."""

    model_config = ConfigDict(strict=True)

    name: str
    arguments: Annotated[str, BeforeValidator(lambda value: json.dumps(value) if isinstance(value, dict) else value)]


class CustomBody(BaseModel):
    """The name and text of a call of a custom tool in the history."""

    model_config = ConfigDict(strict=True)

    name: str
    input: str


class ToolCallBody(BaseModel):
    """A call in the history."""

    model_config = ConfigDict(strict=True)

    id: str
    type: Literal["function", "custom"] | None = None
    function: FunctionBody | None = None
    custom: CustomBody | None = None

    def call(self, where: str) -> ToolCall:
        """The call; `where` names it in errors."""
        kind = self.type or "function"
        if kind == "function" and self.function is not None:
            return ToolCall(self.id, self.function.name, self.function.arguments)
        if kind == "custom" and self.custom is not None:
            return ToolCall(self.id, self.custom.name, self.custom.input, "custom")
        raise InvalidRequest.missing(f"{where}.{kind}")


class MessageBody(BaseModel):
    """One message as it arrives; nulls and unknown keys are what clients send back of earlier answers."""

    model_config = ConfigDict(strict=True)

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Any = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(fail_fast=True)] | None = None
    function_call: FunctionBody | None = None
    tool_call_id: str | None = None

    def message(self, where: str) -> Message:
        """The message; `where` names it in errors, as `messages[3]`."""
        calls = tuple(call.call(f"{where}.tool_calls[{i}]") for i, call in enumerate(self.tool_calls or ()))
        if self.function_call is not None:  # the form before tools: at most one call, known by its name
            calls = (*calls, ToolCall(self.function_call.name, self.function_call.name, self.function_call.arguments))
        said, thought = apart(self.content, f"{where}.content") if self.role == "assistant" else (self.content, "")
        content = text_of(said, f"{where}.content")
        if content is None and self.role in ("tool", "function"):
            content = ""  # a function that returned nothing
        if content is None and self.role != "assistant":
            raise InvalidRequest.missing(f"{where}.content")
        if self.role == "tool" and self.tool_call_id is None:
            raise InvalidRequest.missing(f"{where}.tool_call_id")
        if self.role == "function" and self.name is None:
            raise InvalidRequest.missing(f"{where}.name")
        return Message(
            role="tool" if self.role == "function" else self.role,
            content=self.refusal if content is None and not calls else content,
            name=self.name,
            reasoning=self.reasoning or self.reasoning_content or thought or None,
            tool_calls=calls,
            tool_call_id=self.name if self.role == "function" else self.tool_call_id,
        )


def history(bodies: list[MessageBody]) -> tuple[Message, ...]:
    """The messages of a request. Raises `InvalidRequest`, also for a result that no call is waiting for.

    A call that nothing has answered is left as it is: templates render it, and clients are interrupted.
    """
    messages = tuple(body.message(f"messages[{i}]") for i, body in enumerate(bodies))
    answered: dict[str, bool] = {}
    for place, message in enumerate(messages):
        ids = [call.id for call in message.tool_calls]
        if len(set(ids)) < len(ids):
            param = f"messages[{place}].tool_calls"
            raise InvalidRequest(f"Two calls of '{param}' have the same id.", param=param)
        answered |= dict.fromkeys(ids, False)
        if bodies[place].role == "tool":
            id = message.tool_call_id or ""
            if answered.get(id, True):
                why = "has its result already" if id in answered else "was made in no message before it"
                param = f"messages[{place}].tool_call_id"
                raise InvalidRequest(f"'{param}' is '{id[:64]}': that call {why}.", param=param)
            answered[id] = True
    return messages


def apart(content: Any, where: str) -> tuple[Any, str]:
    """An answer's content without its thoughts, and those: parts as LangChain, Anthropic and Mistral have them."""
    if not isinstance(content, list):
        return content, ""
    thoughts = [_thought(part, f"{where}[{i}]") for i, part in enumerate(content)]
    said = [part if thought is None else "" for part, thought in zip(content, thoughts, strict=True)]
    return said, "".join(thought or "" for thought in thoughts)


def _thought(part: Any, where: str) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return text_of(part.get(kind), f"{where}.{kind}") or "" if kind in THOUGHTS else None


def text_of(content: Any, where: str) -> str | None:
    """The text of a message's content: a string, or parts that are joined without anything between them."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"'{where}' must be a string or a list of parts.", param=where, code="invalid_type")
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(TEXTS[kind]) if kind in TEXTS else None
    if isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in TEXTS:
        raise UnsupportedParameter(f"Content of type '{kind[:64]}' is not supported: only text.", param=where)
    raise InvalidRequest(f"'{where}' must be an object with a 'type' and its text.", param=where, code="invalid_type")
