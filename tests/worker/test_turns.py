"""Messages as chat templates take them."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from openai_gateway.types import Message, ToolCall
from openai_gateway.worker.turns import alternating, in_blocks, turns, without_past_reasoning, without_system


def test_system_and_developer_messages_become_one_in_front_with_the_hint_at_its_end() -> None:
    messages = (
        Message("user", "a"), Message("system", "one"), Message("system", ""), Message("developer", "two"),
        Message("assistant", "b"),
    )  # fmt: skip
    assert list(turns(messages, "think")) == [
        {"role": "system", "content": "one\n\ntwo\n\nthink"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert next(turns((Message("user", "a"),), "think")) == {"role": "system", "content": "think"}
    assert [turn["role"] for turn in turns((Message("user", "a"), Message("system", "")), None)] == ["user"]


def test_turns_have_no_keys_without_a_value() -> None:
    messages = (Message("user", "a"), Message("assistant", None), Message("assistant", "b", name="bob"))
    assert list(turns(messages, None)) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "b", "name": "bob"},
    ]


def test_reasoning_stands_under_all_names_that_templates_read() -> None:
    (turn,) = turns((Message("assistant", "b", reasoning="because"),), None)
    assert [turn[name] for name in ("thinking", "reasoning_content", "reasoning")] == ["because"] * 3


CALL = (ToolCall("c", "add", "{}"),)
LOOP = (
    Message("user", "a"),
    Message("assistant", "b", reasoning="answered"),
    Message("user", "c"),
    Message("assistant", None, reasoning="called", tool_calls=CALL),
    Message("tool", "d", tool_call_id="c"),
    Message("assistant", None, reasoning="called again", tool_calls=CALL),
    Message("tool", "e", tool_call_id="c"),
)


@pytest.mark.parametrize(("messages", "since", "left"), [
    (LOOP, "user", ["called", "called again"]),
    (LOOP, "answer", ["called", "called again"]),
    ((*LOOP, Message("user", "f")), "user", []),
    ((*LOOP, Message("user", "f")), "answer", ["called", "called again"]),
    ((*LOOP, Message("assistant", "f", reasoning="done")), "user", []),
    ((*LOOP, Message("assistant", "f", reasoning="done"), Message("user", "g")), "answer", []),
    ((*LOOP[:3], Message("system", "h"), *LOOP[3:]), "user", ["called", "called again"]),
    (LOOP[3:], "user", ["called", "called again"]),
])  # fmt: skip
def test_reasoning_is_left_where_tools_are_still_being_called(
    messages: tuple[Message, ...], since: Literal["user", "answer"], left: list[str]
) -> None:
    shown = without_past_reasoning(messages, since)
    assert [message.reasoning for message in shown if message.reasoning] == left
    assert [message.content for message in shown] == [message.content for message in messages]


def test_reasoning_can_be_a_part_of_the_content() -> None:
    (turn,) = turns((Message("assistant", "b", reasoning="because"),), None)
    thought, text = {"type": "thinking", "thinking": "because"}, {"type": "text", "text": "b"}
    assert in_blocks(turn)["content"] == [thought, text]
    assert in_blocks({**turn, "content": ""})["content"] == [thought]
    assert in_blocks({"role": "assistant", "content": "b"}) == {"role": "assistant", "content": "b"}


def test_the_arguments_of_calls_are_objects_and_results_carry_the_name_of_their_call() -> None:
    calls = (ToolCall("1", "add", '{"a": [1, 2]}'), ToolCall("2", "now", ""))
    turned = list(
        turns(
            (
                Message("assistant", None, tool_calls=calls),
                Message("tool", "now!", tool_call_id="2"),
                Message("tool", "3", tool_call_id="1"),
                Message("tool", "?", tool_call_id="9", name="given"),
            ),
            None,
        )
    )
    functions = [call["function"] for call in turned[0]["tool_calls"]]
    assert functions == [{"name": "add", "arguments": {"a": [1, 2]}}, {"name": "now", "arguments": {}}]
    assert [turn.get("name") for turn in turned[1:]] == ["now", "add", "given"]
    assert turned[1]["tool_call_id"] == "2"


@pytest.mark.parametrize("text", ['{"a": 1}', "42", "", "ls"])
def test_the_text_of_a_custom_tool_is_a_text_whatever_it_looks_like(text: str) -> None:
    (turn,) = turns((Message("assistant", None, tool_calls=(ToolCall("1", "run", text, "custom"),)),), None)
    assert turn["tool_calls"][0]["function"]["arguments"] == {"input": text}


@pytest.mark.parametrize("broken", ["{", "not json", "[" * 100_000])
def test_arguments_that_are_no_json_stay_as_they_are(broken: str) -> None:
    (turn,) = turns((Message("assistant", None, tool_calls=(ToolCall("1", "f", broken),)),), None)
    assert turn["tool_calls"][0]["function"]["arguments"] == broken


def test_a_system_message_can_go_to_the_head_of_the_first_user_turn() -> None:
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}
    answer = {"role": "assistant", "content": "Hi"}
    assert without_system([system, user, answer]) == [{"role": "user", "content": "Be kind.\n\nHello"}, answer]
    assert without_system([user]) is None
    assert without_system([system, answer]) is None


@pytest.mark.parametrize("end", ["", "\n", "\n\nYou write code."])
def test_the_billing_line_of_an_agent_does_not_reach_the_model(end: str) -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;"
    system, user = (Message(role=role, content=line + end) for role in ("system", "user"))
    rules = [turn["content"] for turn in turns((system, user), None) if turn["role"] == "system"]
    assert rules == ([end.strip()] if end.strip() else [])
    assert [turn["content"] for turn in turns((system, user), None) if turn["role"] == "user"] == [line + end]


def test_neighbours_of_one_role_become_one_turn_but_calls_and_results_stay_apart() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}
    result = {"role": "tool", "content": "1", "tool_call_id": "a"}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"}, call, result, result,
        {"role": "assistant", "content": "e"}, {"role": "assistant", "content": "f", "reasoning": "g"},
    ]  # fmt: skip
    assert alternating(said) == [
        {"role": "user", "content": "a\n\nb\n\nc"},
        {"role": "assistant", "content": "d"}, call, result, result,
        {"role": "assistant", "content": "e\n\nf", "reasoning": "g"},
    ]  # fmt: skip
