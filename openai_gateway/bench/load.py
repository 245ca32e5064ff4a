"""One request and when each piece of its answer arrived.

Client and server often share the machine, so while an answer comes in, its bytes get a time stamp and nothing else;
`read` makes sense of them afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import msgspec

from openai_gateway.address import Address


class Failed(Exception):
    """Why a request got no answer, or none to measure; in few words, for they are counted.

    `status` is 0 where it came to none.
    """

    def __init__(self, why: str, status: int = 0) -> None:
        self.status = status
        super().__init__(why)


@dataclass(slots=True)
class Answer:
    """What came back, undecoded. Times are seconds of `time.perf_counter`."""

    sent: float = 0.0
    """Before the connection is opened, which is part of what a client waits for."""
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """Bytes of the body, as they arrived. It grows while the answer comes in."""
    failure: str = ""

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Exchange(asyncio.Protocol):
    """A connection on which one request is sent and its answer stamped."""

    def __init__(self, request: bytes, answer: Answer) -> None:
        self._request = request
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("the answer is not HTTP")

    def on_body(self, body: bytes) -> None:
        self._answer.pieces.append((self._now, body))

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        # Without chunks or a length (HTTP/1.0), the end of the connection is that of the body.
        whole = exc is None and self._answer.pieces
        self._end("" if whole else "connection reset" if exc else "connection closed without an answer")

    def _end(self, failure: str) -> None:
        if not self.ended.done():
            self._answer.failure = failure
            self.ended.set_result(None)


async def send(
    address: Address, path: str, body: bytes | None, *, timeout: float, answer: Answer | None = None
) -> Answer:
    """Send one request, and wait for the end of its answer; cancelled, it hangs up.

    Whatever goes wrong is in the answer's `failure`: with many requests at once, one must not end the others.
    `timeout` is in seconds, for all of it. An `answer` of one's own can be watched while it grows.
    """
    answer = answer or Answer()
    request = address.request(path, body)
    host, port, tls = address.parts.hostname or "", address.port, address.tls
    loop = asyncio.get_running_loop()
    answer.sent = time.perf_counter()
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(timeout):
            transport, exchange = await loop.create_connection(lambda: Exchange(request, answer), host, port, ssl=tls)
            await exchange.ended
    except OSError as error:
        answer.failure = reason(error, timeout)
    finally:
        if transport is not None:
            transport.abort()  # to close it takes a server's goodbye over TLS, and the loop may end before that comes
    return answer


def reason(error: OSError, timeout: float) -> str:
    """Why a connection came to nothing, in words that can be counted."""
    if isinstance(error, TimeoutError):
        return f"no end after {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (error.strerror or type(error).__name__).lower()


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass(slots=True)
class Reading:
    """What a streamed answer says. Times are seconds of `time.perf_counter`."""

    sent: float
    times: list[float] = field(default_factory=list)
    """When each chunk with text arrived; of an answer without text, when it was finished."""
    text: str = ""
    tokens: int = 0
    """As the server's usage counts them, else one a chunk."""
    counted_chunks: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def first(self) -> float:
        """Time to first token, in milliseconds."""
        return (self.times[0] - self.sent) * 1000

    @property
    def per_token(self) -> float | None:
        """Milliseconds per output token after the first; None where there are not two chunks to measure between."""
        # A chunk may hold several tokens, the first one as well: an equal share is taken to be in it.
        after_first = self.tokens * (1 - 1 / len(self.times))
        return (self.times[-1] - self.times[0]) * 1000 / after_first if after_first else None


def read(answer: Answer) -> Reading:
    """Make sense of a streamed chat completion. Raises `Failed`."""
    if answer.failure:
        raise Failed(answer.failure)
    if answer.status != 200:
        raise Failed(f"status {answer.status}: {complaint(answer.body)}", answer.status)
    reading = Reading(answer.sent)
    finished: float | None = None
    texts: list[str] = []
    usage = None
    for moment, chunk in _chunks(answer):
        if chunk.error is not None:
            raise Failed(f"the stream broke off: {complaint(msgspec.json.encode(chunk.error))}")
        usage = chunk.usage or usage
        for choice in chunk.choices or ():
            delta = choice.delta or _Delta()
            if delta.content or delta.reasoning or delta.reasoning_content:
                reading.times.append(moment)
                texts.append(delta.content or "")
            finished = moment if choice.finish_reason else finished
    if finished is None:
        raise Failed("the stream ended without a finish reason")
    _count(reading, usage)
    reading.text = "".join(texts)
    reading.times = reading.times or [finished]
    return reading


def _count(reading: Reading, usage: _Usage | None) -> None:
    if usage is None or not usage.completion_tokens:
        reading.tokens, reading.counted_chunks = len(reading.times), True
        return
    reading.tokens, reading.prompt_tokens = usage.completion_tokens, usage.prompt_tokens or None
    if usage.prompt_tokens_details is not None:
        reading.cached_tokens = usage.prompt_tokens_details.cached_tokens


def _chunks(answer: Answer) -> Iterator[tuple[float, _Chunk]]:
    decode = msgspec.json.Decoder(_Chunk).decode
    rest = b""
    for moment, piece in answer.pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":
                try:
                    yield moment, decode(data)
                except msgspec.MsgspecError:
                    raise Failed("the stream holds what is no chunk of a chat completion") from None


def complaint(body: bytes) -> str:
    """What an error body says, in one line; the body itself where it has no form that is known here."""
    try:
        found = msgspec.json.decode(body)
        error = found.get("error", found)
        text = error.get("message") or str(error) if isinstance(error, dict) else str(error)
    except (msgspec.MsgspecError, AttributeError):
        text = body.decode("utf-8", "replace")
    return " ".join(text.split())[:200] or "no message"
