"""Limits as clients meet them: statuses, headers and messages, from an app whose clock a test holds."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, Literal

import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Asgi

from openai_gateway.access import throttle
from openai_gateway.access.auth import MASTER
from openai_gateway.access.keys import Key
from openai_gateway.access.ledgers import LocalLedgers
from openai_gateway.access.limits import SECOND
from openai_gateway.access.places import Places
from openai_gateway.access.quotas import Quotas
from openai_gateway.access.throttle import Throttle, duration
from openai_gateway.server import Bounds, Server
from openai_gateway.sse import EventStream, frame
from openai_gateway.types import Limits

pytestmark = pytest.mark.anyio

USUAL = Limits(burst=10, requests_per_minute=60, requests_per_hour=1000, requests_per_day=10_000)
CODEX = re.compile(r"try again in (\d+(?:\.\d+)?)\s*(s|ms|seconds?)", re.IGNORECASE)
"""As Codex reads a wait out of a message."""


def stored(name: str, limits: Limits = Limits()) -> Key:  # noqa: B008
    return Key(id=f"key_{name}", name=name, shown="", permissions=("chat",), limits=limits, created=1.0)


class Named:
    """Stands where `Auth` does: the key is the one that the header names."""

    def __init__(self, app: ASGIApp, keys: dict[str, Key]) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = self.keys[dict(scope["headers"]).get(b"key", b"a").decode()]
            scope.setdefault("state", {}).update(key=key, owner=key.id)
        await self.app(scope, receive, send)


class Scene:
    """An app with limits, and clients for it."""

    def __init__(
        self,
        folder: Path,
        keys: dict[str, Key] | None = None,
        defaults: Limits = USUAL,
        everybody: Limits = Limits(),  # noqa: B008
        limited: Literal["keys", "all", "none"] = "keys",
    ) -> None:
        self.now = 100 * 86_400 * SECOND
        self.refused: list[tuple[str, str]] = []
        self.held = asyncio.Event()
        self.held.set()
        self.quotas = Quotas(
            LocalLedgers(None, lambda: self.now),
            Places(folder / "limits.db"),
            defaults=defaults,
            everybody=everybody,
            limited=limited,
            refused=lambda *what: self.refused.append(what),
        )
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/completions", self._stream, methods=["POST"]),
                Route("/v1/models", self._answer),
                Route("/admin/keys", self._answer, methods=["POST"]),
                Route("/health", self._answer),
            ],
            middleware=[Middleware(Named, keys=keys or {"a": stored("a")}), Middleware(Throttle, quotas=self.quotas)],
            lifespan=self._life,
        )
        transport = httpx2.ASGITransport(self.app)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://gateway")

    @contextlib.asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        """Of a real server, whose thread the files belong to."""
        yield
        await self.quotas.close()

    async def _answer(self, request: Request) -> Response:
        await request.body()
        await self.held.wait()
        return Response(b"{}", media_type="application/json")

    async def _stream(self, _: Request) -> Response:
        async def chunks() -> AsyncGenerator[bytes]:
            yield frame(b"{}")

        return EventStream(chunks(), keep_alive=0)

    async def ask(self, key: str = "a", path: str = "/v1/chat/completions") -> httpx2.Response:
        return await self.http.post(path, headers={"key": key}, json={})

    async def asks(self, count: int, key: str = "a") -> list[int]:
        """The statuses of so many at once."""
        return [response.status_code for response in await asyncio.gather(*(self.ask(key) for _ in range(count)))]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    await scene.http.aclose()
    await scene.quotas.close()


async def test_g08_of_two_hundred_at_once_exactly_the_burst_passes(scene: Scene) -> None:
    assert sorted(await scene.asks(200)) == [200] * 10 + [429] * 190
    assert scene.refused == [("key", "requests_burst")] * 190
    scene.now += SECOND
    assert sorted(await scene.asks(20)) == [200] + [429] * 19


async def test_g08_headers_count_down_and_say_when_all_is_back(scene: Scene) -> None:
    seen = [(await scene.ask()).headers for _ in range(10)]
    assert [headers["x-ratelimit-limit-requests"] for headers in seen] == ["10"] * 10
    assert [int(headers["x-ratelimit-remaining-requests"]) for headers in seen] == list(range(9, -1, -1))
    assert [headers["x-ratelimit-reset-requests"] for headers in seen] == [f"{n}s" for n in range(1, 11)]
    assert "x-ratelimit-limit-tokens" not in seen[0]


async def test_g50_a_refusal_says_when_to_come_again_wherever_a_client_looks_for_it(scene: Scene) -> None:
    await scene.asks(10)
    scene.now += SECOND // 4
    refused = await scene.ask()
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert error["param"] is None
    assert error["message"].startswith("Rate limit reached for your API key: 10 requests at once, 1 requested.")
    assert CODEX.search(error["message"]).groups() == ("0.75", "s")  # type: ignore[union-attr]
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "750"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    scene.now += 750_000
    assert (await scene.ask()).status_code == 200


async def test_g50_the_sdk_waits_for_as_long_as_it_is_told_and_is_then_answered(tmp_path: Path) -> None:
    scene = Scene(tmp_path, defaults=Limits(burst=1, requests_per_minute=1200))

    def refused(*_: str) -> None:
        # What is told are 50 ms. The time comes a little before, so that who is earlier by more is refused once more.
        asyncio.get_running_loop().call_later(0.045, setattr, scene, "now", scene.now + SECOND // 20)

    scene.quotas._refused = refused
    async with openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="x", http_client=scene.http) as client:
        for expected in (0, 1):
            raw = await client.chat.completions.with_raw_response.create(model="m", messages=[])
            assert raw.retries_taken == expected
    await scene.quotas.close()


async def test_g06_who_is_refused_is_not_read(scene: Scene) -> None:
    await scene.asks(10)

    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("nobody wants this body")
        yield b""

    refused = await scene.http.post("/v1/chat/completions", content=endless())
    assert refused.status_code == 429


async def test_what_only_reads_is_not_counted_and_is_told_all_the_same(scene: Scene) -> None:
    await scene.ask()
    for _ in range(20):
        read = await scene.http.get("/v1/models")
        assert read.headers["x-ratelimit-remaining-requests"] == "9"
    assert (await scene.ask(path="/admin/keys")).status_code == 200
    assert await scene.asks(9) == [200] * 9
    assert (await scene.http.get("/v1/models")).status_code == 200
    assert "x-ratelimit-limit-requests" not in (await scene.http.get("/health")).headers


async def test_headers_of_an_answer_that_took_long_are_of_the_time_when_it_comes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "FRESH", -1.0)
    scene.held.clear()
    waiting = asyncio.create_task(scene.ask())
    while not scene.quotas._callers:
        await asyncio.sleep(0)
    scene.now += 3600 * SECOND
    scene.held.set()
    assert (await waiting).headers["x-ratelimit-remaining-requests"] == "10"


async def test_a_key_has_its_own_limits_and_others_for_the_rest(tmp_path: Path) -> None:
    keys = {"a": stored("a", Limits(burst=2)), "b": stored("b"), "c": stored("c", Limits(requests_per_day=0))}
    scene = Scene(tmp_path, keys, Limits(burst=5, requests_per_minute=60, requests_per_hour=100))
    assert sorted(await scene.asks(9, "a")) == [200] * 2 + [429] * 7
    assert sorted(await scene.asks(9, "b")) == [200] * 5 + [429] * 4
    assert await scene.asks(1, "c") == [429]
    await scene.quotas.close()


@pytest.mark.parametrize(("limited", "expected"), [("keys", [10, 20]), ("all", [10, 10]), ("none", [20, 20])])
async def test_whose_requests_are_limited(
    tmp_path: Path, limited: Literal["keys", "all", "none"], expected: list[int]
) -> None:
    scene = Scene(tmp_path, {"a": stored("a"), "m": MASTER}, limited=limited)
    assert [(await scene.asks(20, key)).count(200) for key in "am"] == expected
    assert not scene.quotas._callers
    await scene.quotas.close()


async def test_what_all_may_do_together_holds_for_master_keys_as_well(tmp_path: Path) -> None:
    keys = {"a": stored("a"), "m": MASTER}
    scene = Scene(tmp_path, keys, everybody=Limits(requests_per_minute=12))
    assert (await scene.asks(20, "a")).count(200) == 10
    refused = [response for response in [await scene.ask("m") for _ in range(4)] if response.status_code == 429]
    assert len(refused) == 2
    assert "for this server: 12 requests per minute" in refused[0].json()["error"]["message"]
    assert scene.refused[-1] == ("everybody", "requests_minute")
    await scene.quotas.close()


async def test_so_many_requests_of_a_key_are_in_progress_and_a_refused_one_is_not_counted(tmp_path: Path) -> None:
    scene = Scene(tmp_path, defaults=Limits(concurrency=3, requests_per_day=10))
    scene.held.clear()
    waiting = [asyncio.create_task(scene.ask()) for _ in range(8)]
    while sum(task.done() for task in waiting) < 5:
        await asyncio.sleep(0)
    scene.held.set()
    answers = [await task for task in waiting]
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "3 requests in progress" in refused.json()["error"]["message"]
    assert scene.refused == [("key", "concurrency")] * 5
    assert (await scene.http.get("/v1/models")).headers["x-ratelimit-remaining-requests"] == "7"
    assert await scene.asks(3) == [200] * 3
    await scene.quotas.close()


async def test_g06_of_a_thousand_at_once_those_beyond_the_cap_are_refused_before_anything_begins(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, defaults=Limits(concurrency=8))
    scene.held.clear()
    waiting = [asyncio.create_task(scene.ask()) for _ in range(1000)]
    while sum(task.done() for task in waiting) < 992:
        await asyncio.sleep(0)
    refused = [await task for task in waiting if task.done()]
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "1")}
    scene.held.set()
    assert [(await task).status_code for task in waiting].count(200) == 8
    await scene.quotas.close()


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """The port of a real server in a thread of its own."""
    urls: Queue[str] = Queue()
    options: Any = {"host": "127.0.0.1", "port": 0, "bounds": Bounds(), "drain_timeout": 0.1}
    server = Server(app, **options, on_drain=lambda: None, ready=urls.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield int(urls.get(timeout=60).rpartition(":")[2])
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_whoever_asks_again_at_the_end_of_an_answer_finds_himself_no_longer_in_progress(
    tmp_path: Path, path: str
) -> None:
    """What is asked on one connection is begun with the end of the answer before it."""
    asked = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode()
    app = Scene(tmp_path, defaults=Limits(concurrency=1)).app
    with serving(app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(7 * asked + asked.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answers = b"".join(iter(partial(client.recv, 65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200"] * 8


def test_durations_are_those_of_go() -> None:
    known = {
        0: "0s", 1: "1ms", 12_000: "12ms", SECOND: "1s", 1_500_000: "1.5s", 60 * SECOND: "1m0s", 61_050_000: "1m1.05s",
        360 * SECOND: "6m0s", 3600 * SECOND: "1h0m0s", 86_399_999_999: "24h0m0s",
    }  # fmt: skip
    assert {microseconds: duration(microseconds) for microseconds in known} == known
