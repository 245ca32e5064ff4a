from __future__ import annotations

import threading
import time

import pytest
from typer.testing import CliRunner

from openai_gateway.cli import app


def test_a_ready_gateway_is_reported_with_0(gateway: str) -> None:
    result = CliRunner().invoke(app, ["health", "--base-url", gateway])
    assert (result.exit_code, result.stdout) == (0, "live:  ok\nready: ok\n")


def test_a_gateway_that_is_still_loading_is_alive_and_reported_with_1(gateway: str, ready: threading.Event) -> None:
    ready.clear()
    result = CliRunner().invoke(app, ["health", "--base-url", gateway])
    assert (result.exit_code, result.stdout) == (1, "live:  ok\nready: 503 the models are being loaded\n")


def test_a_server_that_is_no_gateway_is_reported_with_its_status(gateway: str) -> None:
    result = CliRunner().invoke(app, ["health", "--base-url", f"{gateway}/elsewhere"])
    assert (result.exit_code, result.stdout) == (1, "live:  404 Not Found\nready: 404 Not Found\n")


def test_a_gateway_that_is_not_running_is_reported_with_1(unused: str) -> None:
    result = CliRunner().invoke(app, ["health", "--base-url", unused])
    root = unused.removesuffix("/v1")
    assert result.exit_code == 1
    assert result.stdout == (
        f"live:  no answer from {root}/health/live (ConnectError)\n"
        f"ready: no answer from {root}/health/ready (ConnectError)\n"
    )


def test_waiting_ends_as_soon_as_the_gateway_is_ready(gateway: str, ready: threading.Event) -> None:
    ready.clear()
    timer = threading.Timer(0.5, ready.set)
    timer.start()
    begin = time.monotonic()
    result = CliRunner().invoke(app, ["health", "--base-url", gateway, "--wait", "30"])
    timer.join()
    assert (result.exit_code, result.stdout) == (0, "live:  ok\nready: ok\n")
    assert 0.4 < time.monotonic() - begin < 10


def test_waiting_gives_up_after_its_seconds(unused: str) -> None:
    begin = time.monotonic()
    assert CliRunner().invoke(app, ["health", "--base-url", unused, "--wait", "0.5"]).exit_code == 1
    assert 0.4 < time.monotonic() - begin < 10


def test_the_sdks_variable_says_where_the_gateway_is(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{gateway}/")
    assert CliRunner().invoke(app, ["health"]).exit_code == 0
