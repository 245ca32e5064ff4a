"""What the settings make of limits, up to a real gateway with several processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx2
import pytest
from psutil import Process

from openai_gateway.access.auth import MASTER
from openai_gateway.access.keys import Key
from openai_gateway.access.policy import quotas_of
from openai_gateway.models_file import read_models
from openai_gateway.settings import Settings, SettingsError
from openai_gateway.types import Limits
from tests.support import Server, running

STORED = Key(id="key_a", name="a", shown="", permissions=(), created=1.0)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_limits_that_are_named_change_and_the_others_stay() -> None:
    assert Settings().limits == Limits(
        burst=10, requests_per_minute=60, requests_per_hour=1000, requests_per_day=10_000
    )
    text = Settings(limits="burst=20, requests_per_day=none, tokens_per_minute=90000").limits
    mapping = Settings(limits={"burst": 20, "requests_per_day": None, "tokens_per_minute": 90_000}).limits
    assert text == mapping
    assert text == Limits(burst=20, requests_per_minute=60, requests_per_hour=1000, tokens_per_minute=90_000)
    assert Settings(total_limits="concurrency=50").total_limits == Limits(concurrency=50)


@pytest.mark.parametrize(
    "wrong", ["requests_per_minute=none", "bursts=1", "burst=-1", "burst=x", "burst", 7, "burst=1000000000"]
)
def test_limits_that_are_none_are_said_with_the_name_of_the_setting(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"command line: limits: "):
        Settings(limits=wrong)


@pytest.mark.parametrize(
    ("settings", "limited"),
    [
        ({}, (True, False)),
        ({"env": "production"}, (True, True)),
        ({"rate_limits": "on"}, (True, True)),
        ({"rate_limits": "off", "env": "production"}, (False, False)),
    ],
)
def test_in_development_only_created_keys_are_limited_and_in_production_everybody(
    tmp_path: Path, settings: dict[str, str], limited: tuple[bool, bool]
) -> None:
    quotas = quotas_of(Settings(**settings), tmp_path / "limits.db", lambda *_: None)
    with quotas.caller(STORED) as stored, quotas.caller(MASTER) as master:
        assert (stored is not None, master is not None) == limited


def test_what_is_no_address_of_a_redis_is_an_error_of_the_settings(tmp_path: Path) -> None:
    for wrong in ("http://nowhere", "redis://:host@hunter2:6379x/0"):
        with pytest.raises(SettingsError, match="redis_url: ") as caught:
            quotas_of(Settings(redis_url=wrong), tmp_path / "limits.db", lambda *_: None)
        assert "6379x" not in str(caught.value)


def alive(server: Server) -> None:
    """Returns when it answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"{server.url}/health/live")
            return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError(server.log.read_text())


def killed(server: Server) -> None:
    """One of its gateway processes is, and the server has told so."""
    next(child for child in Process(server.process.pid).children() if "spawn_main" in str(child.cmdline())).kill()
    deadline = time.monotonic() + 60
    while "takes its place" not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def test_two_real_gateway_processes_hold_one_limit_which_the_metrics_name_and_log_alike(tmp_path: Path) -> None:
    settings = {"rate_limits": "on", "limits": "burst=3, requests_per_minute=3", "log_format": "json"}
    with running(tmp_path, "--workers", "2", ready=False, **settings) as server:
        alive(server)
        # What asks for a model that is not there costs nothing, and counts.
        answers = [httpx2.post(f"{server.base_url}/completions", json={"model": "no"}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [404] * 3 + [429] * 3
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == list("210000")
        counted = 'openai_gateway_refused_requests_total{limit="requests_minute",scope="key"}'
        # Each process has metrics of its own, and a new connection may reach either.
        texts = {httpx2.get(f"{server.url}/metrics").text for _ in range(20)}
        assert any(counted in text for text in texts)
        killed(server)
    assert server.process.returncode == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert not [line for line in lines if "trace" in line]


def test_a_model_has_limits_in_models_yaml_and_those_without_effect_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: [{id: a, path: org/a, limits: {requests_per_minute: 5, concurrency: 2}}]")
    assert read_models(Settings())[0].limits == Limits(requests_per_minute=5, concurrency=2)
    file.write_text("models: [{id: a, path: org/a, limits: {burst: 5}}]")
    with pytest.raises(SettingsError, match="line 1: limits: `burst` needs `requests_per_minute`"):
        read_models(Settings())
