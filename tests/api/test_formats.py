"""Which form an answer must have, under OpenAI's name and vLLM's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from openai_gateway.api.completions import CompletionBody
from openai_gateway.api.formats import schema_text
from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar
from openai_gateway.worker.schema import MOST
from tests.api.asking import chat_body, chat_request, refusal

SCHEMA = {"type": "object", "properties": {"b": {"const": 10**25}, "a": {"type": "string"}}}
TEXT = '{"type":"object","properties":{"b":{"const":10000000000000000000000000},"a":{"type":"string"}}}'
ANY_OBJECT = '{"type":"object"}'


def json_schema(**more: Any) -> dict[str, Any]:
    """`response_format` with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA} | more}


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}, "structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json", source=ANY_OBJECT)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Grammar(kind="json", source=TEXT)),
        ({"response_format": json_schema()}, Grammar(kind="json", source=TEXT, name="it", lenient=True)),
        ({"response_format": json_schema(strict=False)}, Grammar(kind="json", source=TEXT, name="it", lenient=True)),
        ({"response_format": json_schema(schema=None)},
         Grammar(kind="json", source=ANY_OBJECT, name="it", lenient=True)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "it", "strict": True}}},
         Grammar(kind="json", source=ANY_OBJECT, name="it")),
        ({"response_format": json_schema(strict=True, description="all of it")},
         Grammar(kind="json", source=TEXT, name="it", description="all of it")),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}},
         Grammar(kind="json", source=TEXT, name="response", lenient=True)),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(kind="json", source=TEXT, param="structured_outputs.json")),
        ({"structured_outputs": {"json_object": True, "regex": None, "disable_any_whitespace": False}},
         Grammar(kind="json", source=ANY_OBJECT, param="structured_outputs.json_object")),
        ({"structured_outputs": {"regex": "a+"}},
         Grammar(kind="regex", source="a+", param="structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["ü", 'b"']}},
         Grammar(kind="choice", source='["ü", "b\\""]', param="structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "start: /a/"}},
         Grammar(kind="lark", source="start: /a/", param="structured_outputs.grammar")),
        ({"guided_json": SCHEMA}, Grammar(kind="json", source=TEXT, param="guided_json")),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar(kind="json", source=TEXT, param="guided_json")),
        ({"guided_regex": "a+"}, Grammar(kind="regex", source="a+", param="guided_regex")),
        ({"guided_choice": ["yes"]}, Grammar(kind="choice", source='["yes"]', param="guided_choice")),
        ({"guided_grammar": "start: /a/", "guided_decoding_backend": "auto"},
         Grammar(kind="lark", source="start: /a/", param="guided_grammar")),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_every_form_becomes_a_grammar_on_both_endpoints(asked: dict[str, Any], form: Grammar | None) -> None:
    assert chat_request(**asked).grammar == form
    body = CompletionBody.model_validate_json(json.dumps({"model": "m", "prompt": ["x", "y"]} | asked))
    assert [request.grammar for request in body.requests(16, 2, "ada")] == [form, form]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {}, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": {}, "json_object": True}}, "structured_outputs.json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"json": 7}}, "structured_outputs.json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": '{"const": NaN}'}, "guided_json"),
        ({"guided_json": '{"const": 1e999}'}, "guided_json"),
        ({"guided_json": [SCHEMA]}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_grammar": "x" * 300_000}, "guided_grammar"),
        ({"guided_choice": ["x" * 300_000]}, "guided_choice"),
        ({"response_format": json_schema(schema={"enum": ["x" * 300_000]})}, "response_format"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        ({"grammar": 'root ::= "x"'}, "grammar"),
        ({"json_schema": SCHEMA}, "json_schema"),
        ({"ebnf": 'root ::= "x"'}, "ebnf"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_form_or_more_than_one_is_refused_by_name(asked: dict[str, Any], param: str) -> None:
    assert refusal(**asked).param == param


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"response_format": {"type": "xml"}}, ("response_format", "type")),
        ({"response_format": "json_object"}, ("response_format",)),
        ({"response_format": json_schema(name="a b")}, ("response_format", "json_schema", "name")),
        ({"response_format": json_schema(name="x" * 65)}, ("response_format", "json_schema", "name")),
        ({"response_format": json_schema(schema=[])}, ("response_format", "json_schema", "schema")),
        ({"response_format": json_schema(strict="yes")}, ("response_format", "json_schema", "strict")),
        ({"guided_choice": []}, ("guided_choice",)),
        ({"guided_choice": ["a", 1, 2]}, ("guided_choice", 1)),
        ({"structured_outputs": {"regex": 7}}, ("structured_outputs", "regex")),
    ],
)
def test_what_has_the_wrong_shape_is_refused_by_its_place(asked: dict[str, Any], place: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        chat_body(**asked)
    assert [error["loc"] for error in caught.value.errors()] == [place]


def test_a_schema_that_is_too_deep_is_refused_in_the_words_that_langchain_knows() -> None:
    deep: dict[str, Any] = {}
    for _ in range(63):
        deep = {"not": deep}
    assert chat_request(response_format=json_schema(schema=deep)).grammar is not None
    error = refusal(response_format=json_schema(schema={"not": deep}))
    assert error.message.startswith("Invalid schema for response_format 'it': ")


class Counted(list[Any]):
    """Knows how often one of its items was looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.looks += 1
            yield item


@pytest.mark.parametrize(
    ("items", "most"),
    [(Counted([0] * 3 * MOST), MOST), (Counted(["a name"] * 20_000), 2 * 20_000)],  # the latter are written out as well
    ids=["many", "long"],
)
def test_a_schema_is_not_looked_into_before_its_size_is_known(items: Counted, most: int) -> None:
    with pytest.raises(InvalidRequest, match=f"longer than {MOST} characters"):
        schema_text({"required": items}, "it", "guided_json")
    assert 0 < items.looks <= most


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("type", 5), ("type", [["string"]]), ("properties", []), ("required", 5), ("required", [1]), ("enum", "x"),
        ("anyOf", {}), ("pattern", 5), ("minLength", "x"), ("$ref", {}),
    ],
)  # fmt: skip
def test_a_keyword_with_a_value_of_the_wrong_type_is_refused_wherever_it_stands(keyword: str, value: Any) -> None:
    inner = {"anyOf": [{"items": {keyword: value}}]}
    error = refusal(response_format=json_schema(schema={"properties": {"a": inner}}))
    assert error.message == f"Invalid schema for response_format 'it': '{keyword}' has a value of the wrong type."
    innocent = {"properties": {keyword: {"default": {keyword: value}, "enum": [{keyword: value}]}}}
    assert chat_request(response_format=json_schema(schema=innocent)).grammar is not None


def test_null_asks_for_nothing() -> None:
    names = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
    assert chat_request(**dict.fromkeys(names)).grammar is None
