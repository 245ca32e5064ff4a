"""How much of a body comes through, and when not; sockets are in test_connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from openai_gateway.access.body import BodyLimit
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.errors import BodyTimeout


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def size(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def client() -> TestClient:
    limit = Middleware(BodyLimit, max_bytes=10, timeout=1)
    routes = [Route("/", size, methods=["POST"])]
    return TestClient(Starlette(routes=routes, middleware=[limit], exception_handlers=EXCEPTION_HANDLERS))


def chunks(*sizes: int) -> Iterator[bytes]:
    for number in sizes:
        yield b"x" * number


def test_a_body_of_just_the_allowed_size_comes_through(client: TestClient) -> None:
    assert client.post("/", content=b"x" * 10).text == "10"
    assert client.post("/", content=chunks(5, 5)).text == "10"
    assert client.post("/").text == "0"


def test_the_refusal_of_a_large_body_names_the_limit(client: TestClient) -> None:
    answer = client.post("/", content=b"x" * 11)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "The request's body is larger than 10 bytes."


def test_a_body_that_turns_out_too_large_is_refused(client: TestClient) -> None:
    answer = client.post("/", content=chunks(6, 6))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("length", "status"), [("9" * 5000, 413), ("-1", 400), ("1e3", 400), ("", 400)])
def test_a_strange_length_is_refused(client: TestClient, length: str, status: int) -> None:
    assert client.post("/", content=b"x", headers={"content-length": length}).status_code == status


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x"])
def test_a_compressed_body_is_refused(client: TestClient, encoding: str) -> None:
    answer = client.post("/", content=b"x", headers={"content-encoding": encoding})
    assert answer.status_code == 415


def test_the_identity_encoding_is_none(client: TestClient) -> None:
    assert client.post("/", content=b"x", headers={"content-encoding": "Identity"}).text == "1"


class Client:
    """A connection that delivers these messages, each after a pause, and records nothing of the answer."""

    def __init__(self, *messages: tuple[float, Message]) -> None:
        self.messages = list(messages)

    async def receive(self) -> Message:
        pause, message = self.messages.pop(0)
        await asyncio.sleep(pause)
        return message

    async def send(self, message: Message) -> None:
        raise AssertionError


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def received(client: Client, count: int, timeout: float) -> list[Message]:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.extend([await receive() for _ in range(count)])

    await BodyLimit(app, max_bytes=10, timeout=timeout)({"type": "http", "headers": []}, client.receive, client.send)
    return messages


@pytest.mark.anyio
async def test_a_body_that_is_announced_as_too_large_is_not_waited_for() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "headers": [(b"content-length", b"11")]}
    await BodyLimit(app, max_bytes=10, timeout=1)(scope, Client().receive, send)
    assert sent[0]["status"] == 413


@pytest.mark.anyio
async def test_a_body_that_trickles_has_one_deadline_for_all_of_its_parts() -> None:
    client = Client(*[(0.04, part(b"x", more=True))] * 9)
    with pytest.raises(BodyTimeout):
        await received(client, 9, timeout=0.1)
    assert 5 < len(client.messages) < 9


@pytest.mark.anyio
async def test_after_the_body_a_disconnect_comes_through_however_late() -> None:
    client = Client((0, part(b"x", more=False)), (0.1, {"type": "http.disconnect"}))
    messages = await received(client, 2, timeout=0.05)
    assert [message["type"] for message in messages] == ["http.request", "http.disconnect"]
