"""Composes the held-out cases: phrasings, names and pairs of numbers that training never composes, with answers."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from openai_gateway.demo.training.calls import call_turn, compact, offers, unserved_turn
from openai_gateway.demo.training.facts import Fact, facts, phrasings
from openai_gateway.demo.training.functions import Offer
from openai_gateway.demo.training.objects import object_turn
from openai_gateway.demo.training.skills import (
    SUM_LIMIT,
    counted,
    fact_turn,
    is_held_sum,
    random_name,
    random_words,
    recalled,
    repeat_turn,
    sum_turn,
)

SEED = 7


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Case:
    """One request; the answer is right when it is exactly `expected`.

    With `json`, it is so when both are the same value. That of a call is its name and arguments, as `written` has them.
    """

    skill: str
    messages: tuple[dict[str, Any], ...]
    expected: str
    json: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None
    """Of a `response_format`."""


def fact_cases() -> list[Case]:
    """Every held-out phrasing of every fact."""
    return [_case("facts", held, fact.answer) for fact in facts() for held in fact.held]


def repeat_cases(count: int) -> list[Case]:
    rng = random.Random(f"{SEED}-repeat")
    words = [" ".join(random_words(rng)) for _ in range(count)]
    return [_case("repeat", _held(rng, "repeat").format(words=text), text) for text in words]


def sum_cases(count: int) -> list[Case]:
    rng = random.Random(f"{SEED}-sum")
    pairs = [(a, b) for a in range(SUM_LIMIT) for b in range(SUM_LIMIT) if is_held_sum(a, b)]
    return [
        _case("sums", _held(rng, "sum").format(a=a, b=b), f"{a} + {b} = {a + b}") for a, b in rng.sample(pairs, count)
    ]


def recall_cases(count: int, between: int) -> list[Case]:
    """The name was told `between` turns before the last one."""
    rng = random.Random(f"{SEED}-recall-{between}")
    return [_recall_case(rng, between) for _ in range(count)]


def _recall_case(rng: random.Random, between: int) -> Case:
    name = random_name(rng)
    history = [(_held(rng, "tell").format(name=name), f"Nice to meet you, {name}.")]
    for _ in range(between):
        turn = rng.choice((fact_turn, sum_turn, repeat_turn))(rng)
        history.append((turn.ask, turn.answer))
    return _case("recall", _held(rng, "recall"), recalled(name), history)


def count_cases(count: int) -> list[Case]:
    rng = random.Random(f"{SEED}-count")
    cases = []
    for _ in range(count):
        last = rng.randint(5, 100)
        first = rng.randint(max(0, last - 40), last - 1)
        cases.append(_case("counts", _held(rng, "count").format(a=first, b=last), counted(first, last)))
    return cases


def unknown_cases() -> list[Case]:
    unknown = phrasings()["unknown"]
    return [_case("unknown questions", held, unknown["answer"]) for held in unknown["held"]]


def effort_cases(count: int) -> list[Case]:
    """A mixture to be asked at every effort."""
    rng = random.Random(f"{SEED}-effort")
    chosen: list[Fact] = rng.sample(list(facts()), count)
    return [
        *(_case("facts", rng.choice(fact.held), fact.answer) for fact in chosen),
        *repeat_cases(count),
        *sum_cases(count),
        *recall_cases(count, 1),
    ]


def call_cases(count: int) -> list[Case]:
    """One to three functions of which the request needs one; no name of any stands in the training text."""
    rng = random.Random(f"{SEED}-call")
    weather = Case(
        "calls", _user("What is the weather in Paris?"), written("get_weather", '{"city":"Paris"}'), json=True
    )
    return [replace(weather, tools=(WEATHER,)), *(_call_case(rng) for _ in range(count - 1))]


def _call_case(rng: random.Random) -> Case:
    offered = offers(rng, held=True)
    need = rng.choice(offered).need(rng)
    expected = written(need.function.name, compact(need.arguments))
    return Case("calls", _user(need.ask), expected, json=True, tools=_tools(offered))


def unfit_cases(count: int) -> list[Case]:
    """Requests that need a function which is not among those offered."""
    rng = random.Random(f"{SEED}-unfit")
    return [_unfit_case(rng) for _ in range(count)]


def _unfit_case(rng: random.Random) -> Case:
    offered = offers(rng, held=True)
    turn = unserved_turn(rng, [one.function for one in offered], held=True)
    return Case("no calls", _user(turn.ask), turn.answer, tools=_tools(offered))


def unneeded_cases(count: int) -> list[Case]:
    """Functions are offered, and what is asked needs none."""
    rng = random.Random(f"{SEED}-unneeded")
    others = [*repeat_cases(count), *sum_cases(count), *rng.sample(fact_cases(), count)]
    return [
        replace(other, skill="no calls", tools=_tools(offers(rng, held=True))) for other in rng.sample(others, count)
    ]


def result_cases(count: int) -> list[Case]:
    """A call was made, and its result is there."""
    rng = random.Random(f"{SEED}-result")
    return [_result_case(rng) for _ in range(count)]


def _result_case(rng: random.Random) -> Case:
    offered = offers(rng, held=True)
    turn = call_turn(rng, rng.choice(offered).need(rng), held=True)
    function = {"name": turn.call.name, "arguments": turn.call.written()}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": turn.call.result}
    return Case("results", (*_user(turn.ask), called, result), turn.answer, tools=_tools(offered))


def object_cases(count: int, *, shown: bool) -> list[Case]:
    """JSON objects, with a `response_format` if `shown`; else the request alone asks for JSON."""
    rng = random.Random(f"{SEED}-object-{shown}")
    return [_object_case(rng, shown) for _ in range(count)]


def _object_case(rng: random.Random, shown: bool) -> Case:
    turn = object_turn(rng, held=True)
    schema = {**turn.schema, "additionalProperties": False} if shown else None
    return Case("objects", _user(turn.ask), turn.answer, json=True, schema=schema)


def written(name: str, arguments: str) -> str:
    """A call as one JSON text."""
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def _tools(offered: list[Offer]) -> tuple[dict[str, Any], ...]:
    return tuple(one.function.tool() for one in offered)


def _user(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def _held(rng: random.Random, skill: str) -> str:
    return str(rng.choice(phrasings()[skill]["held"]))


def _case(skill: str, ask: str, expected: str, history: list[tuple[str, str]] | None = None) -> Case:
    turns = [
        message
        for question, answer in history or []
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
    return Case(skill, (*turns, {"role": "user", "content": ask}), expected)
