from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.types import ChatRequest, Grammar, Message, Tool, ToolChoice
from openai_gateway.worker.calls.offer import Offer, Parameters, described, schema_of

TOOLS = (Tool(name="get_weather"), Tool(name="search.web", description="looks"), Tool(name="sql", kind="custom"))


def offer(choice: ToolChoice = ToolChoice(), **more: Any) -> Offer | None:  # noqa: B008, a frozen value
    return Offer.of(ChatRequest(model="m", messages=(Message("user", "?"),), tools=TOOLS, tool_choice=choice, **more))


def test_nothing_is_offered_without_tools_or_where_none_is_to_be_called() -> None:
    assert offer(ToolChoice("none")) is None
    assert Offer.of(ChatRequest(model="m", messages=(Message("user", "?"),))) is None


def test_all_tools_are_shown_and_the_choice_says_which_may_be_called() -> None:
    some = offer(ToolChoice("required", ("sql",)), parallel_tool_calls=False)
    assert some is not None
    assert some.tools == TOOLS
    assert [tool.name for tool in some.callables] == ["sql"]
    assert (some.required, some.parallel) == (True, False)
    every = offer()
    assert every is not None
    assert every.callables == TOOLS


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("get_weather", "get_weather"),
        (" get_weather\n", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("get_weather<|channel|>commentary", "get_weather"),
        ('"get_weather"', "get_weather"),
        ("default_api.get_weather", "get_weather"),
        ("search.web", "search.web"),
        ("functions.search.web", "search.web"),
        ("functions.nobody", "nobody"),
    ],
)
def test_the_name_of_a_tool_is_found_in_what_a_model_writes_for_it(written: str, name: str) -> None:
    every = offer()
    assert every is not None
    assert every.name(written) == name


def test_a_tool_is_described_as_templates_take_it() -> None:
    assert described(TOOLS[0]) == {
        "type": "function",
        "function": {"name": "get_weather", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    assert schema_of(TOOLS[2])["required"] == ["input"]


def parameters(schema: Any) -> Parameters:
    return Offer((Tool(name="f", parameters=json.dumps(schema)),), frozenset("f")).parameters("f")


def test_a_parameter_has_the_schema_that_it_refers_to() -> None:
    schema = {
        "type": "object",
        "properties": {
            "unit": {"$ref": "#/$defs/Unit"},
            "same": {"$ref": "#/properties/unit"},
            "loop": {"$ref": "#/$defs/Loop"},
            "no": {"$ref": "#/x/y"},
        },
        "required": ["unit"],
        "$defs": {"Unit": {"enum": ["C", "F"]}, "Loop": {"$ref": "#/$defs/Loop"}},
    }
    taken = parameters(schema)
    assert taken.named == {
        "unit": {"enum": ["C", "F"]},
        "same": {"enum": ["C", "F"]},
        "loop": {"$ref": "#/$defs/Loop"},
        "no": {"$ref": "#/x/y"},
    }
    assert (taken.required, taken.others) == (["unit"], None)
    node = {"properties": {"a": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}, "required": ["a"]}
    taken = parameters({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert taken == Parameters({"a": {"type": "integer"}, "next": node}, ["a"])


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "others"),
    [
        ({}, None),
        ({"type": "object"}, {}),
        ({"type": "object", "additionalProperties": True}, {}),
        ({"type": "object", "additionalProperties": {}}, {}),
        ({"type": "object", "additionalProperties": False}, None),
        ({"additionalProperties": {"$ref": "#/$defs/t"}, "$defs": {"t": TEXT}}, TEXT),
        ({"anyOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]}, {}),
        ({"type": "object", "properties": {}}, None),
        ({"type": "object", "properties": {}, "additionalProperties": TEXT}, TEXT),
        ({"type": "object", "properties": {"a": TEXT}}, None),
    ],
)
def test_parameters_may_have_any_name_where_a_schema_names_none(schema: Any, others: Any) -> None:
    taken = parameters(schema)
    assert taken.others == others
    assert taken.schema("x") == others


def test_a_tool_that_nobody_offered_has_no_parameters() -> None:
    every = offer()
    assert every is not None
    assert every.parameters("g").schema("a") is None


def test_an_answer_has_a_form_of_its_own_where_the_request_has_one() -> None:
    for grammar, formed in ((None, False), (Grammar(kind="regex", source="a+", param="x"), True)):
        given = offer(grammar=grammar)
        assert given is not None and given.formed is formed
