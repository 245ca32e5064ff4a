"""Schemas of requests, before llguidance sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.worker.schema import CHOICES, DEEPEST, MOST, WRITING, choices, prepared


def read(schema: Any) -> Any:
    text = prepared(schema if isinstance(schema, str) else json.dumps(schema))
    return json.loads(text)


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "no JSON|Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "must be a JSON object"),
        ("3", "must be a JSON object"),
        ("false", "no value at all"),
        ('{"minimum": NaN}', "NaN is no JSON"),
        ('{"items": {"multipleOf": 10007}}', "more than 4 digits"),
        (json.dumps(nested(DEEPEST + 1)), "nested more than"),
        ("[" * 50_000, "nested more than"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "longer than|nested more than"),
        (json.dumps({"title": "x" * MOST}), "longer than"),
    ],
)
def test_what_is_no_schema_or_too_large_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        prepared(source)


def test_the_deepest_schema_passes() -> None:
    assert read(nested(DEEPEST - 1))["items"]


def test_names_keep_their_order_and_numbers_their_digits() -> None:
    schema = {"properties": {"z": {"minimum": 10**18 + 1}, "a": {"maximum": 0.1}, "m": {}}}
    made = read(schema)
    assert list(made["properties"]) == ["z", "a", "m"]
    assert made["properties"] == schema["properties"]


def test_how_json_is_written_is_ours_to_say() -> None:
    assert read(True) == {"x-guidance": WRITING}
    assert read({"x-guidance": {"whitespace_pattern": "x*", "lenient": True}}) == {"x-guidance": WRITING}
    assert json.loads(prepared("{}", lenient=True))["x-guidance"]["lenient"]


def test_formats_that_nobody_knows_are_remarks_wherever_they_stand() -> None:
    made = read({
        "format": "frobnicate",
        "properties": {"format": {"type": "string", "format": "uri-template"}, "enum": {"format": "ipv4"}},
        "dependentSchemas": {"const": {"format": "path"}},
        "anyOf": [{"format": "path"}, {"format": "uuid"}],
        "const": {"format": "path"},
        "uniqueItems": False,
    })  # fmt: skip
    assert made == {
        "properties": {"format": {"type": "string"}, "enum": {"format": "ipv4"}},
        "dependentSchemas": {"const": {}},
        "anyOf": [{}, {"format": "uuid"}],
        "const": {"format": "path"},
        "x-guidance": WRITING,
    }


@pytest.mark.parametrize("source", ["[]", "{}", '["a", 1]', '["a", ""]', "x", json.dumps(["a"] * (CHOICES + 1))])
def test_choices_are_a_list_of_texts(source: str) -> None:
    with pytest.raises(ValueError):
        choices(source)


def test_an_object_has_no_properties_but_those_that_it_names() -> None:
    inner = {"properties": {"b": {}}, "required": ["b"]}
    made = read({"properties": {"a": {"items": inner}, "either": {"anyOf": [inner, {"type": "null"}]}}})
    assert made["additionalProperties"] is False
    assert made["properties"]["a"]["items"]["additionalProperties"] is False
    assert made["properties"]["either"]["anyOf"][0]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {"properties": {"a": {}}, "patternProperties": {"^x": {}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "minProperties": 2},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]},
        {"$defs": {"x": {"properties": {"a": {}}}}, "$ref": "#/$defs/x", "properties": {"b": {}}},
        {"$defs": {"x": {"properties": {"a": {}}}}, "$ref": "#/$defs/x", "required": ["b"]},
        {"$defs": {"x": {"properties": {"a": {}}}}, "$ref": "#/$defs/x", "const": {"a": 1, "b": 2}},
        {"$defs": {"x": {"properties": {"a": {}}}}, "$ref": "#/$defs/x", "anyOf": [{"properties": {"b": {}}}]},
        {"required": ["c"], "anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"anyOf": [{"properties": {"a": {}}}], "oneOf": [{"properties": {"b": {}}}]},
        {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}, "required": ["b"]}]},
        {"properties": {"x": {"properties": {"a": {}}}}, "patternProperties": {"^x": {"properties": {"b": {}}}}},
    ],
)
def test_an_object_that_may_need_other_properties_is_left_open(schema: dict[str, Any]) -> None:
    assert read(schema) == schema | {"x-guidance": WRITING}


def test_alternatives_that_a_property_tells_apart_are_any_of_them() -> None:
    cat, dog = {"properties": {"kind": {"const": "cat"}}}, {"properties": {"kind": {"const": "dog"}}}
    made = read({"oneOf": [cat, dog], "discriminator": {"propertyName": "kind"}})
    assert made["anyOf"] == [one | {"additionalProperties": False} for one in (cat, dog)]
    assert "oneOf" not in made


ZOD = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)@[a-z.]+$"


def test_patterns_that_nothing_can_be_held_to_are_remarks_where_that_is_wanted() -> None:
    schema = {"properties": {"mail": {"type": "string", "pattern": ZOD}, "pattern": {"pattern": "^a+$"}}}
    assert json.loads(prepared('{"multipleOf": 0.010007}', lenient=True)).keys() == {"x-guidance"}
    assert read({"multipleOf": 2_500_000})["multipleOf"] == 2_500_000
    assert read(schema)["properties"]["mail"]["pattern"] == ZOD
    lenient = json.loads(prepared(json.dumps(schema), lenient=True))["properties"]
    assert lenient == {"mail": {"type": "string"}, "pattern": {"pattern": "^a+$"}}


def test_references_that_lead_nowhere_are_left_out_where_that_is_wanted() -> None:
    schema = {
        "properties": {
            "cut off": {"$ref": "#/$defs/Gone", "description": "x"},
            "elsewhere": {"items": {"$ref": "https://example.com/schema.json"}},
            "here": {"$ref": "#/$defs/Here"},
        },
        "$defs": {"Here": {"const": {"$ref": "#/$defs/Gone"}}},
    }
    lenient = json.loads(prepared(json.dumps(schema), lenient=True))
    assert lenient["properties"] == {
        "cut off": {"description": "x"},
        "elsewhere": {"items": {}},
        "here": {"$ref": "#/$defs/Here"},
    }
    assert lenient["$defs"] == schema["$defs"]
    assert read(schema)["properties"] == schema["properties"]
