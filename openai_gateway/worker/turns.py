"""The messages of a conversation as chat templates take them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal

from msgspec.structs import replace

from openai_gateway.types import Message, ToolCall
from openai_gateway.worker.calls.offer import INPUT

VOLATILE = re.compile(r"\Ax-anthropic-[a-z-]+:[^\n]*\n*")
"""Claude Code's first line of the system prompt. It is for billing, and changes with every request: a model has no use
for it, and nothing behind it would ever be found in the prefix cache."""

BRIDGES = {"user": {"role": "assistant", "content": "OK."}, "assistant": {"role": "user", "content": "Hello."}}
"""What stands between two turns of a role."""


def turns(messages: tuple[Message, ...], hint: str | None) -> Iterator[dict[str, Any]]:
    """The messages as chat templates take them: one system message, first, with `hint` at its end; no null keys.

    Templates read only the first system message (gpt-oss) or refuse later ones (Qwen), so those are joined.
    """
    rules = [VOLATILE.sub("", m.content) for m in messages if m.role in ("system", "developer") and m.content]
    rules = [rule for rule in rules if rule]
    if hint is not None:
        rules.append(hint)
    if rules:
        yield {"role": "system", "content": "\n\n".join(rules)}
    names = {call.id: call.name for m in messages for call in m.tool_calls}
    for message in messages:
        if message.role not in ("system", "developer"):
            yield _turn(message, names)


def without_past_reasoning(messages: tuple[Message, ...], since: Literal["user", "answer"]) -> tuple[Message, ...]:
    """The same with no more reasoning than a model was trained to see: that of the tool calls it is still about.

    These are the calls behind the last answer, and (`since` "user") behind the last question as well. Templates that
    drop the rest themselves find nothing to drop; others print all that they are given.
    """
    ends = (
        place
        for place, message in enumerate(messages)
        if (message.role == "assistant" and not message.tool_calls) or (message.role == "user" and since == "user")
    )
    last = max(ends, default=-1)
    return tuple(
        replace(message, reasoning=None) if message.reasoning and place <= last else message
        for place, message in enumerate(messages)
    )


def in_blocks(turn: dict[str, Any]) -> dict[str, Any]:
    """The same with its reasoning as a part of the content, the only place where Mistral's templates look for it."""
    if not turn.get("reasoning"):
        return turn
    text = [{"type": "text", "text": turn["content"]}] if turn["content"] else []
    return {**turn, "content": [{"type": "thinking", "thinking": turn["reasoning"]}, *text]}


def without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The same with the system message at the head of the first user turn, for templates that know none (Gemma)."""
    match messages:
        case [{"role": "system", "content": rules}, {"role": "user", "content": text} as first, *rest]:
            return [{**first, "content": f"{rules}\n\n{text}"}, *rest]
    return None


def alternating(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with neighbours of one role as one turn, for templates that want roles to alternate (Gemma, Mistral)."""
    places = range(len(messages))
    groups = groupby(places, lambda place: messages[place]["role"] if _is_text(messages[place]) else place)
    return [_joined([messages[place] for place in group]) for _, group in groups]


def bridged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with a few words where a question follows a question, but for calls and results, which Mistral's
    templates do not count, and before an answer to nothing; without answers that say nothing."""
    said = [turn for turn in messages if turn["content"] or turn["role"] != "assistant" or "tool_calls" in turn]
    return [*_bridged(alternating(said))]


def _bridged(turns: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last = "assistant"
    for turn in turns:
        if _is_said(turn):
            if turn["role"] == last:
                yield BRIDGES[last]
            last = turn["role"]
        yield turn


def _joined(turns: list[dict[str, Any]]) -> dict[str, Any]:
    if len(turns) == 1:
        return turns[0]
    both = {key: value for turn in turns for key, value in turn.items()}
    return both | {"content": "\n\n".join(turn["content"] for turn in turns)}


def _is_text(turn: dict[str, Any]) -> bool:
    return _is_said(turn) and isinstance(turn["content"], str)


def _is_said(turn: dict[str, Any]) -> bool:
    return turn["role"] in ("user", "assistant") and "tool_calls" not in turn


def _turn(message: Message, names: dict[str, str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning:
        # gpt-oss reads the first name, Qwen and DeepSeek the second, Gemma either of the others.
        turn |= dict.fromkeys(("thinking", "reasoning_content", "reasoning"), message.reasoning)
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if name := message.name or names.get(message.tool_call_id or ""):
        turn["name"] = name
    return turn


def _arguments(call: ToolCall) -> Any:
    """Templates encode arguments themselves: a text handed to them would be encoded twice."""
    if call.kind == "custom":
        return {INPUT: call.arguments}  # whatever it looks like
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments
