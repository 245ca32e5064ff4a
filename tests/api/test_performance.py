"""The figures of a real gateway, and the header that tells of the prefix cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from openai_gateway.api.usage import caches
from openai_gateway.types import Started
from tests.support import MODEL, running


def figures(http: httpx2.Client) -> dict[str, Any]:
    """What /v1/performance says of the embedded model."""
    response = http.get("/v1/performance")
    assert response.headers["content-type"] == "application/json"
    (model,) = response.json()["models"]
    assert isinstance(model, dict)
    return model


def exposed(http: httpx2.Client) -> dict[str, float]:
    """The samples of /metrics, added up over their labels."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return totals


def idle(http: httpx2.Client) -> dict[str, int]:
    """The requests that were, once none is running any more."""
    deadline = time.monotonic() + 10
    while (requests := figures(http)["requests"])["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert isinstance(requests, dict)
    return requests


def ask(client: OpenAI, tokens: int = 8) -> None:
    """One completion of that many tokens."""
    client.completions.create(model="demo", prompt="x", max_tokens=tokens, extra_body={"ignore_eos": True})


def test_a_request_shows_in_both(client: OpenAI, http: httpx2.Client) -> None:
    before, counted = figures(http), exposed(http)
    ask(client, 200)  # so many that not all of them arrive at once, joined into one delta
    after, now = figures(http), exposed(http)
    assert after["id"] == MODEL
    assert after["loaded"]
    assert after["requests"]["ok"] == before["requests"]["ok"] + 1
    assert after["restarts"] == now["openai_gateway_worker_restarts_total"]
    grown = {name: now[name] - counted.get(name, 0) for name in now}
    assert grown["gen_ai_server_request_duration_seconds_count"] == 1
    assert grown["gen_ai_server_time_per_output_token_seconds_count"] == 1
    assert grown["gen_ai_client_token_usage_count"] == 2
    recent = after["recent"]
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "duration_seconds"):
        assert 0 < recent[name]["p50"] <= recent[name]["p90"] <= recent[name]["p99"]


def test_metrics_are_in_the_format_that_prometheus_reads(http: httpx2.Client) -> None:
    for accepted in ("*/*", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "text/plain;version=x"):
        response = http.get("/metrics", headers={"accept": accepted})
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=")


def test_the_speed_is_that_of_the_last_seconds(client: OpenAI, http: httpx2.Client) -> None:
    ask(client, 300)
    deadline = time.monotonic() + 5
    while (speed := figures(http)["generated_tokens_per_second"])["last_10_seconds"] < 30:
        assert time.monotonic() < deadline, speed
        time.sleep(0.1)
    assert speed["last_60_seconds"] >= 5


def test_a_client_that_leaves_is_counted_as_cancelled_and_a_refusal_as_failed(http: httpx2.Client) -> None:
    before = idle(http)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 20_000, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert figures(http)["requests"]["running"] == 1
    too_long = http.post("/v1/completions", json={"model": MODEL, "prompt": "x " * 40_000})
    assert too_long.status_code == 400
    assert idle(http) == {**before, "cancelled": before["cancelled"] + 1, "failed": before["failed"] + 1}
    assert 'error_type="ContextLengthExceeded"' in http.get("/metrics").text


def test_both_need_the_key_and_show_neither_it_nor_what_was_said(tmp_path: Path) -> None:
    with running(tmp_path, api_key="secret-key", ready=False) as server:
        server.wait_until_ready()
        with server.sdk("secret-key") as sdk:
            sdk.completions.create(model=MODEL, prompt="xyzzy", max_tokens=2)
        for path in ("/metrics", "/v1/performance"):
            assert httpx2.get(server.url + path).status_code == 401
            shown = httpx2.get(server.url + path, headers={"authorization": "Bearer secret-key"})
            assert shown.status_code == 200
            assert MODEL in shown.text
            assert "secret-key" not in shown.text
            assert "xyzzy" not in shown.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Never asked before."}]}),
        ("/v1/completions", {"prompt": ["Nor was this.", "Nor was that."]}),
    ],
)
def test_answers_say_what_the_prefix_cache_had(
    http: httpx2.Client, path: str, asked: dict[str, Any], stream: bool
) -> None:
    response = http.post(path, json={"model": MODEL, "max_tokens": 1, "stream": stream, **asked})
    assert response.status_code == 200
    assert response.headers["x-prefix-cache"].startswith("hit=")


def test_the_header_adds_up_what_several_prompts_had_cached_and_says_where_a_single_one_diverged() -> None:
    assert caches([Started(10)])["x-prefix-cache"] == "hit=0"
    assert caches([Started(10, 4, 6)])["x-prefix-cache"] == "hit=4; diverged=6"
    assert caches([Started(10, 4, 6), Started(10, 3, 0)])["x-prefix-cache"] == "hit=7"


def test_of_a_prompt_that_waits_the_header_does_not_say_what_nobody_knows_yet() -> None:
    for begun in ([Started(10, queued=True)], [Started(10, 4, 6), Started(10, queued=True)]):
        assert caches(begun) == {"x-cache": "bypass"}
