"""Composes the held-out cases: phrasings and pairs of numbers that training never composes, each with its answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from openai_gateway.demo.training.facts import Fact, facts, phrasings
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


@dataclass(frozen=True, slots=True)
class Case:
    """One request; the answer is right when it is exactly `expected`."""

    skill: str
    messages: tuple[dict[str, Any], ...]
    expected: str


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


def _held(rng: random.Random, skill: str) -> str:
    return str(rng.choice(phrasings()[skill]["held"]))


def _case(skill: str, ask: str, expected: str, history: list[tuple[str, str]] | None = None) -> Case:
    turns = [
        message
        for question, answer in history or []
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
    return Case(skill, (*turns, {"role": "user", "content": ask}), expected)
