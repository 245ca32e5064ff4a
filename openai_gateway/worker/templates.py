"""Renders messages through a model's own chat template, and finds out what that template can take.

Chat templates are programs of other people. What one does with tool calls is known only when it was tried.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from openai_gateway import reasoning
from openai_gateway.errors import InvalidRequest
from openai_gateway.types import EFFORTS
from openai_gateway.worker.turns import alternating, bridged, without_system

TEMPLATE_ERRORS: Final = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError,
    NotImplementedError,
)  # fmt: skip
"""What chat templates raise, on purpose or because they do not expect what they are given; the last two are of those
that mlx-lm has as Python functions."""

OURS: Final = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "messages", "bos_token", "eos_token", "pad_token", "unk_token",
}  # fmt: skip
"""Names that a request sets through fields of their own, or not at all: `chat_template` would be code of its own."""

Ids = Literal["given", "short", "counted"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a chat template takes of tool calls in the history."""

    calls: bool = False
    """Whether it shows them at all, and their results."""
    arguments: Literal["object", "text"] = "object"
    several: bool = True
    """Whether one turn may have more than one."""
    ids: Ids = "given"
    """Mistral's take nine letters and no other, Kimi's name the function with them: `functions.name:0`."""
    remarks: bool = True
    """Whether a turn may have a text and a thought beside its calls."""


def rendered(tokenizer: Any, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> str:
    """The prompt as text. Raises `InvalidRequest` for messages that the template refuses."""
    try:
        return _text(tokenizer, messages, kwargs)
    except TEMPLATE_ERRORS as error:
        refusal = error
    joined, linked = alternating(messages), bridged(messages)
    for other in (joined, without_system(messages), without_system(joined), linked, without_system(linked)):
        with suppress(*TEMPLATE_ERRORS):
            if other is not None and other != messages:
                return _text(tokenizer, other, kwargs)
    raise InvalidRequest(f"The model's chat template refuses these messages: {refusal}", param="messages")


def _text(tokenizer: Any, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs))


def traits(tokenizer: Any) -> Traits:
    """Tries the template with small conversations. No calls, where it shows none or shows them in a wrong way."""
    if not tokenizer.has_chat_template:
        return Traits()
    styles: tuple[Ids, ...] = ("given", "counted", "short")
    for ids, as_text in product(styles, (False, True)):
        one = _probe("a", ids=ids, as_text=as_text)
        if _shows(tokenizer, one[:-1], "probe_a", "value_a") and _shows(tokenizer, one, "result_a"):
            several = _shows(tokenizer, _probe("ab", ids=ids, as_text=as_text)[:-2], "probe_b", "value_b")
            remarks = _shows(tokenizer, _probe("a", ids=ids, as_text=as_text, remarks=True)[:-1], "remark", "value_a")
            return Traits(True, "text" if as_text else "object", several, ids, remarks)
    return Traits()


def _probe(letters: str, *, ids: Ids, as_text: bool, remarks: bool = False) -> list[dict[str, Any]]:
    calls, results = [], []
    for place, letter in enumerate(letters):
        name, arguments = f"probe_{letter}", {f"key_{letter}": f"value_{letter}"}
        id = id_in(ids, f"call_{letter}", name, place)
        function = {"name": name, "arguments": json.dumps(arguments) if as_text else arguments}
        calls.append({"id": id, "type": "function", "function": function})
        results.append({"role": "tool", "content": f"result_{letter}", "tool_call_id": id, "name": name})
    turn: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    if remarks:
        turn |= {"content": "remark", "thinking": "thought", "reasoning_content": "thought"}
    return [{"role": "user", "content": "question"}, turn, *results]


def _shows(tokenizer: Any, messages: list[dict[str, Any]], *texts: str) -> bool:
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TEMPLATE_ERRORS:
        return False
    # An object that is printed as Python has it, or a text that is encoded once more.
    return all(part in text for part in texts) and "{'" not in text and '\\"' not in text


def id_in(style: Ids, id: str, name: str, count: int) -> str:
    """A call's id as the template wants it; `count` calls came before it."""
    match style:
        case "counted":
            return f"functions.{name}:{count}"
        case "short":
            return hashlib.sha256(id.encode()).hexdigest()[:9]
    return id


ELSEWHERE: Final[dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys(reasoning.SWITCHES, (True, False)), "reasoning_effort": EFFORTS,
}  # fmt: skip
"""Keywords of thinking, which clients send to every model alike; where a template reads others they mean the same."""


def check_keywords(kwargs: dict[str, Any], template: reasoning.Template) -> None:
    """Raises `InvalidRequest` for keywords of a request that neither the template reads nor `Thinking.plan`."""
    for name, value in kwargs.items():
        if name in ELSEWHERE and name not in template.variables:
            if value not in ELSEWHERE[name]:
                raise InvalidRequest(f"'{name}' cannot be '{value}'.", param="chat_template_kwargs")
        elif name not in template.variables or name in OURS or not isinstance(value, str | int | float | bool):
            raise InvalidRequest(
                f"This model's chat template takes no keyword '{name}' of that kind.", param="chat_template_kwargs"
            )
