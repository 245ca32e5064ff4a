from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from openai_gateway.cli import app
from openai_gateway.settings import Settings, SettingsError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that reached the gateway itself, which does not run here."""
    seen: list[Settings] = []
    gateway = ModuleType("openai_gateway.app")
    gateway.serve = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openai_gateway.app", gateway)
    return seen


def test_options_reach_the_gateway_over_the_environment(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.yaml").write_text("gateway: {max_n: 3}\n")
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "1")
    monkeypatch.setenv("OPENAI_GATEWAY_MAX_QUEUE", "5")
    options = ["--host", "::1", "--port", "9000", "--model", "org/m", "--models-file", "mine.yaml"]
    result = CliRunner().invoke(app, ["serve", *options, "--log-level", "DEBUG", "--log-format", "json"])
    assert (result.exit_code, result.output) == (0, "")
    (settings,) = served
    assert (settings.host, settings.port, settings.model) == ("::1", 9000, "org/m")
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert (settings.max_n, settings.max_queue) == (3, 5)


def test_options_that_were_not_given_leave_the_defaults(served: list[Settings]) -> None:
    assert CliRunner().invoke(app, ["serve"]).exit_code == 0
    assert served == [Settings()]


def test_wrong_settings_end_the_command_with_one_line_each_and_no_traceback(served: list[Settings]) -> None:
    Path("models.yaml").write_text("gateway:\n  prot: 1\n")
    result = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "models.yaml, line 2: there is no setting `prot`; did you mean `port`?",
        "command line: port: Input should be less than or equal to 65535, not 70000",
    ]
    assert served == []


def test_a_gateway_open_to_the_network_without_a_key_is_warned_of(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "sk-1")
    guarded = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert "OPENAI_GATEWAY_API_KEY is not set" in open_to_all.stderr
    assert (guarded.stderr, len(served)) == ("", 2)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SettingsError(["models.yaml: a names more than one model"]), 2, "models.yaml: a names more than one model"),
        (OSError(98, "Address already in use"), 1, "Cannot serve on 127.0.0.1, port 8000: Address already in use"),
    ],
)
def test_a_gateway_that_cannot_start_says_why_in_one_line(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(_: Settings) -> None:
        raise error

    gateway = ModuleType("openai_gateway.app")
    gateway.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openai_gateway.app", gateway)
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, result.stderr) == (code, f"{line}\n")
