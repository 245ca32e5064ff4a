from __future__ import annotations

import pytest

from openai_gateway.cli.client import address, complain, print_table
from openai_gateway.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("0.0.0.0", "http://127.0.0.1:8000/v1"),
        ("::", "http://[::1]:8000/v1"),
        ("::1", "http://[::1]:8000/v1"),
        ("gateway.example", "http://gateway.example:8000/v1"),
    ],
)
def test_a_gateway_that_listens_everywhere_is_reached_on_this_machine(host: str, url: str) -> None:
    assert address(Settings(host=host)) == url


def test_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]x[/bold] :smile: " + "long " * 40
    complain(message)
    assert capsys.readouterr().err == f"{message}\n"


def test_a_table_shows_no_control_characters_and_no_spaces_behind(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("one", "\x1b[31mtwo"), ("", "")])
    assert capsys.readouterr().out == "A    B\none  [31mtwo\n\n"
