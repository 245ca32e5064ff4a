"""A small OpenAI-compatible server on a loopback port; what it answers depends on what it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = [
    {"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "demo", "context_length": 2048},
    {"id": "org/large", "object": "model", "created": 1_700_000_000, "owned_by": "hub", "loaded": False},
]
MODELS[0]["loaded"] = True
NO_LISTS = {
    "page": HTMLResponse("<p>It works."),
    "empty": JSONResponse({}),
    "null": JSONResponse({"data": None}),
    "words": JSONResponse({"data": ["tiny"]}),
    "nameless": JSONResponse({"data": [{"name": "tiny"}]}),
}
"""What others answer, whose folders have these names."""


class Server:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.ready = threading.Event()
        self.left = threading.Event()
        self.routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/{other}/models", lambda request: NO_LISTS[request.path_params["other"]]),
            Route("/health/live", lambda _: JSONResponse({"status": "ok"})),
            Route("/health/ready", self.health),
        ]

    async def models(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": MODELS})

    async def health(self, _: Request) -> Response:
        if self.ready.is_set():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": "the models are being loaded"}, 503)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if body["model"] == "nowhere":
            return error(404, "The model `nowhere` does not exist.")
        if body["model"] == "locked":
            return error(401, "Incorrect API key provided.")
        if body["messages"][-1]["content"] == "busy" and len(self.asked) == 1:
            return error(503, "The model is being loaded.")
        return StreamingResponse(self.stream(body), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        question = body["messages"][-1]["content"]
        yield chunk(body, {"role": "assistant", "content": ""})
        if body.get("reasoning_effort") != "none":
            # Servers differ in what they call it; the second model has the older name only.
            yield chunk(body, {"reasoning_content" if body["model"] == "org/large" else "reasoning": "I think"})
        if question == "break":
            yield chunk(body, {"content": "half"})
            raise ConnectionError("as asked")
        if question == "fail":
            yield chunk(body, {"content": "half"})
            yield b'data: {"error": {"message": "The worker died.", "type": "server_error"}}\n\n'
            return
        try:
            while question == "forever":
                yield chunk(body, {"content": "on "})
                await asyncio.sleep(0.01)
        finally:
            self.left.set()
        if question != "nothing":
            for word in f"You said: {question}".split(" "):
                yield chunk(body, {"content": f"{word} "})
                await asyncio.sleep(0.002)
        yield chunk(body, {}, finish="length" if question == "nothing" else "stop")
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        yield frame({**envelope(body), "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": None}}, status)


def envelope(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}


def chunk(body: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> bytes:
    return frame({**envelope(body), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def frame(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextmanager
def serving(state: Server, **tls: Any) -> Iterator[int]:
    """The port."""
    config = uvicorn.Config(Starlette(routes=state.routes), log_level="critical", lifespan="off", ws="none", **tls)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # whoever comes before the server is up waits for it
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def _server() -> Iterator[tuple[Server, str]]:
    state = Server()
    with serving(state) as port:
        yield state, f"http://127.0.0.1:{port}/v1"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith(("OPENAI_", "FORCE_COLOR")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gateway(_server: tuple[Server, str]) -> str:
    """The base URL of a running server."""
    state, url = _server
    state.asked.clear()
    state.keys.clear()
    state.ready.set()
    state.left.clear()
    return url


@pytest.fixture
def asked(gateway: str, _server: tuple[Server, str]) -> list[dict[str, Any]]:
    """The bodies that were sent to it."""
    return _server[0].asked


@pytest.fixture
def keys(gateway: str, _server: tuple[Server, str]) -> list[str | None]:
    """The Authorization headers of the model lists that it was asked for."""
    return _server[0].keys


@pytest.fixture
def ready(gateway: str, _server: tuple[Server, str]) -> threading.Event:
    return _server[0].ready


@pytest.fixture
def left(gateway: str, _server: tuple[Server, str]) -> threading.Event:
    """Set when a client has left an endless answer."""
    return _server[0].left


@pytest.fixture
def unused(unused_port: int) -> str:
    """A base URL where nothing listens."""
    return f"http://127.0.0.1:{unused_port}/v1"


@pytest.fixture
def unused_port() -> Iterator[int]:
    # Bound and not listening: connections are refused, and nobody else can take the port meanwhile.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
