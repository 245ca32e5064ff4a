"""Composes turns that need a tool: the call, what comes back, the answer, and the analysis of both at each effort."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from openai_gateway.demo.training.facts import phrasings
from openai_gateway.demo.training.functions import Function, Need, Offer, offer
from openai_gateway.demo.training.skills import Turn, unknown_thoughts
from openai_gateway.demo.training.values import draw, named, spaced, vocabulary

RESULT_KINDS = ("number", "decimal", "word", "place", "person", "title", "flag", "words", "time")
_SMALL = frozenset(
    ("a", "the", "to", "of", "and", "get", "in", "or", "can", "one", "return", "result", "function", "from", "another")
)
_OFTEN = (30, 8, 22, 8, 8, 8, 6, 6, 4)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call with the analysis before it at low, medium and high effort, and the text that the tool returns."""

    name: str
    arguments: dict[str, Any]
    thoughts: tuple[str, str, str]
    result: str

    def written(self) -> str:
        return compact(self.arguments)


@dataclass(frozen=True, slots=True)
class CallTurn:
    """A request that a call answers; `answer` and `thoughts` are those after the result."""

    ask: str
    call: Call
    answer: str
    thoughts: tuple[str, str, str]


def compact(value: Any) -> str:
    """JSON without blanks, as the model writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def call_turn(rng: random.Random, wanted: Need, *, held: bool = False) -> CallTurn:
    result, answer, said = tool_result(rng, held=held)
    call = Call(wanted.function.name, wanted.arguments, call_thoughts(wanted), result)
    return CallTurn(wanted.ask, call, answer, result_thoughts(call.name, said))


def call_thoughts(wanted: Need) -> tuple[str, str, str]:
    return (
        "A tool call.",
        "The user wants something that a tool can do. I call it.",
        f"Let me think step by step. What does the user want? They say: {wanted.ask} One of the tools can do that, so "
        "I call it once. What the user says goes into its parameters, each as its type wants it, and what is not said "
        "I leave out.",
    )


def said(value: Any) -> str:
    return value if isinstance(value, str) else compact(value)


def tool_result(rng: random.Random, *, held: bool = False) -> tuple[str, str, str]:
    """What a tool returns, the answer that says it in a sentence, and the same for the analysis."""
    answers = vocabulary()["answers"]
    form = rng.random()
    if form < 0.2:
        text = _plain_text(rng, held)
        return text, answers["plain"].format(text=text), text
    if form < 0.26:
        text = f"{draw(rng, 'word', held=held).value} not found"
        failed = _written(rng, {"error": text})
        return failed, answers["failed"].format(text=text), failed
    names = dict.fromkeys(named(rng, "results", held=held) for _ in range(rng.choices((1, 2, 3), (40, 38, 22))[0]))
    found = {name: draw(rng, rng.choices(RESULT_KINDS, _OFTEN)[0], held=held).value for name in names}
    written = _written(rng, found)
    return written, " ".join(f"The {spaced(key)} is {_spoken(value)}." for key, value in found.items()), written


def _plain_text(rng: random.Random, held: bool) -> str:
    text = str(rng.choice(vocabulary()["answers"]["texts"]))
    for slot, kind in (("{n}", "number"), ("{w}", "word"), ("{m}", "person")):
        while slot in text:
            text = text.replace(slot, draw(rng, kind, held=held).spoken, 1)
    return text


def _written(rng: random.Random, value: Any) -> str:
    """Clients write JSON with blanks or without."""
    return json.dumps(value, ensure_ascii=False) if rng.random() < 0.6 else compact(value)


def _spoken(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else said(value)


def result_thoughts(name: str, said: str) -> tuple[str, str, str]:
    return (
        f"Result of {name}.",
        "The tool returned something. I tell the user what it says.",
        f"Let me think step by step. I called {name} and it returned something. What does it say? It says: {said} "
        "Is there an error in it? I say it as it is. Is another call needed? No, this answers the request. "
        "So I tell the user what the tool says, in one sentence.",
    )


def unserved_turn(rng: random.Random, offered: list[Function], *, held: bool = False) -> Turn:
    """A request for a function that is not among those offered."""
    missing = offer(rng, held=held)
    while any(alike(missing.function, other) for other in offered):
        missing = offer(rng, held=held)
    return Turn(missing.need(rng).ask, phrasings()["unknown"]["answer"], unknown_thoughts())


def offers(rng: random.Random, *, held: bool = False) -> list[Offer]:
    """One to three functions of which no two are alike."""
    chosen: list[Offer] = []
    for _ in range(rng.choices((1, 2, 3), (40, 34, 26))[0]):
        new = offer(rng, held=held)
        if not any(alike(new.function, other.function) for other in chosen):
            chosen.append(new)
    return chosen


def alike(one: Function, other: Function) -> bool:
    """Whether two functions share a word of their names or descriptions, so that either might be meant."""
    return bool((_words(one) & _words(other)) - _SMALL)


def adds(function: Function) -> bool:
    """Whether it does what the model can do by itself."""
    return bool(_words(function) & {"add", "sum", "plus"})


def _words(function: Function) -> set[str]:
    return set(spaced(f"{function.name} {function.about}").replace(".", "").split())
