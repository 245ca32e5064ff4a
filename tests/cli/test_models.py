from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from openai_gateway.cli import app
from tests.cli.conftest import NO_LISTS


def test_models_are_listed_with_what_is_known_of_them(gateway: str) -> None:
    result = CliRunner().invoke(app, ["models", "--base-url", gateway])
    assert result.exit_code == 0
    header, first, second = (line.split() for line in result.stdout.splitlines())
    assert header == ["MODEL", "OWNER", "CONTEXT", "LOADED", "CREATED"]
    assert first[:4] == ["tiny", "demo", "2048", "yes"]
    assert first[4].startswith("2023-11-1")
    assert second[:4] == ["org/large", "hub", "-", "no"]


def test_json_holds_the_entries_as_they_came(gateway: str) -> None:
    result = CliRunner().invoke(app, ["models", "--base-url", gateway, "--json"])
    entries = json.loads(result.stdout)
    assert [entry["id"] for entry in entries] == ["tiny", "org/large"]
    assert entries[0]["context_length"] == 2048


def test_the_sdks_variable_says_where_the_gateway_is(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", gateway)
    assert "org/large" in CliRunner().invoke(app, ["models"]).stdout


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_the_settings_say_where_the_gateway_is(
    host: str, name: str, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_HOST", host)
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", gateway.rpartition(":")[2].removesuffix("/v1"))
    assert "org/large" in CliRunner().invoke(app, ["models"]).stdout


def test_a_port_that_the_system_chose_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "0")
    result = CliRunner().invoke(app, ["models"])
    assert (result.exit_code, "--base-url" in result.stderr) == (2, True)


def test_a_gateway_that_is_not_running_is_said_in_one_line(unused: str) -> None:
    result = CliRunner().invoke(app, ["models", "--base-url", unused])
    assert result.exit_code == 1
    wanted = f"Cannot reach {unused}/: is the gateway running? `openai-gateway serve` starts it.\n"
    assert (result.stdout, result.stderr) == ("", wanted)


@pytest.mark.parametrize(
    ("variables", "own", "key"),
    [
        ({"OPENAI_GATEWAY_API_KEY": "sk-gateway", "OPENAI_API_KEY": "sk-openai"}, True, "sk-gateway"),
        ({"OPENAI_GATEWAY_API_KEY": "sk-gateway", "OPENAI_API_KEY": "sk-openai"}, False, "sk-openai"),
        ({"OPENAI_GATEWAY_API_KEY": "sk-gateway"}, False, "none"),
        ({"OPENAI_API_KEY": "sk-openai"}, True, "sk-openai"),
        ({}, True, "none"),
    ],
)
def test_the_gateways_key_is_for_its_own_address_alone(
    gateway: str,
    keys: list[str | None],
    variables: dict[str, str],
    own: bool,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = gateway.rpartition(":")[2].removesuffix("/v1")
    for name, value in (variables | {"OPENAI_GATEWAY_PORT": port if own else "1"}).items():
        monkeypatch.setenv(name, value)
    assert CliRunner().invoke(app, ["models", "--base-url", gateway]).exit_code == 0
    assert keys == [f"Bearer {key}"]


def test_a_key_for_elsewhere_is_not_sent_to_this_machine(
    gateway: str, keys: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", gateway.rpartition(":")[2].removesuffix("/v1"))
    assert CliRunner().invoke(app, ["models"]).exit_code == 0
    assert keys == ["Bearer none"]


@pytest.mark.parametrize("other", NO_LISTS)
@pytest.mark.parametrize("command", ["models", "chat"])
def test_what_is_no_list_of_models_is_said_in_one_line(gateway: str, command: str, other: str) -> None:
    url = f"{gateway.removesuffix('v1')}{other}/"
    result = CliRunner().invoke(app, [command, "--base-url", url], input="hello")
    wanted = f"{url} answers, but lists no models: is it the base URL of a gateway?\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", wanted)


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(
    gateway: str, unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, unused.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert CliRunner().invoke(app, ["models", "--base-url", gateway]).exit_code == 0
    assert CliRunner().invoke(app, ["health", "--base-url", gateway]).exit_code == 0
