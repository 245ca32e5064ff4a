from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from openai_gateway.address import Address
from openai_gateway.bench.load import Answer, Failed, Reading, read, send
from tests.bench.support import DONE, HEAD, event, says, serving, whole

pytestmark = pytest.mark.anyio


async def asked(*pieces: bytes, timeout: float = 10) -> Answer:
    """The answer of a server that writes these pieces, some time apart, and hangs up."""

    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(reply) as address:
        return await send(address, "/chat/completions", b"{}", timeout=timeout)


async def test_text_is_timed_when_it_arrives_and_a_role_is_no_text() -> None:
    answer = await asked(HEAD, says("", role="assistant"), says("one"), says("two"), DONE)
    reading = read(answer)
    assert (reading.text, reading.tokens, reading.counted_chunks) == ("onetwo", 2, True)
    assert len(reading.times) == 2
    assert reading.times[0] >= answer.pieces[0][0] + 0.01
    assert reading.times[1] >= reading.times[0] + 0.01


async def test_reasoning_is_text_too() -> None:
    reading = read(await asked(HEAD, says(reasoning="hm"), says(reasoning_content="hm"), says("so"), DONE))
    assert (reading.tokens, reading.text) == (3, "so")


async def test_the_servers_own_count_goes_before_ours() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    reading = read(await asked(HEAD, says("a lot"), event(choices=[], usage=usage), DONE))
    assert (reading.tokens, reading.counted_chunks) == (5, False)
    assert (reading.prompt_tokens, reading.cached_tokens) == (9, 4)


async def test_events_need_not_arrive_whole_nor_alone() -> None:
    data = says("one") + b": a comment\r\n\r\n" + says("two") + DONE
    reading = read(await asked(HEAD + data[:20], data[20:25], data[25:]))
    assert reading.text == "onetwo"


async def test_chunked_bodies_end_without_the_connection() -> None:
    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        data = says("one") + DONE
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n")
        await asyncio.sleep(30)

    async with serving(reply) as address:
        assert read(await send(address, "/x", b"{}", timeout=5)).text == "one"


async def test_an_answer_without_text_is_timed_at_its_end() -> None:
    assert len(read(await asked(HEAD, DONE)).times) == 1


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([], "connection closed without an answer"),
        ([b"not http\r\n\r\n"], "the answer is not HTTP"),
        ([whole("429 Busy", {"error": {"message": "too\nmany"}})], "status 429: too many"),
        ([whole("404 No", {"error": "gone"})], "status 404: gone"),
        ([b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\nwhat"], "status 500: what"),
        ([HEAD, says("one")], "the stream ended without a finish reason"),
        ([HEAD, says("one"), event(error={"message": "it died"})], "the stream broke off: it died"),
        ([HEAD, b"data: {nonsense\n\n"], "the stream holds what is no chunk of a chat completion"),
    ],
)
async def test_what_goes_wrong_is_said_in_few_words(pieces: list[bytes], reason: str) -> None:
    answer = await asked(*pieces)
    with pytest.raises(Failed) as failed:
        read(answer)
    assert str(failed.value) == reason


async def test_a_refused_connection_is_a_failure_and_no_exception() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        address = Address(f"http://127.0.0.1:{holder.getsockname()[1]}/v1")
        assert (await send(address, "/x", None, timeout=5)).failure == "connection refused"


async def test_an_answer_that_does_not_end_is_given_up() -> None:
    left = asyncio.Event()

    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await writer.wait_closed() if writer.is_closing() else await asyncio.sleep(0.5)
        left.set()

    async with serving(reply) as address:
        answer = await send(address, "/x", b"{}", timeout=0.1)
        await left.wait()
    assert answer.failure == "no end after 0.1 s"


async def test_a_request_that_is_cancelled_hangs_up() -> None:
    gone = asyncio.Event()

    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + says("one"))
        try:
            while True:
                writer.write(says("more"))
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()

    async with serving(reply) as address:
        answer = Answer()
        task = asyncio.create_task(send(address, "/x", b"{}", timeout=30, answer=answer))
        while not answer.pieces:
            await asyncio.sleep(0.01)
        task.cancel()
        async with asyncio.timeout(10):
            await gone.wait()


async def test_the_key_and_the_path_arrive_and_a_password_does_not() -> None:
    heads = []

    async def reply(head: str, _: Any, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(whole("200 OK", {}))

    async with serving(reply) as address:
        url = address.url.replace("//", "//user:secret@")
        await send(Address(url, "sk-1"), "/models", None, timeout=5)
    assert heads[0].startswith("GET /v1/models HTTP/1.1\r\n")
    assert "Authorization: Bearer sk-1\r\n" in heads[0]
    assert "secret" not in heads[0]


def test_time_per_token_is_that_between_first_and_last() -> None:
    assert Reading(0.0, times=[1.0, 2.0, 3.0], tokens=3).per_token == pytest.approx(1000)
    # Two tokens a chunk: the first chunk's are not between.
    assert Reading(0.0, times=[1.0, 2.0, 3.0], tokens=6).per_token == pytest.approx(500)
    assert Reading(0.0, times=[1.0], tokens=4).per_token is None
