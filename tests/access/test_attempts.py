"""Who tries keys, from addresses that a test makes up."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from openai_gateway.access.attempts import ADDRESSES, Attempts

pytestmark = pytest.mark.anyio


class Scene:
    """An app that refuses every key but one, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.refused: list[tuple[str, str]] = []
        self.attempts = Attempts(self._app, lambda *what: self.refused.append(what), lambda: self.now)

    async def _app(self, scope: Scope, receive: object, send: object) -> None:
        key = Request(scope).headers["authorization"]
        scope["state"] = {"key_presented": bool(key)}
        await Response(status_code=200 if key == "right" else 401)(scope, receive, send)  # type: ignore[arg-type]

    async def ask(self, address: str, key: str = "wrong", path: str = "/v1/models") -> tuple[int, dict[str, str]]:
        """Status and headers."""
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("nobody reads the body")

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "headers": [(b"authorization", key.encode())],
            "client": (address, 1),
        }  # fmt: skip
        await self.attempts(scope, receive, send)
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_b2_after_twenty_wrong_keys_an_address_waits_before_any_key_is_looked_at(scene: Scene) -> None:
    assert [(await scene.ask("203.0.113.9"))[0] for _ in range(20)] == [401] * 20
    status, headers = await scene.ask("203.0.113.9", "right")
    assert status == 429
    assert (await scene.ask("203.0.113.8", "right"))[0] == 200
    assert scene.refused == [("address", "failed_keys")]
    scene.now += float(headers["retry-after-ms"]) / 1000
    assert (await scene.ask("203.0.113.9", "right"))[0] == 200


async def test_whoever_waits_can_still_ask_whether_the_server_is_there(scene: Scene) -> None:
    """It may be a proxy that is not listed as trusted, and would take the server for dead."""
    for _ in range(21):
        status, _ = await scene.ask("203.0.113.9")
    assert status == 429
    assert (await scene.ask("203.0.113.9", "right", "/health/ready"))[0] == 200


async def test_right_keys_cost_nothing(scene: Scene) -> None:
    assert [(await scene.ask("203.0.113.9", "right"))[0] for _ in range(100)] == [200] * 100


async def test_requests_without_a_key_are_no_attempts(scene: Scene) -> None:
    assert [(await scene.ask("203.0.113.9", ""))[0] for _ in range(30)] == [401] * 30
    assert (await scene.ask("203.0.113.9", "right"))[0] == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_let_through(scene: Scene, address: str) -> None:
    assert [(await scene.ask(address))[0] for _ in range(30)] == [401] * 30


async def test_a_network_of_one_customer_is_one_address(scene: Scene) -> None:
    for number in range(20):
        await scene.ask(f"2001:db8::{number:x}")
    assert (await scene.ask("2001:db8::ffff"))[0] == 429
    assert (await scene.ask("2001:db8:0:1::1"))[0] == 401
    for _ in range(20):
        await scene.ask("::ffff:203.0.113.9")
    assert (await scene.ask("203.0.113.9"))[0] == 429
    assert (await scene.ask("::ffff:203.0.113.8"))[0] == 401


async def test_g37_ten_thousand_addresses_take_bounded_room_and_the_latest_are_known(scene: Scene) -> None:
    for number in range(10_000):
        await scene.ask(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(scene.attempts._failures) == ADDRESSES
    for _ in range(19):
        await scene.ask("10.0.39.15")
    assert (await scene.ask("10.0.39.15"))[0] == 429
