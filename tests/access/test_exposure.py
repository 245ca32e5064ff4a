"""What refuses to start."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest

from openai_gateway.access.exposure import open_to_anyone, weakness
from openai_gateway.settings import Settings, SettingsError

STRONG = secrets.token_urlsafe(32)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("OPENAI_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("settings", "has_keys"),
    [
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": "gateway.example", "env": "testing"}, False),
        ({"trusted_proxies": "127.0.0.1"}, False),  # a proxy on this machine lets others in
        ({"env": "production"}, False),
        ({"env": "production", "api_key": "sk-1234"}, True),
        ({"env": "production", "api_key": "changeme" * 5}, True),
        ({"env": "production", "api_key": "a" * 64}, True),
    ],
)
def test_g41_what_anyone_could_use_or_guess_refuses_to_start_unless_told_to(
    settings: dict[str, str], has_keys: bool
) -> None:
    with pytest.raises(SettingsError):
        open_to_anyone(Settings(**settings), has_keys)
    assert open_to_anyone(Settings(insecure=True, **settings), has_keys) is ("api_key" not in settings)


@pytest.mark.parametrize(
    ("settings", "has_keys", "anyone"),
    [
        ({}, False, True),
        ({}, True, True),
        ({"env": "testing"}, False, True),
        ({"api_key": "x"}, False, False),
        ({"host": "0.0.0.0"}, True, False),
        ({"host": "0.0.0.0", "insecure": True}, True, False),
        ({"env": "production"}, True, False),
        ({"env": "production", "api_key": STRONG, "host": "0.0.0.0"}, False, False),
    ],
)
def test_a_key_is_asked_for_wherever_there_is_one_to_ask_for(
    settings: dict[str, str], has_keys: bool, anyone: bool
) -> None:
    assert open_to_anyone(Settings(**settings), has_keys) is anyone


def test_the_advice_is_a_command_that_makes_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_KEY_STORE", str(tmp_path / "keys.db"))
    with pytest.raises(SettingsError) as caught:
        open_to_anyone(Settings(host="0.0.0.0"), False)
    command = str(caught.value).split("`")[1].replace("NAME", "alice")
    subprocess.run(command.split(), check=True)
    assert (tmp_path / "keys.db").exists()


def test_a_random_key_is_not_weak_and_the_message_does_not_show_a_weak_one() -> None:
    assert weakness(STRONG) is None
    assert weakness(secrets.token_hex(16)) is None
    with pytest.raises(SettingsError) as caught:
        open_to_anyone(Settings(env="production", api_key="hunter2hunter2"), False)
    assert "hunter2" not in str(caught.value)
