"""Composes turns that ask for a small JSON object: a text tells its values, the request names its keys."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from openai_gateway.demo.training.calls import compact, said
from openai_gateway.demo.training.values import Value, draw, enumerated, kind_of, named, schema_of, spaced, vocabulary


@dataclass(frozen=True, slots=True)
class ObjectTurn:
    """`known` says whether the prompt tells the keys and their order; if not, the decoder's grammar writes them."""

    ask: str
    value: dict[str, Any]
    known: bool
    schema: dict[str, Any]

    @property
    def answer(self) -> str:
        return compact(self.value)

    def pieces(self) -> list[tuple[str, bool]]:
        """The answer, and which parts of it can be learned."""
        pieces, between = [], '{"'
        for key, value in self.value.items():
            pieces += [(between, True), (key, self.known), (f'":{compact(value)}', True)]
            between = ',"'
        return _joined([*pieces, ("}", True)])

    @property
    def thoughts(self) -> tuple[str, str, str]:
        pairs = ", ".join(f"{key} = {said(value)}" for key, value in self.value.items())
        return (
            "JSON.",
            "The user wants JSON. I take each value from the text.",
            "Let me think step by step. The user wants a JSON object and nothing else. What does the text say about "
            f"each of its keys? {pairs}. Texts get quotes, numbers and truth values do not, and lists get brackets. "
            "I add no key and no other word.",
        )


def _joined(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours that are learned alike, in one: `","` is one token."""
    return [("".join(text for text, _ in group), learned) for learned, group in groupby(pieces, lambda piece: piece[1])]


def response_format(turn: ObjectTurn) -> str:
    """How harmony shows the form of an answer."""
    return f"# Response Formats\n\n## answer\n\n{compact(turn.schema)}"


def object_turn(rng: random.Random, *, held: bool = False) -> ObjectTurn:
    text, told, kinds = _text(rng, held)
    keys = list(told) if rng.random() < 0.75 else rng.sample(list(told), len(told))
    if len(keys) > 2 and rng.random() < 0.15:
        keys.pop(rng.randrange(len(keys)))
    schema = {"type": "object", "properties": {key: schema_of(kinds[key]) for key in keys}, "required": keys}
    named = held or rng.random() < 0.75
    asks = vocabulary()["json"]
    listed = enumerated([spaced(key) for key in keys] if rng.random() < 0.6 else keys)
    if not named:
        ask = f"{text} {rng.choice(asks['ask_without_keys'])}" if rng.random() < 0.7 else text
    elif not held and rng.random() < 0.3:
        ask = rng.choice(asks["ask_first"]).format(keys=listed, text=text)
    else:
        ask = f"{text} {rng.choice(asks['held_ask' if held else 'ask']).format(keys=listed)}"
    return ObjectTurn(ask, {key: told[key].value for key in keys}, named, schema)


def _text(rng: random.Random, held: bool) -> tuple[str, dict[str, Value], dict[str, str]]:
    if rng.random() < 0.45:
        return _composed_text(rng, held)
    entry = rng.choice(vocabulary()["json"]["text"])
    kinds = dict(entry["keys"])
    told = {key: _drawn(rng, kind, held) for key, kind in kinds.items()}
    return rng.choice(entry["text"]).format(**{key: value.spoken for key, value in told.items()}), told, kinds


def _drawn(rng: random.Random, kind: str, held: bool) -> Value:
    """No list of one, which a text does not tell from what is in it."""
    value = draw(rng, kind, held=held)
    while isinstance(value.value, list) and len(value.value) == 1:
        value = draw(rng, kind, held=held)
    return value


def _composed_text(rng: random.Random, held: bool) -> tuple[str, dict[str, Value], dict[str, str]]:
    """`The size is 5, the owner is Anna.`"""
    names = dict.fromkeys(named(rng, "parameters", held=held) for _ in range(rng.randint(1, 4)))
    kinds = {name: kind_of(rng) for name in names}
    told = {name: _drawn(rng, kind, held) for name, kind in kinds.items()}
    form = rng.choice(vocabulary()["json"]["generic"])
    parts = [form.format(k=spaced(name), v=value.spoken) for name, value in told.items()]
    # Commas part the values of a list already.
    lists = any(isinstance(value.value, list) for value in told.values())
    between = ("; ", ". ", "\n") if lists else (", ", " and ", "; ", ". ", "\n")
    return rng.choice(between).join(parts) + ".", told, kinds
