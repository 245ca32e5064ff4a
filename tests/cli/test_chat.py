from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import openai_gateway
from openai_gateway.cli import app
from openai_gateway.cli.chat import chat

# The terminal has to be the session's own, or else Ctrl-C is a byte and no signal; where tests run in the background,
# the signal is ignored, and what they start would ignore it as well.
SCRIPT = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from openai_gateway.cli import app
app()
"""


class Typist:
    """Somebody before a real terminal, in which `openai-gateway` runs."""

    def __init__(self, *arguments: str) -> None:
        self.fd, terminal = pty.openpty()
        env = {**os.environ, "PYTHONPATH": str(Path(openai_gateway.__file__).parents[1]), "TERM": "xterm"}
        run = [sys.executable, "-c", SCRIPT, *arguments]
        self.process = subprocess.Popen(
            run, stdin=terminal, stdout=terminal, stderr=terminal, env=env, start_new_session=True
        )
        os.close(terminal)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: str) -> str:
        """What appears until `wanted` does."""
        deadline = time.monotonic() + 20
        while wanted not in self.screen:
            assert select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0], self.screen
            self.screen += os.read(self.fd, 65536).decode()
        found, _, self.screen = self.screen.partition(wanted)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def typist() -> Iterator[Callable[..., Typist]]:
    opened: list[Typist] = []

    def start(*arguments: str) -> Typist:
        opened.append(Typist(*arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_what_comes_from_a_pipe_is_answered_on_stdout_and_nothing_else(
    gateway: str, asked: list[dict[str, Any]]
) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway], input="What is\n17 plus 25?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "You said: What is\n17 plus 25? \n", "")
    assert asked[0]["messages"] == [{"role": "user", "content": "What is\n17 plus 25?"}]
    assert asked[0]["model"] == "tiny"


def test_options_reach_the_request(gateway: str, asked: list[dict[str, Any]]) -> None:
    options = ["--base-url", gateway, "--model", "org/large", "--effort", "high", "--system", "Be brief."]
    assert CliRunner().invoke(app, ["chat", *options], input="hello").exit_code == 0
    (body,) = asked
    assert (body["model"], body["reasoning_effort"]) == ("org/large", "high")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_gateway_that_is_busy_is_asked_again(gateway: str, asked: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway], input="busy")
    assert (result.exit_code, result.stdout, len(asked)) == (0, "You said: busy \n", 2)


def test_a_wrong_effort_is_refused_before_anything_is_asked(gateway: str, asked: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway, "--effort", "huge"], input="hello")
    assert (result.exit_code, asked) == (2, [])
    assert result.stderr.startswith("There is no effort `huge`; the levels are none, ")


@pytest.mark.parametrize("data", ["", "\n", b"\xff"])
def test_a_pipe_with_nothing_to_ask_is_refused(gateway: str, asked: list[dict[str, Any]], data: str | bytes) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway], input=data)
    assert (result.exit_code, asked) == (2, [])


def test_a_closed_stdin_is_a_pipe_with_nothing_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(typer.Exit):
        chat()
    assert "there is nothing to ask" in capsys.readouterr().err


def test_an_answer_to_a_pipe_does_not_drive_the_terminal_that_shows_it(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal, shown in ((False, "You said: \x1b[31mred \n"), (True, "You said: [31mred \n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x1b[31mred")))
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        chat(base_url=gateway)
        assert capsys.readouterr().out == shown


def test_an_error_in_a_pipe_is_one_line_on_stderr(gateway: str) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway, "--model", "nowhere"], input="hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "404: The model `nowhere` does not exist.\n"


def test_who_was_refused_without_a_key_is_told_how_to_send_one(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        return CliRunner().invoke(app, ["chat", "--base-url", gateway, "--model", "locked"], input="hello").stderr

    assert refused() == f"{gateway}/ asks for a key: set OPENAI_API_KEY, and say --base-url {gateway}/\n"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    assert refused() == "401: Incorrect API key provided.\n"


def test_the_help_tells_no_default_of_what_is_only_switched_off() -> None:
    (line,) = [line for line in CliRunner().invoke(app, ["chat", "--help"]).stdout.splitlines() if "--no-" in line]
    assert "default" not in line


def test_an_answer_that_breaks_off_in_a_pipe_is_printed_and_fails(gateway: str) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", gateway], input="fail")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "half\n", "The worker died.\n")


def test_a_gateway_that_is_not_running_is_said_in_one_line(unused: str) -> None:
    result = CliRunner().invoke(app, ["chat", "--base-url", unused], input="hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Cannot reach {unused}/: is the gateway running?")


def test_a_terminal_gets_a_conversation_that_ctrl_d_ends(
    typist: Callable[..., Typist], gateway: str, asked: list[dict[str, Any]]
) -> None:
    chat = typist("chat", "--base-url", gateway, "--no-reasoning")
    assert "tiny at" in chat.until("> ")
    chat.type("hello\n")
    shown = chat.until("tokens/s")
    assert "You said: hello" in shown
    assert "I think" not in shown
    chat.until("> ")
    chat.type("\x1b[A")  # the arrow brings the last line back
    chat.type(" again\n")
    assert "You said: hello again" in chat.until("tokens/s")
    chat.until("> ")
    chat.type("\x04")
    assert chat.process.wait(10) == 0
    assert len(asked[1]["messages"]) == 3


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    typist: Callable[..., Typist], gateway: str, asked: list[dict[str, Any]], left: threading.Event
) -> None:
    chat = typist("chat", "--base-url", gateway)
    chat.until("> ")
    chat.type("forever\n")
    chat.until("on on on ")
    chat.type("\x03")
    chat.until("stopped")
    assert left.wait(5)
    chat.until("> ")
    chat.type("half a line")
    chat.until("half a line")
    chat.type("\x03")
    while not select.select([chat.fd], [], [], 2)[0]:
        chat.type("\x03")  # CPython's readline sleeps over a signal that comes just before it does
    chat.until("> ")
    chat.type("go on\n")
    chat.until("tokens/s")
    question, answer, now = asked[1]["messages"]
    assert (question["content"], now["content"]) == ("forever", "go on")
    assert re.fullmatch("(on )+", answer["content"])
