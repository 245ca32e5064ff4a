"""Event streams as bytes: framing, comments in silence, errors on the way, and the end of the work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from openai_gateway.errors import WorkerDied
from openai_gateway.sse import ClientGone, EventStream, frame, unless_gone

pytestmark = pytest.mark.anyio


async def respond(chunks: AsyncGenerator[bytes], *, keep_alive: float = 0, leave_after: float = 60) -> list[bytes]:
    """The body messages of a stream whose client leaves after a while."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(leave_after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await EventStream(chunks, keep_alive=keep_alive)({"type": "http"}, receive, send)
    assert sent[0]["status"] == 200
    assert not any(name == b"content-length" for name, _ in sent[0]["headers"])
    return [message["body"] for message in sent[1:]]


async def some(*texts: str, pause: float = 0) -> AsyncGenerator[bytes]:
    """Frames with a pause before each."""
    for text in texts:
        await asyncio.sleep(pause)
        yield frame(text.encode())


async def test_frames_are_followed_by_done() -> None:
    assert await respond(some("a", "b")) == [b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"]


@pytest.mark.parametrize("pause", [0, 0.01])
async def test_nothing_is_left_to_do_when_the_end_is_sent(pause: float) -> None:
    turns: list[str] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Any) -> None:
        if not message.get("more_body", message["type"] == "http.response.start"):
            asyncio.get_running_loop().call_soon(turns.append, "of a client that has read the end")

    await EventStream(some("a", pause=pause), keep_alive=60)({"type": "http"}, receive, send)
    assert not turns
    await asyncio.sleep(0)
    assert len(turns) == 1


async def test_a_whole_answer_is_not_followed_by_an_error_when_the_server_ends() -> None:
    ending, ended = asyncio.Event(), asyncio.Event()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await ended.wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    stream = EventStream(some("a", pause=0.01), keep_alive=0)({"type": "http"}, receive, send)
    task = asyncio.ensure_future(stream)
    await ending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [message["body"] for message in sent[1:]] == [b"data: a\n\n", b"data: [DONE]\n\n"]
    ended.set()


async def test_silence_is_filled_with_comments_and_only_silence() -> None:
    body = await respond(some("a", pause=0.25), keep_alive=0.1)
    assert body == [b": keepalive\n\n"] * 2 + [b"data: a\n\n", b"data: [DONE]\n\n"]
    assert b": keepalive\n\n" not in await respond(some(*"abcdefgh", pause=0.03), keep_alive=0.2)


async def test_an_error_on_the_way_is_an_error_event_and_then_the_end() -> None:
    async def failing() -> AsyncGenerator[bytes]:
        yield frame(b"a")
        raise WorkerDied("it is gone")

    _, error, done = await respond(failing())
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "worker_died"
    assert done == b"data: [DONE]\n\n"


async def test_a_bug_on_the_way_tells_the_client_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncGenerator[bytes]:
        yield frame(b"a")
        raise KeyError("/secret/path")

    _, error, _ = await respond(failing())
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert b"secret" not in error
    assert "secret" in caplog.text


async def test_a_client_that_leaves_ends_the_work() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        try:
            while True:
                await asyncio.sleep(0.01)
                yield frame(b"a")
        finally:
            closed.set()

    async with asyncio.timeout(5):
        body = await respond(endless(), leave_after=0.1)
    assert closed.is_set()
    assert b"data: [DONE]\n\n" not in body


async def test_work_without_a_stream_is_cancelled_when_the_client_leaves() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    working = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            working.set()

    with pytest.raises(ClientGone):
        await unless_gone(Request({"type": "http"}, receive), work())
    assert working.is_set()


async def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def forever() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def work(fail: bool) -> int:
        if fail:
            raise WorkerDied("x")
        return 7

    assert await unless_gone(Request({"type": "http"}, forever), work(False)) == 7
    with pytest.raises(WorkerDied):
        await unless_gone(Request({"type": "http"}, forever), work(True))
