"""Refuses prompts that cannot fit before all of their tokens are counted, which takes a second for each megabyte."""

from __future__ import annotations

from typing import Any

from openai_gateway.errors import ContextLengthExceeded
from openai_gateway.types import ChatRequest, CompletionRequest, Request

CHARACTERS_PER_TOKEN = 32
"""More than any text has on the average: English has four, deeply indented code perhaps ten."""

HEAD = 8
"""Characters for each token of the context that are counted first; of ordinary text, so many do not fit."""


def refuse_hopeless(request: Request, tokenizer: Any, context_length: int) -> None:
    """Raises `ContextLengthExceeded` for a prompt that is too long by its size, or by its beginning alone."""
    param, head, rest = _chat(request) if isinstance(request, ChatRequest) else _completion(request)
    least = (len(head) + len(rest)) // CHARACTERS_PER_TOKEN
    if least <= context_length and len(head) > HEAD * context_length:
        least = len(tokenizer.encode(head[: HEAD * context_length], add_special_tokens=False))
    if least > context_length:
        raise ContextLengthExceeded.of(least, context_length, param)


def _chat(request: ChatRequest) -> tuple[str, str, str]:
    """What every template shows, and what it may leave out: tools, and thoughts in what the assistant wrote."""
    shown = [(m.content or "").strip() for m in request.messages if m.role != "assistant"]
    rest = [m.content or "" for m in request.messages if m.role == "assistant"]
    rest += [call.arguments for m in request.messages for call in m.tool_calls]
    if request.tool_choice.mode != "none":
        rest += [tool.description + tool.parameters for tool in request.tools]
    return "messages", "".join(shown), "".join(rest)


def _completion(request: CompletionRequest) -> tuple[str, str, str]:
    return "prompt", request.prompt + (request.suffix or "") if isinstance(request.prompt, str) else "", ""
