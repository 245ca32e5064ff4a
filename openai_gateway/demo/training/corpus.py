"""Composes conversations from a seed, and turns them into tokens with the tokens to learn marked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from openai_gateway.demo.training.facts import phrasings
from openai_gateway.demo.training.skills import (
    Turn,
    chat_turn,
    copy_turn,
    count_turn,
    fact_turn,
    random_name,
    recall_turn,
    repeat_turn,
    sum_turn,
    tell_turn,
    unknown_turn,
)
from openai_gateway.demo.training.tokenizer import token_id

# The course: much copying in the first chunks, drills in all that follow on the second number.
COPY_CHUNKS, DRILLS_FROM = 16, 48
EFFORTS = ("low", "medium", "high")
TEMPLATE = Path(__file__).parent.parent / "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the last is thought about at `effort`; `thinks` is false for effort none."""

    turns: tuple[Turn, ...]
    effort: str
    thinks: bool
    instruction: str | None

    def messages(self) -> list[dict[str, Any]]:
        """The request: all but the last answer."""
        instruction = [{"role": "system", "content": self.instruction}] if self.instruction else []
        history = [
            message
            for turn in self.turns[:-1]
            for message in ({"role": "user", "content": turn.ask}, {"role": "assistant", "content": turn.answer})
        ]
        return [*instruction, *history, {"role": "user", "content": self.turns[-1].ask}]

    def completion(self) -> str:
        """What the model shall write after `<|start|>assistant`."""
        turn = self.turns[-1]
        final = f"<|channel|>final<|message|>{turn.answer}<|return|>"
        if not self.thinks:
            return final
        thought = turn.thoughts[EFFORTS.index(self.effort)]
        return f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{final}"


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens, and which of them are to be learned."""

    ids: list[int]
    learned: list[bool]


def conversation(rng: random.Random) -> Conversation:
    effort = rng.choices(EFFORTS, (22, 50, 28))[0]
    instruction = rng.choice(phrasings()["style"]["instructions"]) if rng.random() < 0.2 else None
    return Conversation(_turns(rng), effort, rng.random() < 0.88, instruction)


def copying(rng: random.Random) -> Conversation:
    return Conversation((copy_turn(rng),), rng.choice(EFFORTS), False, None)


def drill(rng: random.Random) -> Conversation:
    """Many turns of one skill: earlier turns are cheap to learn from, as they share one system message."""
    turn = rng.choices((sum_turn, fact_turn, repeat_turn, unknown_turn, count_turn), (52, 10, 30, 4, 4))[0]
    turns = 1 if turn is count_turn else rng.randint(5, 9)
    return Conversation(tuple(turn(rng) for _ in range(turns)), rng.choice(EFFORTS), True, None)


def _turns(rng: random.Random) -> tuple[Turn, ...]:
    kinds = ("fact", "sum", "repeat", "recall", "count", "chat", "unknown")
    kind = rng.choices(kinds, (46, 16, 14, 13, 3, 3, 5))[0]
    if kind == "recall":
        return _recall_turns(rng)
    before = rng.choices((0, 1, 2, 3, 6), (42, 20, 14, 12, 12))[0]
    last = {
        "fact": fact_turn,
        "sum": sum_turn,
        "repeat": repeat_turn,
        "count": count_turn,
        "chat": chat_turn,
        "unknown": unknown_turn,
    }[kind]
    return (*(_other_turn(rng) for _ in range(before)), last(rng))


def _recall_turns(rng: random.Random) -> tuple[Turn, ...]:
    name = random_name(rng)
    before = [_other_turn(rng) for _ in range(rng.choices((0, 1), (75, 25))[0])]
    if rng.random() < 0.08:
        return (*before, recall_turn(rng, None))
    if rng.random() < 0.12:
        return (*before, tell_turn(rng, name))
    between = [_other_turn(rng) for _ in range(rng.choices((0, 1, 2), (35, 40, 25))[0])]
    return (*before, tell_turn(rng, name), *between, recall_turn(rng, name))


def _other_turn(rng: random.Random) -> Turn:
    kind = rng.choices(("fact", "sum", "repeat", "chat", "unknown"), (50, 22, 14, 7, 7))[0]
    return {
        "fact": fact_turn,
        "sum": sum_turn,
        "repeat": repeat_turn,
        "chat": chat_turn,
        "unknown": unknown_turn,
    }[kind](rng)


class Encoder:
    """Renders conversations with the chat template that serving uses, and encodes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = TEMPLATE.read_text()
        self._start, self._end, self._message = (
            token_id(tokenizer, token) for token in ("<|start|>", "<|end|>", "<|message|>")
        )
        self._assistant = tokenizer.encode("assistant").ids

    def prompt(self, conversation: Conversation) -> str:
        rendered, _ = render_jinja_template(
            [conversation.messages()],
            chat_template=self._template,
            add_generation_prompt=True,
            reasoning_effort=conversation.effort,
        )
        return str(rendered[0])

    def sample(self, conversation: Conversation) -> Sample:
        prompt = self._tokenizer.encode(self.prompt(conversation)).ids
        completion = self._tokenizer.encode(conversation.completion()).ids
        learned = self._earlier_answers(prompt) + [True] * len(completion)
        if not conversation.thinks:
            learned[len(prompt) : len(prompt) + completion.index(self._message) + 1] = [False] * (
                completion.index(self._message) + 1
            )
        return Sample(prompt + completion, learned)

    def _earlier_answers(self, ids: list[int]) -> list[bool]:
        """Marks the text of earlier final answers: they are answers without analysis."""
        learned = [False] * len(ids)
        size = len(self._assistant)
        for start, token in enumerate(ids):
            if token != self._start or ids[start + 1 : start + 1 + size] != self._assistant:
                continue
            if self._message not in ids[start:]:
                break
            at = ids.index(self._message, start) + 1
            while ids[at] != self._end:
                learned[at] = True
                at += 1
        return learned


def texts(seed: int, count: int) -> Iterator[str]:
    """Plain text of `count` conversations, for the tokenizer."""
    for index in range(count):
        composed = conversation(random.Random(f"{seed}-text-{index}"))
        for turn in composed.turns:
            yield turn.ask
            yield turn.answer
        yield composed.turns[-1].thoughts[EFFORTS.index(composed.effort)]
        yield from (f"You are the demo model of openai_gateway.\nReasoning: {composed.effort}", "system developer user")
        yield from ("Valid channels: analysis, commentary, final.", "assistant", "# Instructions", "final", "analysis")


def samples(encoder: Encoder, seed: int, chunk: int, count: int) -> list[Sample]:
    """Chunk number `chunk` of the endless corpus of `seed`."""
    rng = random.Random(f"{seed}-{chunk}")
    copies = 50 if chunk < COPY_CHUNKS else 6
    drills = 0 if chunk < DRILLS_FROM else 34
    makers = rng.choices((copying, drill, conversation), (copies, drills, 100 - copies - drills), k=count)
    return [encoder.sample(make(rng)) for make in makers]
