"""Grammars of requests, compiled: what is refused, what it costs, and that nothing holds anybody up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar
from openai_gateway.worker.grammar import CACHED, Grammars
from openai_gateway.worker.guide import Form
from openai_gateway.worker.lark import Part
from openai_gateway.worker.load import Loaded
from tests.worker.following import followed


def of(loaded: Loaded, kind: Any, source: Any, name: str = "") -> Form:
    assert loaded.prompts.forms is not None
    text = source if isinstance(source, str) else json.dumps(source)
    made = loaded.prompts.forms.of(chat=False, answer=Grammar(kind=kind, source=text, name=name, param=f"the_{kind}"))
    assert made is not None
    return made


def refusal(loaded: Loaded, kind: Any, source: Any, name: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        of(loaded, kind, source, name)
    return refused.value


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strng"}, "Invalid type: strng"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema: minimum (5) is greater"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "required property 'a' is unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#"}, "no text fits"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text fits"),
        ({"$ref": "file:///etc/passwd"}, "/etc/passwd"),
        ({"$ref": "http://169.254.169.254/latest"}, "169.254.169.254"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"enum": []}, "Unsatisfiable"),
        ({"const": "\ud800"}, "hex escape"),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_to_is_refused_by_name_and_with_the_reason(
    llama: Loaded, schema: Any, reason: str
) -> None:
    error = refusal(llama, "json", schema, name="person")
    assert error.message.startswith("Invalid schema for the_json 'person': ")
    assert reason in error.message
    assert len(error.message) < 500 and "\n" not in error.message
    assert (error.param, error.code, error.status) == ("the_json", "invalid_value", 400)


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "(", "Invalid regular expression for the_regex: "),
        ("regex", "", "Invalid regular expression for the_regex: "),
        ("lark", "nonsense", "Invalid grammar for the_lark: "),
        ("lark", 'start: @output "x"', "Invalid grammar for the_lark: "),
        ("lark", "start: nothing", "Invalid grammar for the_lark: "),
        ("choice", "{}", "Invalid choice for the_choice: "),
    ],
)
def test_other_grammars_are_refused_under_their_own_parameter(
    llama: Loaded, kind: str, source: str, message: str
) -> None:
    error = refusal(llama, kind, source)
    assert error.message.startswith(message)
    assert error.param == f"the_{kind}"


def test_of_several_parts_the_one_at_fault_is_named(llama: Loaded) -> None:
    assert llama.prompts.forms is not None
    compiler = llama.prompts.forms.grammars
    lark = compiler.lark()
    good = lark.json('{"type": "object"}', "function 'good'", "tools")
    bad = lark.json('{"type": "integer", "minimum": 2, "maximum": 1}', "function 'bad'", "tools")
    with pytest.raises(InvalidRequest, match="Invalid schema for function 'bad': Unsatisfiable schema"):
        compiler.compiled(lark, f"{good} {bad}")


def test_keywords_that_cannot_be_kept_to_are_left_out_where_that_is_wanted(llama: Loaded) -> None:
    assert llama.prompts.forms is not None
    compiler = llama.prompts.forms.grammars
    lark = compiler.lark()
    source = '{"type": "array", "uniqueItems": true, "items": {"enum": [1, 2]}, "maxItems": 2}'
    made = compiler.compiled(lark, lark.json(source, "function 'set'", "tools", lenient=True))
    form = Form(llama.prompts.table, made, ends=compiler.eos)
    assert followed(llama, form, "[1, 1]") is True
    assert followed(llama, form, "[1, 3]") is False


@pytest.mark.parametrize("time", ["", "T10:00:00Z"])
def test_a_date_is_in_the_calendar(llama: Loaded, time: str) -> None:
    form = of(llama, "json", {"type": "string", "format": "date-time" if time else "date"})
    for date in ("2024-02-29", "2000-02-29", "0001-01-01", "2023-02-28", "2023-12-31", "9999-10-09"):
        assert followed(llama, form, f'"{date}{time}"') is True, date
    for date in ("2023-02-29", "1900-02-29", "0000-11-22", "2023-04-31", "2023-13-01"):
        assert followed(llama, form, f'"{date}{time}"') is False, date


@pytest.mark.parametrize("date", ["", "2024-02-29T"])
def test_the_seconds_of_a_time_come_to_an_end(llama: Loaded, date: str) -> None:
    form = of(llama, "json", {"type": "string", "format": "date-time" if date else "time"})
    for time in ("10:00:00Z", "10:00:00+02:00", "10:00:00.5Z", "23:59:60.123456789-22:22"):
        assert followed(llama, form, f'"{date}{time}"') is True, time
    for time in ("10:00:00.1234567890Z", "10:00:00.Z", "10:00:00.1"):
        assert followed(llama, form, f'"{date}{time}"') is False, time


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = wrap(schema)
    return schema


def either(options: int, places: int) -> Any:
    return {
        "allOf": [
            {"anyOf": [{"properties": {f"a{n}": {"const": m}}, "required": [f"a{n}"]} for m in range(options)]}
            for n in range(places)
        ]
    }


HOSTILE: dict[str, tuple[str, Any]] = {
    "10,000 levels": ("json", "[" * 10_000),
    "62 levels": ("json", nested(62, lambda inner: {"items": inner})),
    "2^15 branches": ("json", nested(12, lambda inner: {"anyOf": [inner, inner]})),
    "2^60 branches by reference": (
        "json",
        {
            "$defs": {"s0": {"type": "integer"}}
            | {f"s{n}": {"anyOf": [{"$ref": f"#/$defs/s{n - 1}"}, {"items": {"$ref": f"#/$defs/s{n - 1}"}}]}
               for n in range(1, 60)},
            "$ref": "#/$defs/s59",
        },
    ),
    "4^6 intersections": ("json", either(4, 6)),
    "4^12 intersections": ("json", either(4, 12)),
    "10^9 items": ("json", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "1000^6 items": ("json", nested(6, lambda inner: {"items": inner, "minItems": 1000, "maxItems": 1000})),
    "10^9 characters": ("json", {"type": "string", "minLength": 10**9}),
    "10^6 properties": ("json", {"type": "object", "minProperties": 10**6}),
    "3000 properties": ("json", {"properties": {f"p{n}": {"type": "integer"} for n in range(3000)}}),
    "5000 values": ("json", {"enum": [f"value {n}" for n in range(5000)]}),
    "a long value": ("json", {"enum": ["x" * 100_000]}),
    "a long multiple": ("json", {"type": "integer", "multipleOf": 99_999}),
    "common multiples": ("json", {"allOf": [{"type": "integer", "multipleOf": n} for n in (997, 991, 983)]}),
    "repeated repetition": ("json", {"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"}),
    "a forced text of 10^7": ("regex", "x{10000000}"),
    "a forced text of 10^9": ("regex", "((x{999}){999}){999}"),
    "2^200 states": ("regex", ".*a.{200}"),
    "a word in 12 places": (
        "lark", "start: T\nT: " + " & ".join(f"/(.*{c}.{{{n}}})*.*/" for n, c in enumerate("abcdefghijkl"))
    ),
    "ambiguity": ("lark", "start: e\ne: e e | e e e | /[a-z]/ | "),
    "right recursion": ("lark", 'start: "a" start | "b" start | "a"'),
    "1500 times nothing": ("lark", "start: " + '"a"? ' * 1500),
    "recursion in another's grammar": ("lark", 'start: "a" @output'),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_served_in_bounded_time(llama: Loaded, name: str) -> None:
    kind, source = HOSTILE[name]
    try:
        guide = of(llama, kind, source).guide(llama.prompts.tokenizer.eos_token_ids)
        draw = np.random.default_rng(0)
        for _ in range(50):
            allowed = guide.allowed(llama.prompts.vocab_size)
            if allowed is None:
                break
            guide.tell(int(draw.choice(np.flatnonzero(allowed))))
    except InvalidRequest as error:
        assert len(error.message) < 500 and "backtrace" not in error.message


def test_what_is_asked_again_is_compiled_once_and_the_cache_stays_small(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Grammars(llama.prompts.table, llama.prompts.tokenizer.eos_token_ids)
    begun: list[str] = []
    begin = compiler._begun

    def counted(parts: list[Part], source: str) -> LLMatcher:
        begun.append(source)
        return begin(parts, source)

    monkeypatch.setattr(compiler, "_begun", counted)

    def compile(text: str) -> None:
        lark = compiler.lark()
        compiler.compiled(lark, lark.text(text))

    compile("a")
    compile("a")
    assert len(begun) == 1
    for number in range(CACHED + 10):
        compile(f"b{number}")
    assert len(compiler._cache) <= CACHED
    begun.clear()
    compile("a")
    assert len(begun) == 1


def test_what_takes_too_long_is_given_up(llama: Loaded) -> None:
    compiler = Grammars(llama.prompts.table, llama.prompts.tokenizer.eos_token_ids, patience=0.0)
    lark = compiler.lark()
    schema = lark.json(json.dumps(HOSTILE["3000 properties"][1]), "function 'f'", "tools")
    with pytest.raises(
        InvalidRequest, match="Invalid schema for function 'f': it takes too long to compile"
    ) as refused:
        compiler.compiled(lark, schema)
    assert refused.value.param == "tools"


def test_grammars_that_are_too_large_together_are_refused(llama: Loaded) -> None:
    compiler = Grammars(llama.prompts.table, llama.prompts.tokenizer.eos_token_ids)
    lark = compiler.lark()
    large = json.dumps({"description": "x" * 120_000})
    rules = [lark.json(large, f"function 'f{n}'", "tools") for n in range(10)]
    with pytest.raises(InvalidRequest, match="together are longer"):
        compiler.compiled(lark, " | ".join(rules))


def test_a_tokenizer_that_cannot_be_held_to_anything_is_told_of(llama: Loaded) -> None:
    compiler = Grammars(llama.prompts.table, ())
    lark = compiler.lark()
    with pytest.raises(InvalidRequest, match="tokens have no text of their own"):
        compiler.compiled(lark, lark.json("{}", "response_format", "response_format"))
