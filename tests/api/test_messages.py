"""The history of a request: calls, their results, and what does not fit together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.types import Message, ToolCall
from tests.api.asking import WHO, chat_request, refusal


def called(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An assistant turn that calls tools."""
    return {"role": "assistant", "content": None, "tool_calls": [*calls], **more}


def call(id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    """A call of a function, as answers hold it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, "index": 0}


def result(id: str, content: Any = "42") -> dict[str, Any]:
    """What a tool answered."""
    return {"role": "tool", "tool_call_id": id, "content": content}


def messages(*history: dict[str, Any]) -> tuple[Message, ...]:
    """The messages behind a first question."""
    return chat_request(messages=[*WHO, *history]).messages[1:]


def test_calls_of_both_kinds_and_their_results_keep_their_ids() -> None:
    custom = {"id": "b", "type": "custom", "custom": {"name": "shell", "input": "ls\n"}}
    turn, first, second = messages(
        called(call("a", arguments='{"x": 1.0}'), custom, reasoning="so"),
        result("b", [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]),
        result("a"),
    )
    calls = (ToolCall("a", "f", '{"x": 1.0}'), ToolCall("b", "shell", "ls\n", "custom"))
    assert turn == Message("assistant", None, reasoning="so", tool_calls=calls)
    assert first == Message("tool", "42", tool_call_id="b")
    assert second == Message("tool", "42", tool_call_id="a")


def test_a_call_whose_type_is_null_is_that_of_a_function() -> None:
    turn, _ = messages(called(call("a") | {"type": None}), result("a"))
    assert turn.tool_calls == (ToolCall("a", "f", "{}"),)


def test_an_id_may_come_again_in_a_later_turn() -> None:
    assert len(messages(called(call("1")), result("1"), called(call("1")), result("1"))) == 4


def test_a_call_that_was_interrupted_is_left_without_a_result() -> None:
    assert len(messages(called(call("1"), call("2")), result("1"), *WHO, called(call("1")), result("1"))) == 5


def test_a_function_of_the_old_form_and_its_result_go_by_name() -> None:
    turn, answer = messages(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
    )
    assert turn.tool_calls == (ToolCall("f", "f", "{}"),)
    assert answer == Message("tool", "42", name="f", tool_call_id="f")


@pytest.mark.parametrize(
    ("history", "param"),
    [
        ([result("a")], "messages[1].tool_call_id"),
        ([called(call("a")), result("b")], "messages[2].tool_call_id"),
        ([called(call("a")), result("a"), result("a")], "messages[3].tool_call_id"),
        ([called(call("a"), call("a"))], "messages[1].tool_calls"),
        ([called({"id": "a", "type": "custom"})], "messages[1].tool_calls[0].custom"),
        ([called({"id": "a", "type": "function"})], "messages[1].tool_calls[0].function"),
        ([{"role": "function", "content": "x"}], "messages[1].name"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_fit_together_is_refused_by_its_place(history: list[dict[str, Any]], param: str) -> None:
    assert refusal(messages=[*WHO, *history]).param == param


def test_a_refused_result_says_what_is_wrong_with_it() -> None:
    twice = refusal(messages=[*WHO, called(call("a")), result("a"), result("a")])
    assert "'a': that call has its result already" in twice.message
    assert "made in no message before it" in refusal(messages=[*WHO, result("b")]).message


@pytest.mark.parametrize(
    ("part", "thought"),
    [
        ({"type": "thinking", "thinking": "so", "signature": "x"}, "so"),
        ({"type": "reasoning", "reasoning": "so"}, "so"),
        ({"type": "thinking", "thinking": [{"type": "text", "text": "s"}, {"type": "text", "text": "o"}]}, "so"),
        ({"type": "reasoning", "summary": []}, None),
        ({"type": "redacted_thinking", "data": "x"}, None),
    ],
)
def test_thoughts_among_the_parts_of_an_answer_are_its_reasoning(part: dict[str, Any], thought: str | None) -> None:
    said = [part, {"type": "text", "text": "4"}, {"type": "output_text", "text": "2"}]
    (turn,) = messages({"role": "assistant", "content": said})
    assert turn == Message("assistant", "42", reasoning=thought)


def test_what_a_user_says_holds_no_thoughts() -> None:
    refused = refusal(messages=[{"role": "user", "content": [{"type": "thinking", "thinking": "so"}]}])
    assert refused.param == "messages[0].content[0]"


def test_a_tool_that_returned_nothing_has_an_empty_result() -> None:
    assert messages(called(call("a")), result("a", None))[1].content == ""


def test_arguments_may_be_the_object_that_they_stand_for() -> None:
    (turn,) = messages(called({"id": "a", "function": {"name": "f", "arguments": {"x": [1, "ü"]}}}))
    assert json.loads(turn.tool_calls[0].arguments) == {"x": [1, "ü"]}
