"""Server-sent events: framing, keep-alive comments, and an end to the work when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openai_gateway.errors import GatewayError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": keepalive\n\n"


class ClientGone(Exception):
    """The client left before its answer was ready; there is nobody to tell."""


def frame(data: bytes) -> bytes:
    """One event. Never with an `id:` or without data: OpenAI's Python SDK stumbles over both."""
    return b"data: %b\n\n" % data


def _error(error: GatewayError) -> bytes:
    return frame(json.dumps(error.body).encode())


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. The body must have been read before."""
    task = asyncio.ensure_future(work)
    try:
        if not await _at_once(task):
            await _until_left(request.receive, task)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _end(task)


async def _at_once(task: asyncio.Future[Any]) -> bool:
    """Whether a task that has just been made ends without waiting for anything: with a kept answer it does."""
    await asyncio.sleep(0)
    return task.done()


async def _until_left(receive: Receive, task: asyncio.Future[Any]) -> None:
    """Returns when the task is done or the client has left."""
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(leaving)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


class EventStream(Response):
    """A 200 whose body is the events of `chunks` (framed), then `[DONE]`.

    An error on the way becomes an error event. A comment is sent whenever `keep_alive` seconds passed in silence
    (0: never). When the client leaves, `chunks` is closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes], *, keep_alive: float, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._chunks = chunks
        self._keep_alive = keep_alive
        self._sent = 0.0  # when something was sent last; 0 before the first time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        try:
            if not await _at_once(writing):
                await self._until_left(receive, send, writing)
        except asyncio.CancelledError:  # the server ends before the stream does
            await _end(writing)
            if self._sent:
                if writing.cancelled():
                    await self._send(send, _error(Unavailable("The server is shutting down.")))
                await self._finish(send)
            raise
        await _end(writing)
        if not writing.cancelled():
            writing.result()
            # Behind all that was to be cleaned up: with the end of the answer a client may ask again at once, and
            # must not find itself still in progress.
            await self._finish(send)

    async def _until_left(self, receive: Receive, send: Send, writing: asyncio.Future[None]) -> None:
        comments = asyncio.ensure_future(self._comment(send))
        try:
            await _until_left(receive, writing)
        finally:
            await _end(comments)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._chunks):
            try:
                async for chunk in self._chunks:
                    await self._send(send, chunk)
            except GatewayError as error:
                await self._send(send, _error(error))
            except Exception:
                logger.exception("a stream failed")
                await self._send(send, _error(GatewayError("The server failed on this request.")))

    async def _finish(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": DONE})

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._sent = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _comment(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while self._keep_alive:
            await asyncio.sleep((self._sent or began) + self._keep_alive - clock())
            if clock() - self._sent >= self._keep_alive:
                await self._send(send, COMMENT)
