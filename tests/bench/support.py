"""A server that says what a test tells it to, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from openai_gateway.address import Address

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
Reply = Callable[[str, Any, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[Address]:
    """`reply` gets the request's first line, its body (None without one) and where to write the answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        sizes = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")]
        body = json.loads(await reader.readexactly(int(sizes[0]))) if sizes else None
        try:
            await reply(head, body, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")


def event(**fields: Any) -> bytes:
    """A chunk of a stream, framed."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def says(text: str | None = None, finish: str | None = None, **delta: Any) -> bytes:
    """A chunk with some text."""
    return event(choices=[{"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}])


def whole(status: str, body: Any) -> bytes:
    """An answer that is no stream."""
    data = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


DONE = says(finish="stop") + b"data: [DONE]\n\n"
