from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from openai_gateway.cli import app

QUICK = ("--scenarios", "stream", "--streams", "1,2", "--max-tokens", "8")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_table_is_printed(gateway: str) -> None:
    result = bench("--base-url", gateway, *QUICK)
    assert result.exit_code == 0, result.output
    assert "2 streams" in result.stdout
    assert "throughput, tokens/s" in result.stdout
    assert "ratio" not in result.stdout
    assert "some ended before" in result.stdout


def test_servers_are_set_beside_each_other(gateway: str, asked: list[dict[str, Any]]) -> None:
    result = bench("--base-url", gateway, "--beside", f"other={gateway}#org/large", *QUICK)
    assert result.exit_code == 0, result.output
    assert "other" in result.stdout
    assert "ratio" in result.stdout
    assert {body["model"] for body in asked} == {"tiny", "org/large"}
    assert all(body["stream_options"] == {"include_usage": True} and body["ignore_eos"] for body in asked)


def test_json_and_a_picture_are_written(gateway: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg"))
    assert bench("--base-url", gateway, "--api-key", "sk-secret", *QUICK, *files).exit_code == 0
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text)
    assert found["servers"][0]["url"] == gateway
    assert found["settings"]["streams"] == [1, 2]
    assert "sk-secret" not in text
    assert (tmp_path / "a.svg").exists()


def test_json_on_stdout_stands_there_alone(gateway: str) -> None:
    assert json.loads(bench("--base-url", gateway, *QUICK, "--json", "-").stdout)["results"]


def test_the_gateways_key_is_for_the_gateway_alone(
    gateway: str, keys: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "sk-gateway")
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", gateway.rpartition(":")[2].removesuffix("/v1"))
    assert bench("--base-url", gateway, "--beside", f"other={gateway}", *QUICK).exit_code == 0
    assert list(dict.fromkeys(keys)) == ["Bearer sk-gateway", None]
    keys.clear()
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "1")
    assert bench("--base-url", gateway, *QUICK).exit_code == 0
    assert set(keys) == {None}


def test_a_server_that_is_not_there_is_said_in_one_line(unused: str) -> None:
    result = bench("--base-url", unused, *QUICK)
    host = unused.removeprefix("http://").removesuffix("/v1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{host} ({unused}): connection refused\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "one"], "`one` is no list of numbers"),
        (["--scenarios", "sprint"], "There is no scenario `sprint`"),
        (["--beside", "http://x/v1"], "NAME=URL"),
        (["--plot", "plot.xlsx"], "a plot is one of"),
        (["--batch", "8"], "--start"),
        (["--allocator", "none"], "--start"),
        (["--start", "tiny", "--model", "m"], "--start"),
        (["--start", "tiny", "--base-url", "http://x/v1"], "--start"),
        (["--base-url", "localhost:1"], "is no base URL"),
        (["--base-url", "http://localhost:80a0/v1"], "is no base URL"),
        (["--json", "missing/a.json"], "missing/a.json: cannot be written."),
        (["--json", "/"], "/: cannot be written."),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: list[str], said: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
