"""What a request says of tools, in every form that clients send."""

from __future__ import annotations

from typing import Any

import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, ValidationError

from openai_gateway.types import Grammar, Tool, ToolChoice
from tests.api.asking import chat_body, chat_request, refusal


def function(name: str = "get_weather", **more: Any) -> dict[str, Any]:
    """An entry of `tools`."""
    return {"type": "function", "function": {"name": name, **more}}


def custom(name: str = "shell", **more: Any) -> dict[str, Any]:
    """An entry of `tools` for a tool that takes a text."""
    return {"type": "custom", "custom": {"name": name, **more}}


def grammar(syntax: str, definition: str) -> dict[str, Any]:
    """The format of a custom tool."""
    return {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BOTH = [function(), custom()]


def test_a_function_keeps_its_schema_as_text_with_its_keys_in_order_and_its_numbers_whole() -> None:
    schema = {"type": "object", "properties": {"b": {"maximum": 10**30}, "a": {"const": "ü"}}}
    (tool,) = chat_request(tools=[function(description="now", parameters=schema, strict=True)]).tools
    text = '{"type":"object","properties":{"b":{"maximum":1000000000000000000000000000000},"a":{"const":"ü"}}}'
    assert tool == Tool(name="get_weather", description="now", parameters=text, strict=True)


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}])
def test_a_function_may_take_nothing(parameters: dict[str, Any]) -> None:
    (tool,) = chat_request(tools=[function(**parameters, description=None, strict=None)]).tools
    assert tool == Tool(name="get_weather")


def test_a_schema_without_a_type_is_one_of_an_object() -> None:
    (tool,) = chat_request(tools=[function(parameters={"properties": {}})]).tools
    assert tool.parameters == '{"type":"object","properties":{}}'


def test_custom_tools_take_free_text_a_regular_expression_or_a_lark_grammar() -> None:
    asked = [
        custom("free", description="d"),
        custom("text", format={"type": "text"}),
        custom("regex", format=grammar("regex", "[a-z]+")),
        custom("lark", format=grammar("lark", "start: /a/")),
    ]
    free, text, regex, lark = chat_request(tools=asked).tools
    assert free == Tool(name="free", kind="custom", description="d")
    assert text.format is None
    param = "custom.format.grammar.definition"
    assert regex.format == Grammar(kind="regex", source="[a-z]+", param=f"tools[2].{param}")
    assert lark.format == Grammar(kind="lark", source="start: /a/", param=f"tools[3].{param}")


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        (None, "auto", ()),
        ("auto", "auto", ()),
        ("none", "none", ()),
        ("required", "required", ()),
        ({"type": "function", "function": {"name": "get_weather"}}, "required", ("get_weather",)),
        ({"type": "custom", "custom": {"name": "shell"}}, "required", ("shell",)),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [custom()]}}, "auto", ("shell",)),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [custom(), function(), custom()]}},
         "required", ("shell", "get_weather")),
    ],
)  # fmt: skip
def test_every_form_of_tool_choice(choice: Any, mode: Any, names: tuple[str, ...]) -> None:
    assert chat_request(tools=BOTH, tool_choice=choice).tool_choice == ToolChoice(mode, names)


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        7,
        {},
        {"type": "function"},
        {"type": "function", "name": "get_weather"},
        {"type": "function", "function": {"name": "other"}},
        {"type": "custom", "custom": {"name": "get_weather"}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": BOTH}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("other")]}},
    ],
    ids=str,
)
def test_a_choice_that_names_no_offered_tool_is_refused(choice: Any) -> None:
    assert refusal(tools=BOTH, tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize("tools", [None, []])
def test_without_tools_nothing_can_be_chosen(tools: Any) -> None:
    assert refusal(tools=tools, tool_choice="required").param == "tool_choice"
    assert refusal(tools=tools, tool_choice=function()).param == "tool_choice"
    assert refusal(tools=BOTH, function_call={"name": "get_weather"}).param == "function_call"
    for choice in (None, "none", "auto"):
        request = chat_request(tools=tools, tool_choice=choice, function_call=choice, parallel_tool_calls=False)
        assert request.tools == ()


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([function(), function("f"), function()], "tools[2]"),
        ([function("x"), custom("x")], "tools[1]"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "custom"}], "tools[0].custom"),
        ([custom(format={"type": "grammar"})], "tools[0].custom.format.grammar"),
        ([custom(format=grammar("lark", ""))], "tools[0].custom.format.grammar.definition"),
        ([custom(format=grammar("lark", "x" * 300_000))], "tools[0].custom.format.grammar.definition"),
        ([function(parameters={"type": "array"})], "tools[0].function.parameters"),
        ([function(parameters={"type": None})], "tools[0].function.parameters"),
        ([function(parameters={"description": "x" * 300_000})], "tools[0].function.parameters"),
        ([function(f"f{n}", parameters={"description": "x" * 100_000}) for n in range(11)], "tools"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_are_refused_by_their_place(tools: list[dict[str, Any]], param: str) -> None:
    assert refusal(tools=tools).param == param


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ([function("")], ("tools", 0, "function", "name")),
        ([function("x" * 65)], ("tools", 0, "function", "name")),
        ([function("get weather")], ("tools", 0, "function", "name")),
        ([function("ä")], ("tools", 0, "function", "name")),
        ([function("x\n")], ("tools", 0, "function", "name")),
        ([custom("a.b")], ("tools", 0, "custom", "name")),
        ([custom(format=grammar("ebnf", "x"))], ("tools", 0, "custom", "format", "grammar", "syntax")),
        ([{"type": "web_search"}], ("tools", 0, "type")),
        ([function(parameters=[])], ("tools", 0, "function", "parameters")),
        ([function(f"f{i}") for i in range(129)], ("tools",)),
    ],
)  # fmt: skip
def test_tools_of_the_wrong_shape_are_refused_by_their_place(tools: list[dict[str, Any]], place: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        chat_body(tools=tools)
    assert [error["loc"] for error in caught.value.errors()] == [place]


def test_a_refused_schema_has_the_words_and_the_code_that_openai_uses() -> None:
    error = refusal(tools=[function(parameters={"type": "string"})])
    assert error.code == "invalid_function_parameters"
    assert error.message.startswith("Invalid schema for function 'get_weather': ")


def test_128_tools_and_what_the_sdk_makes_of_pydantic_models_are_taken() -> None:
    class Where(BaseModel):
        """Where to look."""

        city: str

    tools = [function(f"tool-{i}_") for i in range(127)]
    request = chat_request(tools=[*tools, pydantic_function_tool(Where)])
    assert len(request.tools) == 128
    assert (request.tools[127].name, request.tools[127].strict) == ("Where", True)
    assert request.tools[127].description == "Where to look."


def test_calls_are_parallel_unless_the_request_says_no() -> None:
    assert chat_request(tools=BOTH).parallel_tool_calls
    assert chat_request(tools=BOTH, parallel_tool_calls=True).parallel_tool_calls
    assert not chat_request(tools=BOTH, parallel_tool_calls=False).parallel_tool_calls


def test_functions_are_tools_of_which_one_is_called_at_a_time() -> None:
    functions = [{"name": "get_weather", "parameters": CITY}, {"name": "f"}]
    request = chat_request(functions=functions, function_call={"name": "f"})
    assert [tool.name for tool in request.tools] == ["get_weather", "f"]
    assert request.tools[0] == chat_request(tools=[function(parameters=CITY)]).tools[0]
    assert request.tool_choice == ToolChoice("required", ("f",))
    assert not request.parallel_tool_calls
    assert chat_request(functions=functions, function_call="none").tool_choice == ToolChoice("none")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"functions": [{"name": "f"}], "tools": BOTH}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
        ({"functions": [{"name": "f"}], "tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions[1]"),
        ({"functions": [{"name": "f", "parameters": {"type": "string"}}]}, "functions[0].parameters"),
    ],
)
def test_the_old_and_the_new_words_are_not_mixed(asked: dict[str, Any], param: str) -> None:
    assert refusal(**asked).param == param


def test_an_answer_that_is_to_be_continued_cannot_have_to_be_a_call() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    asked = {"messages": messages, "tools": BOTH, "tool_choice": "required"}
    assert refusal(**asked, continue_final_message=True).param == "tool_choice"
    assert not chat_request(**asked).continue_final
