"""Composes conversations from a seed, and turns them into tokens with the tokens to learn marked."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from openai_gateway.demo.training.calls import CallTurn, adds, call_turn, offers, unserved_turn
from openai_gateway.demo.training.facts import phrasings
from openai_gateway.demo.training.functions import Function, Offer
from openai_gateway.demo.training.objects import ObjectTurn, object_turn, response_format
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
COPY_CHUNKS, DRILLS_FROM = 12, 30
EFFORTS = ("low", "medium", "high")
TEMPLATE = Path(__file__).parent.parent / "chat_template.jinja"
AnyTurn = Turn | CallTurn | ObjectTurn
Piece = tuple[str, bool]
"""A part of what the model writes, and whether it is to be learned. Pieces end where tokens always do."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the last is thought about at `effort`; `thinks` is false for effort none.

    With `calling`, the last turn ends at its call; `remembers` keeps the analysis of a call that is made already.
    `chooses` learns the channel where nothing is thought: at effort none a model with tools may answer or call.
    """

    turns: tuple[AnyTurn, ...]
    effort: str
    thinks: bool
    instruction: str | None = None
    tools: tuple[Function, ...] = ()
    calling: bool = False
    remembers: bool = False
    chooses: bool = False

    def messages(self) -> list[dict[str, Any]]:
        """The request: all but the last answer or call."""
        messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for turn in self.turns[:-1]:
            messages += [*_asked(turn), *_called(turn, None), {"role": "assistant", "content": turn.answer}]
        last = self.turns[-1]
        called = [] if self.calling else _called(last, self._effort if self.remembers else None)
        return [*messages, *_asked(last), *called]

    @property
    def _effort(self) -> int:
        return EFFORTS.index(self.effort)

    def completion(self) -> list[Piece]:
        """What the model shall write after `<|start|>assistant`. Without thinking its header is given."""
        turn = self.turns[-1]
        if self.calling and isinstance(turn, CallTurn):
            thought = turn.call.thoughts[self._effort]
            header: str = "<|channel|>commentary to=functions."
            body = [(f"{turn.call.name} <|constrain|>json<|message|>{turn.call.written()}<|call|>", True)]
        else:
            thought, header = turn.thoughts[self._effort], "<|channel|>final<|message|>"
            body = [*(turn.pieces() if isinstance(turn, ObjectTurn) else [(turn.answer, True)]), ("<|return|>", True)]
        if not self.thinks:
            return [(header, self.chooses), *body]
        return [(f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{header}", True), *body]


def _asked(turn: AnyTurn) -> list[dict[str, Any]]:
    return [{"role": "user", "content": turn.ask}]


def _called(turn: AnyTurn, effort: int | None) -> list[dict[str, Any]]:
    """The call and what came back, where there was one."""
    if not isinstance(turn, CallTurn):
        return []
    function = {"name": turn.call.name, "arguments": turn.call.arguments}
    thinking = {} if effort is None else {"thinking": turn.call.thoughts[effort]}
    called = {"role": "assistant", "tool_calls": [{"type": "function", "id": "1", "function": function}], **thinking}
    return [called, {"role": "tool", "tool_call_id": "1", "content": turn.call.result}]


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens, and which of them are to be learned."""

    ids: list[int]
    learned: list[bool]


def conversation(rng: random.Random) -> Conversation:
    return Conversation(_turns(rng), _effort(rng), rng.random() < 0.88, _instruction(rng))


def _effort(rng: random.Random) -> str:
    return rng.choices(EFFORTS, (22, 50, 28))[0]


def _instruction(rng: random.Random) -> str | None:
    return rng.choice(phrasings()["style"]["instructions"]) if rng.random() < 0.2 else None


def copying(rng: random.Random) -> Conversation:
    return Conversation((copy_turn(rng),), rng.choice(EFFORTS), False)


def drill(rng: random.Random) -> Conversation:
    """Many turns of one skill: earlier turns are cheap to learn from, as they share one system message."""
    turn = rng.choices((sum_turn, fact_turn, repeat_turn, _unanswerable_turn, count_turn), (52, 10, 30, 4, 4))[0]
    turns = 1 if turn is count_turn else rng.randint(5, 9)
    return Conversation(tuple(turn(rng) for _ in range(turns)), rng.choice(EFFORTS), True)


def tool_conversation(rng: random.Random) -> Conversation:
    """Some turns with one set of tools; the last ends at a call, at the answer to its result, or needs no tool."""
    offered = offers(rng)
    tools = [one.function for one in offered]
    kind = rng.choices(("call", "answer", "unserved", "other"), (46, 16, 20, 18))[0]
    before = [
        _call_turn(rng, offered) if rng.random() < 0.85 else _untooled_turn(rng, tools)
        for _ in range(rng.choices((0, 1, 2, 3, 4, 5), (30, 6, 12, 18, 18, 16))[0])
    ]
    endings: dict[str, Callable[[], AnyTurn]] = {
        "call": lambda: _call_turn(rng, offered),
        "answer": lambda: _call_turn(rng, offered),
        "unserved": lambda: unserved_turn(rng, tools),
        "other": lambda: _untooled_turn(rng, tools),
    }
    last = endings[kind]()
    thinks = rng.random() < 0.75
    return Conversation(
        (*before, last),
        _effort(rng),
        thinks,
        _instruction(rng),
        tuple(tools),
        calling=kind == "call",
        remembers=rng.random() < 0.6,
        # Seldom, or it would leave out the thinking at random.
        chooses=rng.random() < 0.2,
    )


def _call_turn(rng: random.Random, offered: list[Offer]) -> CallTurn:
    return call_turn(rng, rng.choice(offered).need(rng))


def _untooled_turn(rng: random.Random, tools: list[Function]) -> Turn:
    sums = 0 if any(map(adds, tools)) else 30
    return rng.choices((fact_turn, sum_turn, repeat_turn, chat_turn), (40, sums, 20, 20))[0](rng)


def object_conversation(rng: random.Random) -> Conversation:
    """JSON objects; the last may have its schema in the system message, and needs no word of JSON then."""
    turns = [object_turn(rng) for _ in range(rng.choices((1, 2, 3, 4, 5), (30, 10, 18, 22, 20))[0])]
    *before, last = turns
    shown = rng.random() < 0.25
    last = replace(last, known=last.known or shown)
    instruction = response_format(last) if shown else _instruction(rng)
    thinks = last.known and rng.random() < 0.75
    return Conversation((*(turn for turn in before if turn.known), last), _effort(rng), thinks, instruction)


def _turns(rng: random.Random) -> tuple[Turn, ...]:
    kinds = ("fact", "sum", "repeat", "recall", "count", "chat", "unknown")
    kind = rng.choices(kinds, (41, 15, 17, 12, 5, 3, 7))[0]
    if kind == "recall":
        return _recall_turns(rng)
    before = rng.choices((0, 1, 2, 3, 6), (42, 20, 14, 12, 12))[0]
    last = {
        "fact": fact_turn,
        "sum": sum_turn,
        "repeat": repeat_turn,
        "count": count_turn,
        "chat": chat_turn,
        "unknown": _unanswerable_turn,
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
        "unknown": _unanswerable_turn,
    }[kind](rng)


def _unanswerable_turn(rng: random.Random) -> Turn:
    """A question that it does not know the answer to, or something that only a function could do, and there is none."""
    return unserved_turn(rng, []) if rng.random() < 0.4 else unknown_turn(rng)


def prompt(template: str, conversation: Conversation) -> str:
    rendered, _ = render_jinja_template(
        [conversation.messages()],
        tools=[function.tool() for function in conversation.tools] or None,
        chat_template=template,
        add_generation_prompt=True,
        reasoning_effort=conversation.effort,
    )
    return str(rendered[0])


class Encoder:
    """Renders conversations with the chat template that serving uses, and encodes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = TEMPLATE.read_text()
        self._start, self._message, *ends = (
            token_id(tokenizer, token) for token in ("<|start|>", "<|message|>", "<|end|>", "<|call|>")
        )
        self._ends = frozenset(ends)
        self._assistant, self._calls = (tokenizer.encode(text).ids for text in ("assistant", "."))

    def sample(self, conversation: Conversation) -> Sample:
        ids = self._tokenizer.encode(prompt(self._template, conversation)).ids
        learned = self._earlier_answers(ids)
        for text, is_learned in conversation.completion():
            piece = self._tokenizer.encode(text).ids
            ids += piece
            learned += [is_learned] * len(piece)
        return Sample(ids, learned)

    def text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _earlier_answers(self, ids: list[int]) -> list[bool]:
        """Marks what the assistant wrote earlier: texts without analysis, and the names and arguments of calls."""
        learned = [False] * len(ids)
        size, writes = len(self._assistant), False
        for place, token in enumerate(ids):
            if token == self._start:
                spoke, writes = ids[place + 1 : place + 1 + size] == self._assistant, False
            elif token in self._ends:
                writes = False
            elif writes:
                learned[place] = True
            elif token == self._message or token == self._calls[0]:
                writes = spoke
        return learned


def texts(seed: int, count: int) -> Iterator[str]:
    """Plain text of `count` conversations, for the tokenizer."""
    template = TEMPLATE.read_text()
    for index in range(count):
        rng = random.Random(f"{seed}-text-{index}")
        composed = rng.choice((conversation, tool_conversation, object_conversation))(rng)
        written = "".join(piece for piece, _ in composed.completion())
        yield from re.split(r"<\|\w+\|>", prompt(template, composed) + written)


def samples(encoder: Encoder, seed: int, chunk: int, count: int) -> list[Sample]:
    """Chunk number `chunk` of the endless corpus of `seed`."""
    rng = random.Random(f"{seed}-{chunk}")
    if chunk < COPY_CHUNKS:
        shares = (50, 0, 30, 12, 8)
    elif chunk < DRILLS_FROM:
        shares = (6, 0, 54, 26, 14)
    else:
        shares = (3, 22, 31, 30, 14)
    makers = rng.choices((copying, drill, conversation, tool_conversation, object_conversation), shares, k=count)
    return [encoder.sample(make(rng)) for make in makers]
