from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openai_gateway.cli import app


def test_each_setting_is_shown_with_its_value_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models.yaml").write_text("gateway:\n  max_n: 3\n")
    monkeypatch.setenv("OPENAI_GATEWAY_MODEL", "org/m")
    result = CliRunner().invoke(app, ["config", "--port", "9000"])
    assert result.exit_code == 0
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert rows[0] == ["SETTING", "VALUE", "SOURCE"]
    assert ["port", "9000", "command line"] in rows
    assert ["model", "org/m", "environment variable OPENAI_GATEWAY_MODEL"] in rows
    assert ["max_n", "3", "models.yaml, line 2"] in rows
    assert ["api_key", "-", "default"] in rows
    assert ["load_timeout", "900", "default"] in rows


def test_columns_are_aligned() -> None:
    lines = CliRunner().invoke(app, ["config"]).stdout.splitlines()
    assert len({line.index(line.split()[1]) for line in lines}) == 1


def test_what_a_setting_means_is_said_to_whoever_asks() -> None:
    meaning = "Web origins whose pages may call the gateway."
    lines = CliRunner().invoke(app, ["config", "--explain"]).stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "SOURCE", "MEANING"]
    assert [line.split(maxsplit=3)[3] for line in lines if line.startswith("cors_origins ")] == [meaning]
    assert meaning not in CliRunner().invoke(app, ["config"]).stdout


def test_a_long_value_is_not_cut() -> None:
    long = "org/" + "m" * 200
    assert long in CliRunner().invoke(app, ["config", "--model", long]).stdout


def test_json_holds_plain_values_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_GATEWAY_ALLOWED_HOSTS", "a,b")
    result = CliRunner().invoke(app, ["config", "--json"])
    shown = json.loads(result.stdout)
    meaning = "Port to listen on; 0 lets the system choose."
    assert shown["port"] == {"value": 8000, "source": "default", "meaning": meaning}
    assert shown["allowed_hosts"]["value"] == ["a", "b"]
    assert shown["api_key"]["value"] == "**********"
    assert shown["api_key"]["source"] == "environment variable OPENAI_GATEWAY_API_KEY"


def test_wrong_settings_end_it_with_2() -> None:
    result = CliRunner().invoke(app, ["config", "--log-format", "xml"])
    assert result.exit_code == 2
    assert result.stderr == "command line: log_format: Input should be 'text' or 'json', not 'xml'\n"
