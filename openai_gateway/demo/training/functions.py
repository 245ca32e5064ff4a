"""Composes functions to call, and requests that need them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from openai_gateway.demo.training.values import Value, draw, kind_of, named, schema_of, spaced, vocabulary


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    kind: str
    required: bool
    about: str
    choices: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        schema = dict(schema_of(self.kind))
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.about:
            schema["description"] = self.about
        return schema


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    about: str
    parameters: tuple[Parameter, ...]

    def tool(self) -> dict[str, Any]:
        """As the API takes it."""
        schema = {
            "type": "object",
            "properties": {parameter.name: parameter.schema() for parameter in self.parameters},
            "required": [parameter.name for parameter in self.parameters if parameter.required],
        }
        return {"type": "function", "function": {"name": self.name, "description": self.about, "parameters": schema}}


@dataclass(frozen=True, slots=True)
class Need:
    """What a user wants, and the one call that does it. Arguments stand in the order of the parameters."""

    function: Function
    ask: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """A function of tools.toml; `slots` are its parameters under the names that the ways to ask have for them."""

    function: Function
    slots: dict[str, Parameter]
    asks: tuple[str, ...]

    def need(self, rng: random.Random) -> Need:
        ask = rng.choice(self.asks)
        given = [slot for slot in self.slots if "{" + slot + "}" in ask]
        told = {slot: draw(rng, self.slots[slot].kind, self.slots[slot].choices) for slot in given}
        spoken = ask.format(**{slot: value.spoken for slot, value in told.items()})
        return Need(self.function, spoken, {self.slots[slot].name: told[slot].value for slot in given})


@dataclass(frozen=True, slots=True)
class Composed:
    """A function of random words, which its requests name; held ones have only words that training never has."""

    function: Function
    verb: str
    noun: str
    held: bool

    def need(self, rng: random.Random) -> Need:
        given = [parameter for parameter in self.function.parameters if parameter.required or rng.random() < 0.5]
        told = {parameter.name: draw(rng, parameter.kind, parameter.choices, held=self.held) for parameter in given}
        slots = {"verb": self.verb, "Verb": self.verb.capitalize(), "noun": self.noun, "name": self.function.name}
        ask = _ask(rng, some=bool(given), held=self.held).format(**slots, args=_told(rng, given, told))
        return Need(self.function, ask, {parameter.name: told[parameter.name].value for parameter in given})


def _ask(rng: random.Random, *, some: bool, held: bool) -> str:
    """A way to ask for a composed function, with `some` arguments or none."""
    generic = vocabulary()["generic"]
    if held or rng.random() < 0.25:
        return str(rng.choice(generic["ask_without" if not some else "held_ask" if held else "ask"]))
    lead = rng.choice(generic["leads"])
    if rng.random() < 0.5:
        lead = " ".join(str(draw(rng, "word").value) for _ in range(rng.randint(1, 4)))
    verb = f"{lead} {{verb}}" if lead else "{Verb}"
    joint = rng.choice(generic["joints"]) if some else ""
    return f"{verb} {rng.choice(generic['articles'])} {{noun}}{joint}{rng.choice(generic['endings'])}"


Offer = Family | Composed
"""A function, and the requests that need it."""


def offer(rng: random.Random, *, held: bool = False) -> Offer:
    return composed(rng, held=held) if held or rng.random() < 0.7 else family(rng, rng.choice(vocabulary()["family"]))


def family(rng: random.Random, entry: dict[str, Any]) -> Family:
    """Whoever writes the function decides which of its optional parameters it has."""
    slots = {slot: _slot(rng, slot, entry) for slot in entry["parameters"]}
    slots = {slot: parameter for slot, parameter in slots.items() if parameter.required or rng.random() < 0.6}
    about = rng.choice(entry["about"]) if rng.random() < 0.85 else ""
    asks = tuple(ask for ask in entry["ask"] if set(re.findall(r"{(\w+)}", ask)) <= slots.keys())
    return Family(Function(rng.choice(entry["names"]), about, tuple(slots.values())), slots, asks)


def _slot(rng: random.Random, slot: str, entry: dict[str, Any]) -> Parameter:
    spec = entry["parameters"][slot]
    required = all("{" + slot + "}" in ask for ask in entry["ask"])
    name = rng.choice(spec["names"])
    if "about" in spec and rng.random() < 0.5:
        about = rng.choice(spec["about"])
    else:
        about = _about(rng, name, entry["names"][0])
    return Parameter(name, spec["kind"], required, about, tuple(spec.get("choices", ())))


def composed(rng: random.Random, *, held: bool = False) -> Composed:
    verb, noun = named(rng, "verbs", held=held), named(rng, "nouns", held=held)
    abouts = vocabulary()["generic"]["about"]
    about = rng.choice(abouts).format(verb=verb, Verb=verb.capitalize(), noun=noun) if rng.random() < 0.7 else ""
    count = rng.choices((0, 1, 2, 3), (4, 36, 36, 24))[0]
    names = dict.fromkeys(_cased(rng, named(rng, "parameters", held=held)) for _ in range(count))
    parameters = (_parameter(rng, name, noun, held) for name in names)
    return Composed(Function(_name(rng, verb, noun), about, tuple(parameters)), verb, noun, held)


def _parameter(rng: random.Random, name: str, noun: str, held: bool) -> Parameter:
    required, about = rng.random() < 0.85, _about(rng, name, noun)
    if rng.random() < 0.06:
        choices = tuple(str(draw(rng, "word", held=held).value) for _ in range(rng.randint(2, 3)))
        return Parameter(name, "choice", required, about, choices)
    # Digits that are a text teach to look at the type.
    return Parameter(name, "digits" if rng.random() < 0.06 else kind_of(rng), required, about)


def _about(rng: random.Random, name: str, noun: str) -> str:
    if rng.random() < 0.85:
        return ""
    return str(rng.choice(vocabulary()["generic"]["about_parameter"])).format(p=spaced(name), noun=spaced(noun))


def _cased(rng: random.Random, name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest)) if rng.random() < 0.25 else name


def _name(rng: random.Random, verb: str, noun: str) -> str:
    match rng.choices(("snake", "camel", "noun"), (70, 20, 10))[0]:
        case "snake":
            return f"{verb}_{noun}"
        case "camel":
            return verb + noun.capitalize()
    return noun


def _told(rng: random.Random, given: list[Parameter], told: dict[str, Value]) -> str:
    """`size 5, the owner Anna and wet on`: often in another order, as users do not know that of the parameters."""
    said = rng.sample(given, len(given)) if rng.random() < 0.4 else given
    parts = [_part(rng, parameter, told[parameter.name].spoken) for parameter in said]
    if any(isinstance(told[parameter.name].value, list) for parameter in given):
        # Commas part the values of a list already.
        return "; ".join(parts)
    if len(parts) > 1 and rng.random() < 0.6:
        parts[-2:] = [f"{parts[-2]} and {parts[-1]}"]
    return ", ".join(parts)


def _part(rng: random.Random, parameter: Parameter, value: str) -> str:
    name = spaced(parameter.name) if rng.random() < 0.7 else parameter.name
    forms = ["{p} {v}", "{p} {v}", "{p} {v}", "the {p} {v}", "{p} = {v}", "{p}: {v}"]
    if parameter.kind in ("number", "decimal"):
        forms.append("a {p} of {v}")
    return rng.choice(forms).format(p=name, v=value)
