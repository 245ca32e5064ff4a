"""Reads the facts and the phrasings that the embedded model learns, and composes questions from them."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

# Words that may stand for each other in a question; "What" may not become "Which".
_SWAPS: tuple[tuple[str, ...], ...] = (
    ("How do I", "How can I", "How would I", "How should I", "How could I", "How does one", "How to"),
    ("What is", "What's", "what is", "Whats", "What exactly is"),
    ("Which", "Which", "What"),
    ("Where do I", "Where can I", "Where should I"),
    ("Can I", "May I", "Could I", "Is it possible to", "Am I able to"),
    ("Explain", "Describe", "Tell me about", "Please explain"),
    ("Do I need", "Must I have", "Do you need", "Does one need"),
    ("start", "launch", "run", "begin"),
    ("use", "take", "pick"),
    ("show", "display", "print"),
    ("mean", "stand for", "say"),
    ("are there", "exist", "are available"),
    ("supported", "available", "possible"),
    ("get", "receive", "obtain"),
    ("set", "define", "choose", "specify"),
    ("large", "big"),
    ("error", "error code", "status"),
    ("answer", "reply", "response"),
    ("answers", "replies", "responses"),
)
_SWAP_OF = {word: group for group in _SWAPS for word in group if word != "What"}
_SWAPPABLE = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _SWAP_OF), key=len, reverse=True)) + r")\b")
_SMALL = frozenset(
    ("a", "an", "are", "at", "can", "do", "does", "for", "i", "in", "is", "it", "me", "my", "of", "on", "the")
)
_TURNED = {"I": "you", "my": "your", "am": "are"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer, the noun phrase it is about, and the questions that lead to it."""

    topic: str
    answer: str
    ask: tuple[str, ...]
    held: tuple[str, ...]


@cache
def facts() -> tuple[Fact, ...]:
    return tuple(
        Fact(entry["topic"], entry["answer"], tuple(entry["ask"]), tuple(entry["held"]))
        for entry in _read("facts.toml")["fact"]
    )


@cache
def phrasings() -> dict[str, Any]:
    return _read("phrasings.toml")


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_HERE / name).read_text())


def plain(text: str) -> str:
    """Lower case without punctuation: what counts when two phrasings are compared."""
    return " ".join(re.sub(r"[^a-z0-9_/ ]", " ", text.lower().replace("'", "")).split())


def fact_question(rng: random.Random, fact: Fact) -> str:
    """A question whose core is none of the held-out phrasings of its fact."""
    while True:
        core = _frame(rng, fact.topic) if rng.random() < 0.25 else _reword(rng, rng.choice(fact.ask))
        core = core.replace("{gw}", rng.choice(phrasings()["style"]["gateway"]))
        if rng.random() < 0.15:
            core = _shorten(rng, core)
        spoken = plain(core)
        if not any(plain(held) in spoken for held in fact.held):
            return wrap(rng, core)


def _shorten(rng: random.Random, question: str) -> str:
    """Leaves out some of the words that carry no meaning."""
    kept = [word for word in question.split() if word.lower() not in _SMALL or rng.random() < 0.5]
    return " ".join(kept) or question


def _frame(rng: random.Random, topic: str) -> str:
    turned = " ".join(_TURNED.get(word, word) for word in topic.split())
    return str(rng.choice(phrasings()["style"]["frames"])).replace("{topic}", turned)


def _reword(rng: random.Random, question: str) -> str:
    def swap(match: re.Match[str]) -> str:
        return rng.choice(_SWAP_OF[match[0]]) if rng.random() < 0.4 else match[0]

    return _SWAPPABLE.sub(swap, question)


def wrap(rng: random.Random, core: str) -> str:
    """The way people type: greetings around it, lower case, no question mark, a typing error."""
    style = phrasings()["style"]
    text = core[0].upper() + core[1:]
    if rng.random() < 0.25:
        text = rng.choice(style["before"]) + (text if rng.random() < 0.5 else core[0].lower() + core[1:])
    if rng.random() < 0.1:
        text += rng.choice(style["after"])
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.12:
        text = _mistype(rng, text)
    return text


def _mistype(rng: random.Random, text: str) -> str:
    places = [match.start() + 1 for match in re.finditer(r"[a-z]{4,}", text)]
    if not places:
        return text
    at = rng.choice(places) + rng.randrange(2)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
