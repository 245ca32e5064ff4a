from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from rich.console import Console

from openai_gateway.cli.conversation import Conversation
from openai_gateway.cli.terminal import Terminal

Say = Callable[..., str]


@pytest.fixture
def say(gateway: str) -> Iterator[Say]:
    """Types these lines in a session, and gives what the terminal shows after the greeting."""
    with openai.OpenAI(base_url=gateway, api_key="none", max_retries=0) as client:

        def run(*lines: str, color: bool = False, **options: Any) -> str:
            typed = iter(lines)

            def read(prompt: str) -> str:
                for line in typed:
                    return line
                raise EOFError

            screen = io.StringIO()
            console = Console(
                file=screen, force_terminal=color, color_system="standard" if color else None, soft_wrap=True
            )
            Terminal(Conversation(client, "tiny"), console, read, **options).run()
            return screen.getvalue().partition("\n")[2]

        yield run


def questions(asked: list[dict[str, Any]]) -> list[str]:
    return [body["messages"][-1]["content"] for body in asked]


def test_an_answer_is_shown_after_its_reasoning_and_before_what_it_cost(say: Say) -> None:
    reasoning, answer, cost = say("hello there").splitlines()
    assert (reasoning, answer) == ("I think", "You said: hello there ")
    assert cost.startswith("5 tokens, ")
    assert cost.endswith(" tokens/s")


def test_reasoning_is_dimmed_and_the_answer_is_not(say: Say) -> None:
    shown = say("hello", color=True)
    assert "\x1b[2mI think\x1b[0m" in shown
    assert "\x1b[2mYou" not in shown


def test_reasoning_is_shown_under_its_older_name_too(say: Say) -> None:
    assert "\nI think\nYou said: hello" in say("/model org/large", "hello")


def test_reasoning_can_be_left_out(say: Say) -> None:
    assert say("hello", show_reasoning=False).startswith("You said: hello")


def test_white_space_and_long_lines_of_an_answer_stay_as_they_are(say: Say) -> None:
    text = "a  b " + "x" * 300 + " [bold]c[/bold] :smile:"
    assert f"You said: {text} \n" in say(text)


def test_control_characters_of_an_answer_do_not_reach_the_terminal(say: Say) -> None:
    assert "You said: a[31mb\n" in say("a\x1b[31m\x07\x9bb").replace(" \n", "\n")


def test_a_line_that_ends_in_a_backslash_goes_on(say: Say, asked: list[dict[str, Any]]) -> None:
    say("one\\", "two\\", "three")
    assert questions(asked) == ["one\ntwo\nthree"]


@pytest.mark.parametrize(
    "lines", [('"""', "one", "", "/two\\", '"""'), ('"""one', "", '/two\\"""'), ('  """one', "", "/two\\", '""" ')]
)
def test_a_block_between_quotes_is_one_message(say: Say, asked: list[dict[str, Any]], lines: tuple[str, ...]) -> None:
    say(*lines)
    assert questions(asked) == ["one\n\n/two\\"]


def test_an_empty_line_asks_nothing(say: Say, asked: list[dict[str, Any]]) -> None:
    assert say("", "  ", '""""""') == ""
    assert asked == []


def test_a_message_may_begin_with_a_slash_behind_a_space(say: Say, asked: list[dict[str, Any]]) -> None:
    say(" /etc")
    assert questions(asked) == [" /etc"]


def test_an_unknown_command_asks_nothing(say: Say, asked: list[dict[str, Any]]) -> None:
    assert say("/etc/hosts is what?").startswith("There is no command /etc/hosts; /help lists them.")
    assert asked == []


def test_help_describes_every_command(say: Say) -> None:
    shown = say("/help")
    names = ("effort", "model", "system", "clear", "undo", "retry", "save", "usage", "quit")
    assert all(f"/{name} " in shown for name in names)


def test_effort_model_and_system_hold_for_the_next_question(say: Say, asked: list[dict[str, Any]]) -> None:
    say("/effort high", "/model org/large", "/system Be brief.", "hello", "/effort", "/system", "again")
    first, second = asked
    assert (first["model"], first["reasoning_effort"]) == ("org/large", "high")
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "reasoning_effort" not in second
    assert second["messages"][0]["role"] == "user"


def test_a_wrong_effort_changes_nothing(say: Say, asked: list[dict[str, Any]]) -> None:
    assert "There is no effort `huge`" in say("/effort low", "/effort huge", "hello")
    assert asked[0]["reasoning_effort"] == "low"


def test_clear_forgets_what_was_said(say: Say, asked: list[dict[str, Any]]) -> None:
    say("one", "/clear", "two")
    assert len(asked[1]["messages"]) == 1


def test_undo_takes_back_the_last_exchange(say: Say, asked: list[dict[str, Any]]) -> None:
    shown = say("one", "two", "/undo", "three", "/clear", "/undo")
    assert [message["content"] for message in asked[2]["messages"] if message["role"] == "user"] == ["one", "three"]
    assert "taken back: two\n" in shown
    assert shown.endswith("there is nothing to undo\n")


def test_retry_asks_the_last_question_again_in_its_place(say: Say, asked: list[dict[str, Any]]) -> None:
    say("/retry", "one", "two", "/retry")
    assert questions(asked) == ["one", "two", "two"]
    assert asked[1]["messages"] == asked[2]["messages"]


def test_retry_asks_a_refused_question_again(say: Say, asked: list[dict[str, Any]]) -> None:
    shown = say("/model nowhere", "hello", "/model tiny", "/retry")
    assert "404: The model `nowhere` does not exist.\n" in shown
    assert questions(asked) == ["hello", "hello"]
    assert "You said: hello" in shown


@pytest.mark.parametrize(("question", "why"), [("fail", "The worker died."), ("break", "peer closed connection")])
def test_an_answer_that_breaks_off_is_followed_by_one_line_that_says_why(say: Say, question: str, why: str) -> None:
    lines = say(question).splitlines()
    assert lines[:2] == ["I think", "half"]
    assert why in lines[2]
    assert len(lines) == 3


def test_an_answer_without_text_is_said_to_be_none(say: Say) -> None:
    assert "no answer, cut at the token limit, 5 tokens" in say("nothing")


def test_save_writes_json_messages(say: Say) -> None:
    say("/system Be brief.", "one", "/save talk.json")
    saved = json.loads(Path("talk.json").read_text(encoding="utf-8"))
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]


def test_save_writes_markdown(say: Say) -> None:
    say("one", "/save talk.md")
    assert Path("talk.md").read_text(encoding="utf-8") == "## user\n\none\n\n## assistant\n\nYou said: one \n"


def test_save_never_overwrites_a_file(say: Say) -> None:
    Path("mine.md").write_text("precious")
    assert "mine.md: File exists\n" in say("one", "/save mine.md", "/save")
    assert Path("mine.md").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "why"), [("~nobody-of-that-name/talk.md", "no home is known for"), ("talk\0.md", "null byte")]
)
def test_a_name_that_no_file_can_have_does_not_end_the_session(say: Say, name: str, why: str) -> None:
    shown = say("one", f"/save {name}", "/usage")
    assert why in shown
    assert "1 answers: " in shown


def test_usage_adds_up_the_answers_of_the_session(say: Say) -> None:
    assert say("one", "two", "/usage").endswith("2 answers: 14 prompt tokens, 10 completion tokens\n")


def test_quit_leaves(say: Say, asked: list[dict[str, Any]]) -> None:
    say("/quit", "hello")
    assert asked == []
