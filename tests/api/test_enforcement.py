"""What the decoder holds answers to, through a real gateway: forms, tool choices and budgets."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest

from tests.api.asking import chunks, deltas, post
from tests.support import MODEL

WET = {
    "type": "object",
    "properties": {"wet": {"type": "boolean"}, "drops": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["wet", "drops"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "water", "schema": WET}}
LAMP = {"type": "function", "function": {"name": "lamp", "parameters": WET}}
BELL = {"type": "function", "function": {"name": "bell"}}
CODE = {
    "type": "custom",
    "custom": {"name": "code", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[A-F]{4}"}}},
}
LONG: dict[str, Any] = {"max_tokens": 400, "temperature": 1, "thinking_budget": 40}


def is_wet(text: str) -> bool:
    """Whether a JSON text is what `WET` asks for."""
    value = json.loads(text)
    return list(value) == ["wet", "drops"] and type(value["wet"]) is bool and value["drops"] in range(10)


def choices(http: httpx2.Client, **asked: Any) -> Any:
    """The choices of an answer that must come."""
    response = post(http, **LONG | asked)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def test_a_schema_holds_every_choice_beside_seeds_and_log_probabilities(http: httpx2.Client) -> None:
    found = choices(http, response_format=SCHEMA, n=3, seed=3, logprobs=True, top_logprobs=2)
    for choice in found:
        assert choice["finish_reason"] == "stop"
        assert is_wet(choice["message"]["content"])
        spelt = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
        assert spelt.decode() == choice["message"]["content"]
    again = choices(http, response_format=SCHEMA, n=3, seed=3)
    assert [c["message"] for c in again] == [c["message"] for c in found]


def test_a_form_that_is_asked_for_behind_an_answer_is_that_of_a_new_one(http: httpx2.Client) -> None:
    answered = [{"role": "user", "content": "Is it wet?"}, {"role": "assistant", "content": "It is sunny."}]
    (choice,) = choices(http, messages=answered, response_format=SCHEMA)
    assert is_wet(choice["message"]["content"])
    refused = post(http, messages=answered, response_format=SCHEMA, continue_final_message=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


def test_any_object_will_do_for_json_object(http: httpx2.Client) -> None:
    asked = {"messages": [{"role": "user", "content": "Write JSON."}], "response_format": {"type": "json_object"}}
    (choice,) = choices(http, **asked, max_tokens=100)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"choice": ["red", "green", "grün"]}}, "red|green|grün"),
        ({"structured_outputs": {"regex": r"\d{2}-[xyz]"}}, r"\d{2}-[xyz]"),
        ({"structured_outputs": {"grammar": 'start: "a" NUMBER\nNUMBER: /[0-9]{1,3}/'}}, "a[0-9]{1,3}"),
        ({"guided_json": {"enum": ["one", 2]}}, '"one"|2'),
    ],
)
def test_every_form_is_kept_to_on_both_endpoints(http: httpx2.Client, asked: dict[str, Any], pattern: str) -> None:
    (choice,) = choices(http, **asked)
    assert re.fullmatch(pattern, choice["message"]["content"])
    body = {"model": MODEL, "prompt": ["Tell: ", "Say: "], "max_tokens": 40, "temperature": 1} | asked
    for choice in http.post("/v1/completions", json=body).json()["choices"]:
        assert re.fullmatch(pattern, choice["text"])


def test_a_schema_that_cannot_be_kept_to_is_refused_before_the_answer_begins(http: httpx2.Client) -> None:
    broken = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "quantum"}}}
    for stream in (False, True):
        response = post(http, response_format=broken, stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "response_format"
        assert error["message"].startswith("Invalid schema for response_format")
    tools = [
        BELL,
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "quantum"}}}}},
    ]
    error = post(http, tools=tools, tool_choice="required").json()["error"]
    assert error["param"].startswith("tools")
    assert error["message"].startswith("Invalid schema for function 'f'")


def test_what_no_decoder_can_hold_to_is_left_out_unless_the_schema_is_strict(http: httpx2.Client) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    unlike = {"type": "array", "items": digit, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": unlike}}
    (choice,) = choices(http, response_format=form)
    assert [number in range(10) for number in json.loads(choice["message"]["content"])] == [True] * 2
    strict = {"type": "json_schema", "json_schema": {"name": "it", "schema": unlike, "strict": True}}
    for asked in ({"response_format": strict}, {"guided_json": unlike}, {"structured_outputs": {"json": unlike}}):
        response = post(http, **asked)
        assert response.status_code == 400
        assert "uniqueItems" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("choice", "names", "parallel"),
    [
        ("required", {"lamp", "bell", "code"}, True),
        ("required", {"lamp", "bell", "code"}, False),
        ({"type": "function", "function": {"name": "lamp"}}, {"lamp"}, False),
        ({"type": "custom", "custom": {"name": "code"}}, {"code"}, False),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LAMP, BELL]}},
         {"lamp", "bell"}, False),
    ],
    ids=["required", "one", "function", "custom", "allowed_tools"],
)  # fmt: skip
def test_a_required_call_comes_and_is_one_of_those_allowed(
    http: httpx2.Client, choice: Any, names: set[str], parallel: bool
) -> None:
    asked = {"tools": [LAMP, BELL, CODE], "tool_choice": choice, "parallel_tool_calls": parallel}
    for found in choices(http, **asked, n=4, seed=1):
        calls = found["message"]["tool_calls"]
        assert found["finish_reason"] == "tool_calls" or len(calls) > 1
        assert parallel or len(calls) == 1
        for call in calls[:1]:
            held(call, names)


def held(call: dict[str, Any], names: set[str]) -> None:
    """A call is of one of these tools, and its arguments are what that tool takes."""
    named = call[call["type"]]
    assert named["name"] in names
    if call["type"] == "custom":
        assert re.fullmatch("[A-F]{4}", named["input"])
    elif named["name"] == "lamp":
        assert is_wet(named["arguments"])
    else:
        assert json.loads(named["arguments"]) == {}


def test_a_stream_of_calls_is_the_whole_answer_in_parts(http: httpx2.Client) -> None:
    asked = {"tools": [LAMP, CODE], "tool_choice": "required", "n": 3, "seed": 5}
    parts = chunks(post(http, **LONG | asked, stream=True))
    for index, choice in enumerate(choices(http, **asked)):
        calls: list[dict[str, Any]] = []
        for delta in deltas(parts, index):
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(calls)
                    calls.append({"type": call["type"], **call[call["type"]]})
                else:
                    last = calls[call["index"]]
                    (key,) = {"input", "arguments"} & last.keys()
                    last[key] += call[last["type"]][key]
        whole = [{"type": call["type"], **call[call["type"]]} for call in choice["message"]["tool_calls"]]
        assert calls == whole
    assert all(not delta.get("content") for index in range(3) for delta in deltas(parts, index))


def test_a_function_is_called_in_the_words_before_tools(http: httpx2.Client) -> None:
    asked = {"functions": [LAMP["function"]], "function_call": {"name": "lamp"}}
    (choice,) = choices(http, **asked)
    assert choice["finish_reason"] == "function_call"
    assert is_wet(choice["message"]["function_call"]["arguments"])
    called = {"role": "assistant", "content": None, "function_call": choice["message"]["function_call"]}
    history = [{"role": "user", "content": "On?"}, called, {"role": "function", "name": "lamp", "content": "yes"}]
    assert choices(http, messages=history, functions=[LAMP["function"]], function_call="none")


def test_a_budget_ends_reasoning_and_an_answer_follows(http: httpx2.Client) -> None:
    sum_ = [{"role": "user", "content": "What is 17 plus 25?"}]
    asked = {"messages": sum_, "max_tokens": 400, "temperature": 0, "reasoning_effort": "high"}
    free = post(http, **asked).json()
    bounded = post(http, **asked, thinking_budget=6).json()
    used, spared = (b["usage"]["completion_tokens_details"]["reasoning_tokens"] for b in (free, bounded))
    assert spared < used
    assert bounded["choices"][0]["message"]["content"]
    assert bounded["choices"][0]["finish_reason"] == "stop"
