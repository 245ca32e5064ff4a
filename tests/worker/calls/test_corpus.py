"""Every format is read the same however its text is cut, and none of its markup is ever content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openai_gateway.types import CallDelta
from openai_gateway.worker.calls.formats import BY_NAME
from openai_gateway.worker.calls.marks import Marks
from openai_gateway.worker.calls.offer import Offer, described
from openai_gateway.worker.calls.reading import CallChannels
from openai_gateway.worker.channels import Channels, PlainChannels, ThinkChannels
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.harmony import HarmonyChannels, HarmonyTokens
from openai_gateway.worker.parse import TextPath
from tests.worker.calls.corpus import (
    ANSWERS,
    FAMILIES,
    MARKED,
    NESTED,
    NOW,
    PARIS,
    TOKYO,
    TOOLS,
    Arguments,
    Called,
    Family,
)  # fmt: skip

OFFER = Offer(TOOLS, frozenset(tool.name for tool in TOOLS))
EOS = "<|eos|>"
THOUGHT = "<think>\nWhere is <tool_call>? Hm.\n</think>\n\n"


class Said(NamedTuple):
    """What a client gets of one answer."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    complete: int


class Reader:
    """A tokenizer as one family has it, and the text path of its answers."""

    def __init__(self, family: Family) -> None:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        lines = [family.write([call]) for answer in ANSWERS for call in answer]
        backend.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
        backend.add_special_tokens(
            [AddedToken(text, special=True, normalized=False) for text in (*family.special, EOS)]
        )
        self.family = family
        self.tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend))
        self.table = TokenTable(self.tokenizer)
        self.eos = int(self.tokenizer.convert_tokens_to_ids(EOS))
        self.bytes = {self.table.bytes_of(id): id for id in range(len(self.table)) if len(self.table.bytes_of(id)) == 1}

    def channels(self, offer: Offer, *, thinks: bool) -> Channels:
        written = BY_NAME[self.family.format].written
        if written is None:
            tokens = HarmonyTokens.find(self.tokenizer)
            assert tokens is not None
            return HarmonyChannels(self.table, tokens, offer=offer)
        marks = Marks(self.table, (*written.opens, *written.markup))
        stream = self.table.stream(trim_leading_space=False)
        inner: Channels = PlainChannels(stream, marks.of)
        if thinks:
            inner = ThinkChannels(stream, "<think>", "</think>", marks=marks.of)
        return CallChannels(inner, written, marks, offer)

    def said(self, tokens: Sequence[int], *, cut: bool = False, thinks: bool = False, offer: Offer = OFFER) -> Said:
        path: TextPath[Any] = TextPath(self.channels(offer, thinks=thinks), table=self.table)
        rendered = [*map(path.push, tokens), path.finish(cut=cut)]
        deltas = [delta for one in rendered for delta in one.calls]
        return Said(
            "".join(one.content for one in rendered),
            "".join(one.reasoning for one in rendered),
            calls_of(deltas),
            path.calls,
        )

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def singly(self, text: str) -> list[int]:
        """In tokens of one byte, but for the special ones."""
        ids = self.encode(text)
        return [
            part
            for id in ids
            for part in (
                [id] if self.table.is_special(id) else [self.bytes[bytes([b])] for b in self.table.bytes_of(id)]
            )
        ]

    def cuts(self, text: str) -> Iterator[list[int]]:
        """The text cut in two at each place where no special token is."""
        marks = {
            place for mark in self.family.special for at in find(text, mark) for place in range(at + 1, at + len(mark))
        }
        for place in range(len(text) + 1):
            if place not in marks:
                yield self.encode(text[:place]) + self.encode(text[place:])


def find(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + 1)


def calls_of(deltas: Sequence[CallDelta]) -> tuple[tuple[str, str], ...]:
    """Name and arguments of each call. Asserts what is promised of deltas."""
    calls: list[tuple[str, str]] = []
    ids = set()
    for delta in deltas:
        if delta.id:
            assert (delta.index, delta.arguments) == (len(calls), "")
            assert delta.id.startswith("call_")
            assert delta.id not in ids
            ids.add(delta.id)
            calls.append((delta.name, ""))
        else:
            assert delta.index == len(calls) - 1
            assert delta.arguments
            assert not delta.name
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return tuple(calls)


@cache
def reader(family: Family) -> Reader:
    return Reader(family)


def expected(calls: Sequence[tuple[str, Arguments]]) -> list[Called]:
    return [(name, arguments["input"] if name == "run_code" else arguments) for name, arguments in calls]


def parsed(said: Said) -> list[Called]:
    return [(name, arguments if name == "run_code" else json.loads(arguments)) for name, arguments in said.calls]


def cases(family: Family) -> Iterator[tuple[str, list[tuple[str, Arguments]]]]:
    for answer in ANSWERS:
        if not set(family.cannot) & {name for name, _ in answer}:
            yield family.write(answer), [*answer]


def named(family: Family) -> str:
    return family.format


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_calls_are_read_the_same_however_the_text_is_cut(family: Family) -> None:
    read = reader(family)
    for text, calls in cases(family):
        whole = read.said(read.encode(text))
        assert parsed(whole) == expected(calls), text
        assert (whole.content, whole.reasoning, whole.complete) == ("", "", len(calls))
        assert read.said(read.singly(text)) == whole


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_text_around_calls_is_content_and_thoughts_before_them_are_none(family: Family) -> None:
    read = reader(family)
    text = around(family)
    said = read.said(read.encode(text), thinks=True)
    assert parsed(said) == [TOKYO]
    assert said.reasoning == ("Where is <tool_call>? Hm." if family.format != "harmony" else "Where? Hm.")
    assert said.content.split() == ["I", "look", "it", "up.", "Soon."]
    for tokens in read.cuts(text):
        assert read.said(tokens, thinks=True) == said


def around(family: Family) -> str:
    if family.format == "harmony":
        return (
            "<|channel|>analysis<|message|>Where? Hm.<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>I look it up.\n<|end|>"
            f"<|start|>assistant{family.write([TOKYO])}<|start|>assistant<|channel|>final<|message|>Soon."
        )
    return f"{THOUGHT}I look it up.\n\n{family.write([TOKYO])}\n\nSoon."


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_call_that_is_cut_short_keeps_what_there_is_of_it(family: Family) -> None:
    read = reader(family)
    calls = family.write([MARKED, NESTED])
    tokens = read.encode(calls if family.format == "harmony" else f"Well. {calls}")
    whole = read.said(tokens)
    for length in range(len(tokens)):
        part = read.said(tokens[:length], cut=True)
        assert no_markup(part.content, family), part
        assert [name for name, _ in part.calls] == [name for name, _ in whole.calls][: len(part.calls)]
        for (_, got), (_, full) in zip(part.calls, whole.calls, strict=False):
            # So little of a closing tag may be text. What there is of a Python literal is that, and no JSON.
            assert full.startswith(re.sub(r"(\\n)?<[!\[/]*(CDATA)?$", "", got)) or family.format == "pythonic", part
        assert part.complete >= len(part.calls) - 1


def no_markup(content: str, family: Family) -> bool:
    written = BY_NAME[family.format].written
    marks = (*family.special, *(written.markup if written else ()))
    return not any(mark in content for mark in marks)


BROKEN = (
    "{",
    "not json",
    '{"name": 5}',
    "{}",
    "[]",
    '{"nam',
    "<x>",
    "call:",
    "[1,",
    "f(",
    "name",
    '{"name": "f"',
    "\n",
)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_what_breaks_off_as_a_call_is_content_without_any_markup(family: Family) -> None:
    read = reader(family)
    opening = family.write([NOW])[: family.write([NOW]).index("now")]
    ending = family.write([NOW])[family.write([NOW]).index("now") + 3 :]
    for broken in BROKEN:
        for text in (f"Well. {opening}{broken}", f"{broken}{ending} So.", f"A{opening}{broken}{ending}B"):
            said = read.said(read.encode(text))
            if opening in text:
                assert no_markup(said.content, family), said
            assert not any(mark in said.content for mark in family.special), said
            assert read.said(read.singly(text)) == said
            if not said.calls and family.format != "harmony" and broken != "[]":
                assert set(broken.split()) <= set(said.content.split()) or broken in said.content


SHIPPED = {"hermes": "json_tools", "mistral_list": "mistral"}
"""What mlx-lm calls a format."""


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_mlx_lm_reads_the_same_where_it_knows_the_format(family: Family) -> None:
    try:
        shipped = import_module(f"mlx_lm.tool_parsers.{SHIPPED.get(family.format, family.format)}")
    except ModuleNotFoundError:
        pytest.skip("mlx-lm does not know it")
    text = family.write([PARIS])
    inside = text.removeprefix(shipped.tool_call_start).removesuffix(shipped.tool_call_end)
    read = shipped.parse_tool_call(inside, [described(tool) for tool in TOOLS])
    (call,) = read if isinstance(read, list) else [read]
    assert (call["name"], call["arguments"]) == PARIS
