"""Whatever a grammar of calls lets through is read as calls, with arguments that their schemas allow."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from llguidance import LLMatcher

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar, Tool
from openai_gateway.worker.answers import harmony, plain
from openai_gateway.worker.calls.formats import BY_NAME
from openai_gateway.worker.calls.grammars import not_beginning
from openai_gateway.worker.calls.offer import Offer, schema_of
from openai_gateway.worker.grammar import Grammars
from tests.worker.calls.corpus import FAMILIES, Family, tool
from tests.worker.calls.test_corpus import Reader, named, reader

TEXT = {"type": "string"}
PLACE = {
    "type": "object", "properties": {"at": {"type": "number"}}, "required": ["at"], "additionalProperties": False,
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "city": TEXT,
        "unit": {"type": "string", "enum": ["C", "F"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"},
        "site": {"type": "string", "pattern": "^https?://"},
        "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "tags": {"type": "array", "items": TEXT, "maxItems": 2},
        "words": {"type": "array", "items": TEXT},
        "note": {"anyOf": [TEXT, {"type": "null"}]},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "short", "days", "where"],
    "$defs": {"place": PLACE},
    "additionalProperties": False,
}
PLAN = Tool(name="plan", parameters=json.dumps(SCHEMA), strict=True)
TOOLS = (PLAN, tool("now", {}))


def grammars(read: Reader) -> Grammars:
    return Grammars(read.table, [read.eos])


def walk(matcher: LLMatcher, read: Reader, seed: int) -> list[int]:
    """A random output. What ends something is likelier, so that it ends one day."""
    rng = random.Random(seed)
    closing = [read.encode(text) for text in closers(read.family)]
    ending = {
        id for id in range(len(read.table)) if read.table.bytes_of(id)[:1] in ENDINGS or read.table.is_special(id)
    }
    tokens: list[int] = []
    while len(tokens) < 3000:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = {int(id) for id in np.flatnonzero(bits[: len(read.table)])}
        assert allowed, matcher.get_error()
        if read.eos in allowed and rng.random() < 0.3:
            return tokens
        said = [text for text in closing if matcher.validate_tokens(text) == len(text)]
        likely = sorted(allowed & ending) or sorted(allowed & set(read.bytes.values())) or sorted(allowed)
        any_one = sorted(allowed & set(read.bytes.values())) or likely
        chosen = rng.choice(said) if said and rng.random() < 0.2 else [rng.choice(rng.choice((likely, any_one)))]
        if chosen == [read.eos]:
            return tokens
        assert matcher.consume_tokens(chosen), matcher.get_error()
        tokens += chosen
    raise AssertionError(read.tokenizer.decode(tokens))


ENDINGS = (b"<", b'"', b"}", b"]", b"[", b"\n")


def closers(family: Family) -> list[str]:
    """What ends a text in a format without quotes."""
    written = BY_NAME[family.format].written
    markup = written.markup if written is not None else ()
    marks = [mark for mark in markup if mark.startswith("</")]
    return [*marks, *(f"\n{mark}" for mark in marks), *(f"\n{mark}\n{behind}" for mark in marks for behind in markup)]


def output(read: Reader, offer: Offer, *, answer: Grammar | None = None) -> LLMatcher:
    compiler = grammars(read)
    lark = compiler.lark()
    row = BY_NAME[read.family.format]
    calls = row.form(lark, offer)
    return compiler.compiled(lark, (harmony if row.written is None else plain)(lark, answer, calls)).deep_copy()


def offer_of(*tools: Tool, **more: Any) -> Offer:
    return Offer(tools, frozenset(tool.name for tool in tools), **more)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_what_a_grammar_lets_through_is_read_as_valid_calls(family: Family) -> None:
    read = reader(family)
    offer = offer_of(*TOOLS, required=True)
    matcher = output(read, offer)
    for seed in range(4):
        tokens = walk(matcher.deep_copy(), read, seed)
        said = read.said(tokens, offer=offer)
        text = read.tokenizer.decode(tokens)
        assert said.calls, text
        assert said.complete == len(said.calls), text
        assert not said.content.strip(), text
        for name, arguments in said.calls:
            jsonschema.validate(json.loads(arguments), schema_of(offer.by_name[name]))


def fits(read: Reader, offer: Offer, text: str) -> bool:
    """Whether an output may begin with this text."""
    tokens = read.encode(text)
    return output(read, offer).validate_tokens(tokens) == len(tokens)


def begun(family: Family, name: str) -> str:
    """An answer up to the name in its first call."""
    return family.write([("now", {})]).partition("now")[0] + name


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_call_that_may_be_made_is_of_a_tool_that_may_be_called(family: Family) -> None:
    read = reader(family)
    some = replace(offer_of(*TOOLS), callable=frozenset(["now"]))
    prefix = "" if family.format in ("harmony", "llama3") else "Hm. "
    assert fits(read, some, prefix + begun(family, "now"))
    assert not fits(read, some, prefix + begun(family, "plan"))
    if family.format != "harmony":
        assert fits(read, some, "Hm. {[<no call"), "free text"
        assert not fits(read, replace(some, required=True), "Hm. {[<no call")
    assert fits(read, replace(some, required=True), begun(family, "now"))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.format != "harmony"], ids=named)
def test_one_call_is_all_where_there_may_be_no_more(family: Family) -> None:
    read = reader(family)
    two = read.family.write([("now", {}), ("now", {})])
    assert fits(read, offer_of(TOOLS[1]), two)
    assert not fits(read, offer_of(TOOLS[1], parallel=False), two)


def test_json_that_is_no_call_may_be_an_answer_of_llama() -> None:
    read = reader(next(family for family in FAMILIES if family.format == "llama3"))
    offer = offer_of(*TOOLS)
    assert fits(read, offer, '{"name": "Ann", "age": 5}')
    assert fits(read, offer, '{"name": "now", "parameters": {')
    assert not fits(read, offer, '{"name": "now", "age": 5}')


@pytest.mark.parametrize("format", ["gemma4", "function_gemma"])
def test_an_answer_of_gemma_that_begins_as_a_call_is_one(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    offer = offer_of(*TOOLS)
    call = read.family.write([("now", {})])
    bare = call.removeprefix(read.family.special[0])
    assert fits(read, offer, bare + call)
    for before in ("", " \n"):
        assert not fits(read, offer, f"{before}call:now{{}} ")
        assert not fits(read, offer, f"{before}call:now{{x")
        assert fits(read, offer, f"{before}call:nowhere{{x {call}")
    assert fits(read, offer, f"So call:now{{x {call}")
    assert not fits(read, replace(offer, required=True), bare)
    formed = output(read, replace(offer, formed=True), answer=Grammar(kind="regex", source="[a-z]+", param="x"))
    assert formed.validate_tokens(read.singly(bare)) == len("call")


FORMATS = [
    Grammar(kind="regex", source="[a-c]{2}[0-9]", param="tools"),
    Grammar(kind="lark", source='start: "ab" /[0-9]/ | "x"', param="tools"),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("format", ["harmony", "qwen3_coder", "gemma4", "kimi_k3"])
def test_the_text_of_a_custom_tool_is_held_to_its_format(format: str, form: Grammar) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    offer = offer_of(Tool(name="run", kind="custom", format=form), required=True)
    for seed in range(3):
        said = read.said(walk(output(read, offer), read, seed), offer=offer)
        assert {name for name, _ in said.calls} == {"run"}
        assert all(re.fullmatch("[a-c]{2}[0-9]|x", text) for _, text in said.calls), said


def test_json_cannot_hold_a_text_to_a_lark_grammar() -> None:
    read = reader(next(family for family in FAMILIES if family.format == "hermes"))
    with pytest.raises(InvalidRequest, match="custom tool 'run'") as error:
        output(read, offer_of(Tool(name="run", kind="custom", format=FORMATS[1])))
    assert error.value.param == "tools"


def test_a_text_that_begins_otherwise_is_any_that_begins_with_none_of_these() -> None:
    texts = ['{"name": "get', '{"name": "go"', '{"name": "geta']
    pattern = re.compile(f"(?:{not_beginning(texts)})?")
    for text in ("", "x", "{", '{"name": "g', '{"name": "gx', '{"a": 1}\n'):
        assert pattern.fullmatch(text), text
    for text in (*texts, texts[0] + "x"):
        assert not pattern.fullmatch(text), text


ODD: dict[str, Any] = {
    "anything": {"type": "object"},
    "any texts": {"type": "object", "additionalProperties": {"type": "string"}},
    "a reference": {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
    "either": {"anyOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "null"}}}]},
    "a text that is none": {"type": "object", "properties": {"a": {"type": "string", "enum": ["x", 5, None]}}},
    "a pattern that looks ahead": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x).*$"}}},
    "an anchor in a group": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(x$|y$)"}}},
}


@pytest.mark.parametrize("family", FAMILIES, ids=named)
@pytest.mark.parametrize("name", ODD)
def test_a_tool_of_any_schema_can_be_offered(family: Family, name: str) -> None:
    offer = offer_of(Tool(name="f", parameters=json.dumps(ODD[name])), required=True)
    assert fits(reader(family), offer, begun(family, "f"))


def test_a_pattern_that_cannot_be_held_to_is_refused_by_name_where_it_must_be() -> None:
    tool = Tool(name="f", parameters=json.dumps(ODD["a pattern that looks ahead"]), strict=True)
    for family in FAMILIES:
        if family.format != "llama3":
            with pytest.raises(InvalidRequest, match=r"for function .f.: .*look-around"):
                output(reader(family), offer_of(tool))


TAGGED = (
    "qwen3_coder", "glm47", "longcat", "minimax_m2", "muse_spark", "minicpm5", "deepseek_v32", "kimi_k3", "gemma4",
)  # fmt: skip
"""Formats that write texts without quotes of their own."""
MATCHING = {
    r"^https?://": "https://a.b/c", r"^[^,]+$": "a b", r"^\S": "x y", "foo": "a foo b", r"^[^@]+@[^@]+$": "a@b.c",
    r"^\S+$": "abc", "^.+$": "a b", r"^\s*$": " ", "^[a-z]*$": "",
}  # fmt: skip
EXPRESSIONS = {"[^;]+;?": "a b", "(?s:.*)": "a b;", ".*": "", "a|b": "b"}


@pytest.mark.parametrize("format", TAGGED)
def test_a_text_ends_with_its_tag_where_its_pattern_would_match_that_too(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    patterns = tool("f", {f"p{n}": {"type": "string", "pattern": pattern} for n, pattern in enumerate(MATCHING)})
    forms = [Grammar(kind="regex", source=source, param="tools") for source in EXPRESSIONS]
    customs = [Tool(name=f"c{n}", kind="custom", format=form) for n, form in enumerate(forms)]
    calls: list[tuple[str, dict[str, Any]]] = [("f", {f"p{n}": text for n, text in enumerate(MATCHING.values())})]
    calls += [(f"c{n}", {"input": text}) for n, text in enumerate(EXPRESSIONS.values())]
    compiled = output(read, offer_of(patterns, *customs, required=True))
    for call in calls:
        matcher, text = compiled.deep_copy(), read.family.write([call]).replace("'", '"')
        assert matcher.consume_tokens(read.encode(text)), text
        assert matcher.is_accepting(), text


ANCHORED = {
    "^a|b$": ("ax", "xb", "xa", "bx"),
    "a|^b": ("xa", "bx", "xb"),
    r"^[A-Z]{3}|\d{3}$": ("ABCx", "x123", "xABC", "123x"),
    r"^.+\\$": ("x\\", "x\\y", "\\"),
    r"x\$": ("ax$b", "x"),
    "^$|^x": ("", "xy", "y"),
    "^[$|(]b|c$": ("|b", "xc", "b", "cx"),
    "[^]|]b|^c$": ("xab", "|b", "c", "cx"),
    "(?i)^a|b$": ("Ax", "xB", "xA"),
}


@pytest.mark.parametrize("format", ["qwen3_coder", "gemma4"])
@pytest.mark.parametrize("pattern", ANCHORED)
def test_a_pattern_may_match_anywhere_but_where_it_is_anchored(format: str, pattern: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    offer = offer_of(tool("f", {"a": {"type": "string", "pattern": pattern}}), required=True)
    for text in ANCHORED[pattern]:
        assert fits(read, offer, read.family.write([("f", {"a": text})])) is bool(re.search(pattern, text)), text


@pytest.mark.parametrize("format", TAGGED)
def test_a_text_that_can_have_no_length_is_refused_by_name(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    offer = offer_of(tool("f", {"a": {"type": "string", "minLength": 5, "maxLength": 3}}))
    with pytest.raises(InvalidRequest, match=r"function 'f': no text has a minLength of 5 and a maxLength of 3"):
        output(read, offer)


NAMES = ("a", "a:b", "a=b", "a,b", "a}b", "my key", "user's", 'a"b', "$filter", "filter[status]", "Content-Type")


@pytest.mark.parametrize("format", ["pythonic", "gemma4", "function_gemma"])
def test_a_parameter_of_any_name_is_read_as_it_is_written(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    arguments = {name: n for n, name in enumerate(NAMES)}
    offer = offer_of(tool("f", {name: {"type": "integer"} for name in NAMES}))
    text = read.family.write([("f", arguments)])
    assert fits(read, offer, text)
    for tokens in (read.encode(text), read.singly(text)):
        said = read.said(tokens, offer=offer)
        assert said.complete == 1
        assert json.loads(said.calls[0][1]) == arguments


def test_large_definitions_are_repeated_only_where_something_refers_to_them() -> None:
    plain = {f"p{n}": {"type": "integer"} for n in range(40)}
    schema = {
        "type": "object",
        "properties": plain | {"place": {"type": "array", "items": {"$ref": "#/$defs/place"}}},
        "$defs": {"place": PLACE | {"description": "x" * 40_000}},
    }
    family = next(family for family in FAMILIES if family.format == "qwen3_coder")
    offer = offer_of(Tool(name="f", parameters=json.dumps(schema)), required=True)
    assert fits(reader(family), offer, begun(family, "f"))


SEPARATE = ("qwen3_coder", "glm47", "minimax_m2", "deepseek_v32", "kimi_k3", "gemma4", "pythonic")
"""Formats that write arguments one by one."""
INTEGER = {"type": "integer", "minimum": 5, "maximum": 9}
KIDS = {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}
REFERRING: list[dict[str, Any]] = [
    {"properties": {"a": INTEGER, "b": {"items": {"$ref": "#/properties/a"}, "minItems": 1, "maxItems": 2}}},
    {"properties": {"a": {"$ref": "#/properties/b"}, "b": INTEGER}},
    {"properties": {"a": INTEGER, "b": KIDS}},
    {
        "$ref": "#/$defs/Node",
        "$defs": {"Node": {"properties": {"a": INTEGER, "b": KIDS | {"items": {"$ref": "#/$defs/Node"}}}}},
    },
    {"properties": {"a": INTEGER, "b": {"$ref": "#/$defs/A%5BB%5D"}}, "$defs": {"A[B]": INTEGER}},
]


@pytest.mark.parametrize("format", SEPARATE)
def test_what_a_strict_schema_says_of_all_parameters_together_is_refused_where_they_are_apart(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    tool = Tool(name="f", parameters=json.dumps({"type": "object"} | ODD["either"]), strict=True)
    with pytest.raises(InvalidRequest, match=r"function 'f': .* one by one, .* anyOf at the root"):
        output(read, offer_of(tool))
    assert output(read, offer_of(msgspec.structs.replace(tool, strict=False)))


@pytest.mark.parametrize("format", SEPARATE)
@pytest.mark.parametrize("schema", REFERRING)
def test_a_parameter_is_held_to_what_its_schema_refers_to_in_the_whole(format: str, schema: dict[str, Any]) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))
    inner = schema.get("$defs", {}).get("Node", schema)
    inner |= {"type": "object", "required": ["a", "b"], "additionalProperties": False}
    offer = offer_of(Tool(name="f", parameters=json.dumps(schema)), required=True, parallel=False)
    said = read.said(walk(output(read, offer), read, 1), offer=offer)
    jsonschema.validate(json.loads(said.calls[0][1]), schema)


@pytest.mark.parametrize("format", SEPARATE)
def test_parameters_of_any_name_may_be_given_where_a_schema_names_none(format: str) -> None:
    read = reader(next(family for family in FAMILIES if family.format == format))

    def given(values: Any, arguments: dict[str, Any]) -> Any:
        """The arguments of a call that the schema lets through."""
        schema = {"type": "object", "additionalProperties": values}
        offer = offer_of(Tool(name="f", parameters=json.dumps(schema)), required=True)
        text = read.family.write([("f", arguments)])
        assert fits(read, offer, text)
        return json.loads(read.said(read.encode(text), offer=offer).calls[0][1])

    for arguments in ({}, {"a": 5}, {"a": 5, "x_1": 2.5, "Content-Type": 1}):
        assert given({"type": "number"}, arguments) == arguments
    if format != "pythonic":  # whose texts the corpus quotes as JSON does not
        assert given(TEXT, {"a": "5"}) == {"a": "5"}
    with pytest.raises(AssertionError):
        given(False, {"a": 5})
