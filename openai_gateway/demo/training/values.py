"""Draws the values that tool calls, their results and small JSON objects hold, and says them as a user would."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openai_gateway.demo.training.facts import phrasings
from openai_gateway.demo.training.skills import made_up_word

SCHEMAS: dict[str, dict[str, Any]] = {
    "number": {"type": "integer"},
    "decimal": {"type": "number"},
    "flag": {"type": "boolean"},
    "words": {"type": "array", "items": {"type": "string"}},
    "people": {"type": "array", "items": {"type": "string"}},
    "numbers": {"type": "array", "items": {"type": "integer"}},
}
"""JSON Schema of the kinds of values that are no strings."""
KINDS = {
    "word": 12, "place": 10, "person": 8, "title": 6, "number": 24, "decimal": 6, "flag": 13, "words": 11, "people": 5,
    "numbers": 5,
}  # fmt: skip
"""How often functions of random words and texts have each."""
LISTS = {"words": "word", "people": "person", "numbers": "number"}


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value, and the words for it in a request."""

    value: Any
    spoken: str


@cache
def vocabulary() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "tools.toml").read_text())


def words(kind: str, *, held: bool) -> list[str]:
    """The words of tools.toml: those of training, or those that only measure."""
    return list(vocabulary()["words"][f"held_{kind}" if held else kind])


def named(rng: random.Random, kind: str, *, held: bool) -> str:
    """A name out of the words of `kind`; in training half of them are made up, or only known ones would be read."""
    return made_up_word(rng) if not held and rng.random() < 0.5 else rng.choice(words(kind, held=held))


def draw(rng: random.Random, kind: str, choices: tuple[str, ...] = (), *, held: bool = False) -> Value:
    """A value of `kind`; a held one has only words that training never has."""
    if kind in LISTS:
        drawn = [draw(rng, LISTS[kind], held=held) for _ in range(rng.choices((1, 2, 3, 4), (10, 36, 32, 22))[0])]
        return Value([value.value for value in drawn], enumerated([value.spoken for value in drawn]))
    if kind == "flag":
        return _flag(rng)
    if kind in ("number", "decimal"):
        number = _number(rng, whole=kind == "number")
        return Value(number, str(number))
    text = rng.choice(choices) if choices else _text(rng, kind, held)
    return Value(text, text)


def _flag(rng: random.Random) -> Value:
    truth = rng.random() < 0.5
    return Value(truth, rng.choice(("on", "yes", "true") if truth else ("off", "no", "false")))


def _number(rng: random.Random, *, whole: bool) -> int | float:
    limit, sign = rng.choice((10, 10, 100, 100, 1000, 3000)), -1 if rng.random() < 0.05 else 1
    if whole or rng.random() < 0.4:
        return sign * rng.randrange(limit)
    return sign * (rng.randrange(limit) + rng.randrange(1, 10) / 10)


def _text(rng: random.Random, kind: str, held: bool) -> str:
    match kind:
        case "place":
            return _capital(rng, words("places", held=held))
        case "person":
            return _capital(rng, phrasings()["words"]["names"] if not held else [])
        case "title":
            return " ".join(_word(rng, held) for _ in range(rng.randint(1, 4)))
    return FORMS[kind](rng) if kind in FORMS else _word(rng, held)


def _time(rng: random.Random) -> str:
    return f"{rng.randrange(24):02}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45)):02}"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2019, 2031)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _currency(rng: random.Random) -> str:
    return rng.choice(("EUR", "USD", "GBP", "JPY", "CHF")) if rng.random() < 0.5 else _letters(rng, 3)


def _code(rng: random.Random) -> str:
    return _letters(rng, rng.randint(2, 4)) + (str(rng.randrange(1, 100)) if rng.random() < 0.4 else "")


def _digits(rng: random.Random) -> str:
    return str(rng.randrange(10, 99999))


FORMS = {"time": _time, "date": _date, "currency": _currency, "code": _code, "digits": _digits}
"""The kinds of texts that are no words."""


def _word(rng: random.Random, held: bool) -> str:
    if held or rng.random() < 0.45:
        return made_up_word(rng)
    return str(rng.choice(vocabulary()["words"]["known"] if rng.random() < 0.5 else phrasings()["words"]["known"]))


def _capital(rng: random.Random, known: list[str]) -> str:
    if known and rng.random() < 0.4:
        return rng.choice(known)
    name = made_up_word(rng).capitalize()
    return f"{name} {made_up_word(rng).capitalize()}" if rng.random() < 0.15 else name


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(count))


def enumerated(listed: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def kind_of(rng: random.Random) -> str:
    return rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]


def schema_of(kind: str) -> dict[str, Any]:
    return SCHEMAS.get(kind, {"type": "string"})


def spaced(name: str) -> str:
    """`room_number` or `roomNumber` as it is spoken."""
    return re.sub(r"(?<=[a-z])_?([A-Z])", r" \1", name).replace("_", " ").lower()
