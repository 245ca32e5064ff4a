"""A text between tags may hold the tag that closes it: where it ends is told by what stands behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from openai_gateway.types import Tool
from openai_gateway.worker.calls.formats import GLM47, LONGCAT, MINICPM5, MINIMAX_M2, MUSE_SPARK, QWEN3_CODER
from openai_gateway.worker.calls.offer import Offer
from tests.worker.calls.corpus import FAMILIES, PARIS, TEXT, tool
from tests.worker.calls.test_corpus import Reader, reader
from tests.worker.calls.test_grammars import fits, offer_of

TAGS = {
    "qwen3_coder": QWEN3_CODER.parameter,
    "minimax_m2": MINIMAX_M2.parameter,
    "muse_spark": MUSE_SPARK.parameter,
    "minicpm5": MINICPM5.parameter,
    "glm47": (GLM47.key[0], GLM47.value[1]),
    "longcat": (LONGCAT.key[0], LONGCAT.value[1]),
}
"""What opens a parameter and closes its value, in formats where that is no special token."""
formats = pytest.mark.parametrize("format", TAGS)

NULLABLE = {"anyOf": [TEXT, {"type": "null"}]}
PROPERTIES = {"old": TEXT, "new": {"type": "string", "minLength": 1, "maxLength": 99}, "count": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": PROPERTIES | {"note": NULLABLE, "last": TEXT}, "required": ["old", "count"]}
EDIT = offer_of(Tool(name="edit", parameters=json.dumps(SCHEMA)))
ANY = offer_of(Tool(name="edit", parameters=json.dumps({"type": "object", "additionalProperties": TEXT})))


def read_of(format: str) -> Reader:
    return reader(next(family for family in FAMILIES if family.format == format))


def held(format: str) -> str:
    """A text with closing tags in it."""
    close = TAGS[format][1]
    return f"<a>{close}\n\n{close} b{close}{close}]]><b>\n</c>"


def written(read: Reader, *arguments: Mapping[str, Any]) -> str:
    """Calls with quotes as in grammars."""
    return read.family.write([("edit", given) for given in arguments]).replace("'", '"')


def given(read: Reader, offer: Offer, arguments: Mapping[str, Any]) -> Any:
    """The arguments of a call that the grammar lets through, as they are read."""
    text = written(read, arguments, arguments)
    assert fits(read, offer, text)
    said = read.said(read.encode(text), offer=offer)
    assert (said.content, said.complete) == ("", 2), said
    assert read.said(read.singly(text), offer=offer) == said
    return json.loads(said.calls[0][1])


@formats
def test_a_text_may_hold_the_tag_that_closes_it(format: str) -> None:
    read, text = read_of(format), held(format)
    for arguments in (
        {"old": text, "count": 1},
        {"old": "", "new": text, "count": 1, "last": text},
        {"old": text, "new": text, "count": 1, "note": text},
    ):
        assert given(read, EDIT, arguments) == arguments
    assert given(read, ANY, {"a": text, "b": "", "c": text}) == {"a": text, "b": "", "c": text}


def test_a_text_may_hold_it_where_calls_stand_between_special_tokens() -> None:
    read = reader(replace(read_of("qwen3_coder").family, special=("<tool_call>", "</tool_call>")))
    arguments = {"old": held("qwen3_coder"), "count": 1, "last": held("qwen3_coder")}
    assert given(read, EDIT, arguments) == arguments


def begun(format: str, value: str) -> str:
    """A call of `edit` up to and with a text and the tag that closes it."""
    return written(read_of(format), {"last": "@"}).partition("@")[0] + value + TAGS[format][1]


NAMES = ("my key", "my", "user's", 'a"b', "a>b", "a&amp;b", "a=b c")


@pytest.mark.parametrize("format", [*TAGS, "deepseek_v32"])
def test_a_parameter_may_have_any_name(format: str) -> None:
    read = read_of(format)
    offer = offer_of(tool("edit", dict.fromkeys(NAMES, TEXT)))
    text = written(read, {f"k{n}": "v" for n in range(len(NAMES))})
    for n, name in enumerate(NAMES):
        text = text.replace(f"k{n}", name)
    assert fits(read, offer, text)
    for tokens in (read.encode(text), read.singly(text)):
        assert json.loads(read.said(tokens, offer=offer).calls[0][1]) == dict.fromkeys(NAMES, "v")


@pytest.mark.parametrize(("format", "said"), [("deepseek_v32", 'string="false"'), ("kimi_k3", 'type="any"')])
def test_a_text_that_may_be_null_stays_a_text(format: str, said: str) -> None:
    read = read_of(format)
    offer = offer_of(tool("edit", {"x": NULLABLE}))
    for value, meant in (("2024", "2024"), ("null", None)):
        text = read.family.write([("edit", {"x": value})])
        text = text.replace('string="true"', said).replace('type="string"', said)
        assert fits(read, offer, text)
        assert json.loads(read.said(read.encode(text), offer=offer).calls[0][1]) == {"x": meant}


@formats
def test_a_grammar_ends_a_text_where_it_is_read_as_ended(format: str) -> None:
    read = read_of(format)
    opens = TAGS[format][0]
    behind = written(read, {"last": "@"}).partition("@")[2].removeprefix("\n").removeprefix(TAGS[format][1])
    last = offer_of(Tool(name="edit", parameters=json.dumps(SCHEMA | {"required": []})))
    more = offer_of(
        Tool(name="edit", parameters=json.dumps({"properties": {"last": TEXT, "z": TEXT}, "required": ["z"]}))
    )
    assert fits(read, last, begun(format, "x") + behind)
    assert not fits(read, last, f"{begun(format, 'x')}\n{opens}")
    assert fits(read, more, f"{begun(format, 'x')}\n{opens}")
    assert not fits(read, more, begun(format, "x") + behind)
    for offer in (last, more):
        assert fits(read, offer, f"{begun(format, 'x')}.{behind}\n{opens}")


@formats
def test_a_text_with_closing_tags_is_read_the_same_however_it_is_cut(format: str) -> None:
    read = read_of(format)
    text = written(read, {"old": f"a{TAGS[format][1]}\n<b", "last": TAGS[format][1]})
    said = read.said(read.encode(text), offer=EDIT)
    assert said.complete == 1
    assert all(read.said(tokens, offer=EDIT) == said for tokens in read.cuts(text))


@formats
def test_a_text_streams_over_a_tag_that_does_not_close_it(format: str) -> None:
    read = read_of(format)
    said = read.said(read.encode(begun(format, "x") + "y"), cut=True, offer=EDIT)
    assert said.calls[0][1].endswith(f"x{TAGS[format][1]}y")


@formats
@pytest.mark.parametrize("behind", ["", "\n", "\n<"])
def test_a_tag_with_nothing_behind_closes_a_text(format: str, behind: str) -> None:
    read = read_of(format)
    for cut in (False, True):
        said = read.said(read.encode(begun(format, "x") + behind), cut=cut, offer=EDIT)
        assert said.calls[0][1] == ('{"last": "x"' if cut else '{"last": "x"}')


@formats
@pytest.mark.parametrize("key", ["last", "note"])
def test_a_call_with_something_else_behind_a_text_is_not_whole(format: str, key: str) -> None:
    read = read_of(format)
    text = read.family.write([("edit", {key: "x"})]).replace(TAGS[format][1], f"{TAGS[format][1]} or so")
    said = read.said(read.encode(text), offer=EDIT)
    assert [name for name, _ in said.calls] == ["edit"]
    assert said.complete == 0
    assert read.said(read.singly(text), offer=EDIT) == said


@formats
def test_a_call_that_was_left_open_is_no_part_of_the_next(format: str) -> None:
    read = read_of(format)
    text = f"{begun(format, 'x')}\n{read.family.write([PARIS])}"
    said = read.said(read.encode(text))
    assert said.calls[0] == ("edit", '{"last": "x"')
    assert (said.calls[1][0], json.loads(said.calls[1][1])) == PARIS
