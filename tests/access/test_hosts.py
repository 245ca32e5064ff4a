"""Which Host headers pass."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from openai_gateway.access.hosts import Hosts
from openai_gateway.settings import LOOPBACK


async def ok(_: Request) -> Response:
    return PlainTextResponse("ok")


def client(*allowed: str) -> TestClient:
    routes = [Route("/", ok), Route("/health/ready", ok)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Hosts, allowed=allowed)]))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "host.docker.internal:8000",
    ],
)
def test_a_name_of_this_machine_passes_with_any_port(host: str) -> None:
    assert client(*LOOPBACK).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "testserver", "[::1]evil", "[::2]"],
)
def test_another_name_is_refused_and_not_repeated(host: str) -> None:
    answer = client(*LOOPBACK).get("/", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"
    assert "allowed_hosts" in answer.json()["error"]["message"]
    assert "evil" not in answer.text


def test_a_configured_name_passes_and_its_subdomains_do_not() -> None:
    gateway = client("Gateway.Example")
    assert gateway.get("/", headers={"host": "gateway.example:443"}).status_code == 200
    assert gateway.get("/", headers={"host": "a.gateway.example"}).status_code == 403


def test_a_health_check_passes_under_any_name_that_is_one() -> None:
    gateway = client("gateway.example")
    assert gateway.get("/health/ready", headers={"host": "10.0.0.7:8000"}).status_code == 200
    assert gateway.get("/health/ready", headers={"host": "*"}).status_code == 400


def test_a_star_allows_every_name() -> None:
    assert client("*").get("/", headers={"host": "anything.example"}).status_code == 200


def test_a_star_in_a_request_is_no_name() -> None:
    assert client("*").get("/", headers={"host": "*"}).status_code == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    "hosts", [[], [b"localhost", b"localhost"], [b"localhost/v1/models?"], [b"a@localhost"], [b""]], ids=str
)
async def test_a_request_needs_exactly_one_host_that_is_one(hosts: list[bytes]) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": "/",
        "headers": [(b"host", host) for host in hosts],
    }  # fmt: skip
    await Hosts(app, LOOPBACK)(scope, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "status"), [("/health/ready", 200), ("/", 403)])
async def test_in_http_1_0_no_host_is_a_name_like_any_other(path: str, status: int) -> None:
    """As HAProxy asks, unless it is told to ask otherwise."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.0", "method": "GET", "path": path, "headers": []}
    await Hosts(PlainTextResponse("ok"), LOOPBACK)(scope, receive, send)
    assert sent[0]["status"] == status


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
