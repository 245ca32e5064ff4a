"""Composes single turns of every skill: a question, its answer, and the analysis at each effort."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openai_gateway.demo.training.facts import Fact, fact_question, facts, phrasings, plain, wrap

SUM_LIMIT = 100
# How often a word of a list is one that it holds already: as users do it, and in training, which needs more of it.
AGAIN, AGAIN_IN_TRAINING = 0.04, 0.12
FOLDER = Path(__file__).parent
NO_NAME = "You have not told me your name."


@dataclass(frozen=True, slots=True)
class Turn:
    """`thoughts` holds the analysis at low, medium and high effort."""

    ask: str
    answer: str
    thoughts: tuple[str, str, str]


def fact_turn(rng: random.Random, fact: Fact | None = None) -> Turn:
    fact = fact or rng.choice(facts())
    return Turn(fact_question(rng, fact), fact.answer, fact_thoughts(fact))


def fact_thoughts(fact: Fact) -> tuple[str, str, str]:
    return (
        f"Fact: {fact.topic}.",
        f"The question is about {fact.topic}. I know this fact and say it in one sentence.",
        f"Let me think step by step. First, what is the question about? It is about {fact.topic}. "
        "Second, is it a sum, a count, a name or words to repeat? No, it is a question about the gateway or models. "
        f"Third, what do I know about {fact.topic}? I know this: {fact.answer} "
        "Fourth, is that short and to the point? Yes, it is one sentence. So I answer with this fact.",
    )


def is_held_sum(a: int, b: int) -> bool:
    """These pairs are never added in training; their digits are, in other pairs."""
    return (a * 31 + b * 17 + a * b) % 10 == 3 and (a // 10 + b // 10) % 2 == 0


def sum_turn(rng: random.Random) -> Turn:
    while True:
        a, b = rng.randrange(SUM_LIMIT), rng.randrange(SUM_LIMIT)
        if not is_held_sum(a, b):
            break
    return Turn(_question(rng, "sum", a=a, b=b), f"{a} + {b} = {a + b}", sum_thoughts(a, b))


def sum_thoughts(a: int, b: int) -> tuple[str, str, str]:
    ones, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    ones_sum = f"{a % 10} + {b % 10} = {ones}"
    tens_sum = f"{a // 10} + {b // 10}{' + 1' if carry else ''} = {a // 10 + b // 10 + carry}"
    return (
        f"{ones_sum}, {tens_sum}, so {a + b}.",
        f"The user wants the sum of {a} and {b}. Ones: {ones_sum}. Tens: {tens_sum}. Together {a + b}.",
        f"Let me think step by step. The user wants a sum. The numbers are {a} and {b}. "
        f"First the ones: {ones_sum}. I write {ones % 10} and carry {carry}. Then the tens and the carry: {tens_sum}. "
        f"The tens are {a // 10 + b // 10 + carry} and the ones are {ones % 10}, so together it is {a + b}. "
        f"I check it again by parts: {a} + {b // 10 * 10} = {a + b // 10 * 10}, "
        f"and {a + b // 10 * 10} + {b % 10} = {a + b}. Both ways agree, so I answer {a + b}.",
    )


def repeat_turn(rng: random.Random) -> Turn:
    words = random_words(rng, AGAIN_IN_TRAINING)
    return Turn(_question(rng, "repeat", words=" ".join(words)), " ".join(words), repeat_thoughts(words))


def random_words(rng: random.Random, repeats: float = AGAIN) -> list[str]:
    """One to eight words, known and made-up ones, now and then one of them again."""
    made_up = rng.choice((0.0, 0.3, 0.7, 1.0))
    known = phrasings()["words"]["known"]
    words: list[str] = []
    for _ in range(rng.randint(1, 8)):
        again = words and rng.random() < repeats
        word = made_up_word(rng) if rng.random() < made_up else rng.choice(known)
        words.append(rng.choice(words) if again else word)
    return words


def copy_turn(rng: random.Random) -> Turn:
    """A long list of words and numbers: it teaches copying itself, on which most other skills rest."""
    words = [
        str(rng.randrange(SUM_LIMIT)) if rng.random() < 0.3 else word
        for _ in range(rng.randint(1, 4))
        for word in random_words(rng, AGAIN_IN_TRAINING)
    ]
    return Turn(_question(rng, "repeat", words=" ".join(words)), " ".join(words), repeat_thoughts(words))


def repeat_thoughts(words: list[str]) -> tuple[str, str, str]:
    steps = " ".join(f"Then comes {word}." for word in words[1:])
    return (
        "Repeat the words.",
        "The user wants the same words back. I say them in the same order.",
        "Let me think step by step. The user gives me words and wants them back. I look at each of them. "
        f"The first word is {words[0]}. {steps} That was the last word. I keep the order, change no letter, "
        "add nothing and leave nothing out. So I answer with exactly these words.",
    )


def made_up_word(rng: random.Random) -> str:
    """Random syllables, such as `zorvex`, or parts of words put together, such as `guitage`; no word that measures."""
    while True:
        if rng.random() < 0.5:
            parts = [_syllable(rng) for _ in range(rng.randint(2, 3))]
        else:
            parts = rng.choices(_parts(), k=rng.choice((1, 2, 2, 3)))
        word = "".join(parts)
        if word not in _held():
            return word


def _syllable(rng: random.Random) -> str:
    return rng.choice("bdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "x", "s"))


@cache
def _parts() -> list[str]:
    """Beginnings and ends of the words of facts and lists, two to five letters each."""
    texts = [(FOLDER / name).read_text() for name in ("facts.toml", "phrasings.toml")]
    texts += [" ".join(words) for kind, words in _lists().items() if not kind.startswith("held")]
    words = set(re.findall("[a-z]{4,}", " ".join(texts).lower()))
    return sorted({part for word in words for at in range(2, 6) for part in (word[:at], word[-at:])})


@cache
def _held() -> frozenset[str]:
    return frozenset(word.lower() for kind, words in _lists().items() if kind.startswith("held") for word in words)


@cache
def _lists() -> dict[str, list[str]]:
    """The words of tools and their values."""
    return dict(tomllib.loads((FOLDER / "tools.toml").read_text())["words"])


def count_turn(rng: random.Random) -> Turn:
    first, last = _range(rng)
    if first == 1 and rng.random() < 0.5:
        ask = rng.choice(phrasings()["count"]["ask_from_one"]).format(b=last)
    else:
        ask = _question(rng, "count", a=first, b=last)
    return Turn(ask, counted(first, last), count_thoughts(first, last))


def _range(rng: random.Random) -> tuple[int, int]:
    last = 100 if rng.random() < 0.1 else rng.randint(2, 100)
    first = 1 if rng.random() < 0.4 else rng.randint(max(0, last - 40), last - 1)
    return min(first, last - 1), last


def counted(first: int, last: int) -> str:
    return ", ".join(str(number) for number in range(first, last + 1))


def count_thoughts(first: int, last: int) -> tuple[str, str, str]:
    return (
        f"Count from {first} to {last}.",
        f"The user wants me to count from {first} to {last}. I write every number once, in order.",
        f"Let me think step by step. The user wants numbers in order. The first number is {first}. "
        f"The last number is {last}. After each number I write the next one, which is larger by one. "
        f"After {first} comes {first + 1}. I put a comma between two numbers. I leave no number out, and I write none "
        f"of them twice. When I reach {last} I stop. So I count from {first} to {last}.",
    )


def random_name(rng: random.Random) -> str:
    return made_up_word(rng).capitalize() if rng.random() < 0.6 else str(rng.choice(phrasings()["words"]["names"]))


def tell_turn(rng: random.Random, name: str) -> Turn:
    return Turn(
        _question(rng, "tell", name=name),
        f"Nice to meet you, {name}.",
        (
            f"Name: {name}.",
            f"The user tells me the name {name}. I greet them by name.",
            f"Let me think step by step. The user asks nothing here. The user tells me a name. The name is {name}. "
            "I may be asked for it later, so I keep it in mind. The polite thing is to greet the user by name. "
            f"So I say that it is nice to meet {name}.",
        ),
    )


def recall_turn(rng: random.Random, name: str | None) -> Turn:
    ask = _question(rng, "recall")
    return Turn(ask, NO_NAME, no_name_thoughts()) if name is None else Turn(ask, recalled(name), recall_thoughts(name))


def recalled(name: str) -> str:
    return f"Your name is {name}."


def recall_thoughts(name: str) -> tuple[str, str, str]:
    return (
        f"The name is {name}.",
        f"The user asks for the name they told me earlier. It is {name}.",
        "Let me think step by step. The user asks for a name. I cannot know it by myself, so I look at the earlier "
        f"messages. In one of them the user told me a name. That name was {name}. Is it spelled the same? Yes, "
        f"it is {name}. No other name was given later. So I answer that the name is {name}.",
    )


def no_name_thoughts() -> tuple[str, str, str]:
    return (
        "No name yet.",
        "The user asks for their name. No message told me a name.",
        "Let me think step by step. The user asks for a name. I cannot know it by myself, so I look at the earlier "
        "messages. None of them told me a name. I must not invent one. So I say that I have not been told.",
    )


def chat_turn(rng: random.Random) -> Turn:
    chat = rng.choice(phrasings()["chat"])
    return Turn(_spoken(rng, rng.choice(chat["ask"])), chat["answer"], chat_thoughts())


def chat_thoughts() -> tuple[str, str, str]:
    return (
        "Small talk.",
        "This is small talk and no question about the gateway. I answer politely.",
        "Let me think step by step. What does the user want? There is no sum, no count and no list of words. It is not "
        "a question about the gateway either. It is small talk, so a short and polite sentence is enough.",
    )


def unknown_turn(rng: random.Random) -> Turn:
    unknown = phrasings()["unknown"]
    ask = rng.choice(unknown["ask"]) if rng.random() < 0.9 else " ".join(random_words(rng))
    for slot in ("place", "thing", "person"):
        while "{" + slot + "}" in ask:
            ask = ask.replace("{" + slot + "}", rng.choice(unknown[slot]), 1)
    return Turn(wrap(rng, ask), unknown["answer"], unknown_thoughts())


def unknown_thoughts() -> tuple[str, str, str]:
    return (
        "I do not know that.",
        "This is not about the gateway, and I do not know it. I say so.",
        "Let me think step by step. What does the user want? It is not a sum, not a count and not a list of words. "
        "Is it about the gateway? No. Do I know anything about it? No, I am very small and do not know the world. "
        "I should not invent an answer. So I say that I do not know it, and what I can do instead.",
    )


def _question(rng: random.Random, skill: str, **slots: str | int) -> str:
    """A question of `skill` that holds none of its held-out phrasings."""
    asks = phrasings()[skill]
    held = [plain(phrasing.format(**slots)) for phrasing in asks["held"]]
    while True:
        ask = rng.choice(asks["ask"]).format(**slots)
        text = ask if skill in ("repeat", "tell") else _spoken(rng, ask)
        if not any(phrasing in plain(text) for phrasing in held):
            return text


def _spoken(rng: random.Random, ask: str) -> str:
    """A little of what `wrap` does, for questions whose numbers must stay."""
    if rng.random() < 0.15:
        ask = rng.choice(phrasings()["style"]["before"]) + ask
    if rng.random() < 0.15:
        ask = ask.rstrip("?.!")
    return ask.lower() if rng.random() < 0.1 else ask
