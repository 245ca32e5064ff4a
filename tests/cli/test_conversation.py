from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from openai_gateway.cli.conversation import Answer, Conversation, as_effort


@pytest.fixture
def conversation(gateway: str) -> Iterator[Conversation]:
    with openai.OpenAI(base_url=gateway, api_key="none", max_retries=0) as client:
        yield Conversation(client, "tiny")


def test_reasoning_and_content_come_apart_and_in_order(conversation: Conversation) -> None:
    pieces = list(conversation.ask("hello"))
    assert pieces[0] == ("reasoning", "I think")
    assert {kind for kind, _ in pieces[1:]} == {"content"}
    assert "".join(text for kind, text in pieces if kind == "content") == conversation.answer.text != ""


def test_a_question_is_asked_with_all_that_was_said_before(
    conversation: Conversation, asked: list[dict[str, Any]]
) -> None:
    conversation.system, conversation.effort = "Be brief.", "low"
    list(conversation.ask("one"))
    list(conversation.ask("two"))
    assert asked[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": conversation.turns[0][1]},
        {"role": "user", "content": "two"},
    ]
    assert (asked[1]["model"], asked[1]["reasoning_effort"]) == ("tiny", "low")


def test_effort_is_left_to_the_model_unless_it_was_said(
    conversation: Conversation, asked: list[dict[str, Any]]
) -> None:
    list(conversation.ask("hello"))
    assert "reasoning_effort" not in asked[0]


def test_an_answer_knows_its_tokens_its_end_and_its_speed(conversation: Conversation) -> None:
    list(conversation.ask("one two three"))
    answer = conversation.answer
    assert answer.usage is not None
    assert answer.finish == "stop"
    assert answer.rate is not None and answer.rate > 0
    assert conversation.spent == [answer.usage]


def test_no_speed_is_claimed_for_an_answer_that_came_in_one_piece(conversation: Conversation) -> None:
    list(conversation.ask("hello"))
    assert Answer(usage=conversation.answer.usage, started=1.0, ended=1.0).rate is None


def test_leaving_an_answer_hangs_up_and_keeps_what_was_said(conversation: Conversation, left: threading.Event) -> None:
    pieces = conversation.ask("forever")
    while not conversation.answer.text:
        next(pieces)
    pieces.close()
    assert left.wait(5)
    assert conversation.turns == [("forever", conversation.answer.text)]


@pytest.mark.parametrize(("question", "failure"), [("fail", openai.APIError), ("break", openai.APIConnectionError)])
def test_a_failure_inside_the_stream_keeps_what_was_said(
    conversation: Conversation, question: str, failure: type[Exception]
) -> None:
    with pytest.raises(failure):
        list(conversation.ask(question))
    assert conversation.turns == [(question, "half")]
    assert conversation.unanswered is None


def test_a_refused_question_is_not_part_of_what_was_said(conversation: Conversation) -> None:
    conversation.model = "nowhere"
    with pytest.raises(openai.NotFoundError):
        list(conversation.ask("hello"))
    assert (conversation.turns, conversation.unanswered) == ([], "hello")


def test_undo_takes_back_the_last_question_answered_or_not(conversation: Conversation) -> None:
    list(conversation.ask("one"))
    list(conversation.ask("nothing"))
    assert [conversation.undo(), conversation.undo(), conversation.undo()] == ["nothing", "one", None]
    assert conversation.messages == []


def test_a_forgotten_conversation_has_nothing_left_to_undo(conversation: Conversation) -> None:
    list(conversation.ask("one"))
    list(conversation.ask("nothing"))
    conversation.clear()
    assert conversation.undo() is None


def test_an_effort_that_does_not_exist_is_refused_with_those_that_do() -> None:
    assert as_effort("high") == "high"
    with pytest.raises(ValueError, match=r"no effort `huge`; the levels are none, minimal, low"):
        as_effort("huge")
