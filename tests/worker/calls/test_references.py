from __future__ import annotations

from typing import Any

import pytest

from openai_gateway.worker.calls.references import apart, resolved

TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "reference",
    ["#/$defs/A%5BB%5D", "#/$defs/a~1b~0", "#/properties/x/anyOf/1", "#/$defs/again"],
)
def test_a_reference_is_followed_however_it_is_written(reference: str) -> None:
    root = {
        "properties": {"x": {"anyOf": [{"type": "null"}, TEXT]}},
        "$defs": {"A[B]": TEXT, "a/b~": TEXT, "again": {"$ref": "#/$defs/A%5BB%5D"}},
    }
    assert resolved({"$ref": reference}, root) == TEXT


@pytest.mark.parametrize("reference", ["#/$defs/y", "#/list/1", "#/list/x", "#anchor", "https://example.com/x"])
def test_a_reference_to_nothing_is_left(reference: str) -> None:
    assert resolved({"$ref": reference}, {"list": [TEXT]}) == {"$ref": reference}


def test_a_part_comes_with_all_that_it_refers_to_and_with_nothing_else() -> None:
    root: dict[str, Any] = {
        "properties": {"a": TEXT, "b": {"items": {"$ref": "#/$defs/B"}}},
        "$defs": {"B": {"properties": {"a": {"$ref": "#/properties/a"}, "b": {"$ref": "#/$defs/B"}}}, "C": {}},
    }
    assert apart(root["properties"]["a"], root) == TEXT
    assert apart(root["properties"]["b"], root) == {
        "items": {"$ref": "#/$defs/0"},
        "$defs": {"0": {"properties": {"a": {"$ref": "#/$defs/1"}, "b": {"$ref": "#/$defs/0"}}}, "1": TEXT},
    }


def test_a_part_that_refers_to_the_whole_still_does() -> None:
    root: dict[str, Any] = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    part = apart(root["properties"]["kids"], root)
    assert part["items"] == {"$ref": "#/$defs/0"}
    assert part["$defs"]["0"]["properties"] == {"kids": {"type": "array", "items": {"$ref": "#/$defs/0"}}}


def test_a_property_of_the_name_of_a_keyword_is_none() -> None:
    part = {"properties": {"$ref": TEXT, "$defs": {"$ref": "#/$defs/t"}}}
    assert apart(part, {"$defs": {"t": TEXT}}) == {
        "properties": {"$ref": TEXT, "$defs": {"$ref": "#/$defs/0"}},
        "$defs": {"0": TEXT},
    }


def test_many_definitions_one_behind_the_other_are_found() -> None:
    definitions = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(2000)}
    assert len(apart({"$ref": "#/$defs/d0"}, {"$defs": definitions})["$defs"]) == 2001
