"""Answers that a server has kept: how soon one comes, how many come at once, and what each costs the server.

On connections that stay open, as clients' pools have them; all that is measured is what a server adds to an answer.
"""

from __future__ import annotations

import asyncio
import json
import string
import time
from dataclasses import replace
from typing import cast

import httptools

from openai_gateway.address import Address
from openai_gateway.bench.desk import Desk
from openai_gateway.bench.load import Failed, reason, send
from openai_gateway.bench.sheet import Metric

LATENCY = Metric("kept answer", "ms")
RATE = Metric("kept answers", "answers/s", True)
PROCESSOR = Metric("server's processor time", "ms per kept answer")

ALONE = 1000
"""Answers to one client, one after the other."""
TOGETHER = 16
"""Clients at once …"""
SECONDS = 2.0
"""… and for how long they ask."""
CPU = b"openai_gateway_cpu_seconds_total "


class Repeated(asyncio.Protocol):
    """A connection on which a request is sent again as soon as it is answered, `count` times or until `end`."""

    def __init__(self, request: bytes, count: int, end: float = float("inf")) -> None:
        self.times: list[float] = []
        """Milliseconds from each request to the end of its answer."""
        self.hit = False
        """Whether the last answer was a kept one."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = time.perf_counter()
        """When the last request was."""
        self._request = request
        self._count = count
        self._end = end
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def _send(self) -> None:
        self.hit = False
        self.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("the answer is not HTTP")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.hit = self.hit or (name.lower() == b"x-cache" and value == b"hit")

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self._parser.get_status_code() != 200:
            self._fail(f"status {self._parser.get_status_code()}")
            return
        self.times.append((now - self.sent) * 1000)
        if len(self.times) < self._count and now < self._end:
            self._parser = httptools.HttpResponseParser(self)
            self._send()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection closed")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(Failed(why))


async def hits(desk: Desk) -> None:
    """A short question, asked again and again: by one client, and then by several at once.

    Raises `Failed`, which is noted as well.
    """
    address, request = desk.server.address, _request(desk)
    for _ in range(2):
        first = await _repeated(desk, "asked first", request, 1)
    if not first.hit:
        desk.page.note("it keeps no answers, or does not say so in an x-cache header")
        return
    alone = "asked again"
    desk.page.add(alone, LATENCY, *(await _repeated(desk, alone, request, ALONE)).times)
    together = f"{TOGETHER} clients"
    before, began = await _processor(address), time.perf_counter()
    asking = [_repeated(desk, together, request, 10**9, began + SECONDS) for _ in range(TOGETHER)]
    answers = 0
    for client in await asyncio.gather(*asking, return_exceptions=True):
        if isinstance(client, BaseException):
            raise client
        answers += len(client.times)
    seconds, after = time.perf_counter() - began, await _processor(address)
    desk.page.add(together, RATE, answers / seconds)
    if before is None or after is None:
        desk.page.note("it does not tell its processor time; a key needs the permission `metrics` for that")
    else:
        desk.page.add(together, PROCESSOR, (after - before) / answers * 1000)


def _request(desk: Desk) -> bytes:
    """Its answer ends by itself, at the first letter: one that is cut off would not be kept."""
    body = {
        "model": desk.server.model,
        "messages": desk.writer.question(),
        "temperature": 0,
        "max_tokens": 500,
        "stop": [*string.ascii_letters],
        "reasoning_effort": "none",
    }
    return desk.server.address.request("/chat/completions", json.dumps(body).encode(), keep=True)


async def _repeated(desk: Desk, case: str, request: bytes, count: int, end: float = float("inf")) -> Repeated:
    """One client's answers; how many it asked for is noted. Raises `Failed`, which is noted as well."""
    address, timeout = desk.server.address, desk.server.timeout
    client = Repeated(request, count, end)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            host = address.parts.hostname or ""
            transport, _ = await loop.create_connection(lambda: client, host, address.port, ssl=address.tls)
        try:
            await _heard(client, timeout)
        finally:
            client.done.cancel()  # or the end of the connection would be an error that nobody hears
            transport.abort()  # as `load.send` does
    except (Failed, OSError) as error:
        why = reason(error, timeout) if isinstance(error, OSError) else str(error)
        desk.page.asked(case, len(client.times) + 1)
        desk.page.fail(case, why)
        raise Failed(why) from None
    desk.page.asked(case, len(client.times))
    return client


async def _heard(client: Repeated, timeout: float) -> None:
    """Wait for the last answer; each may take that many seconds."""
    while (left := client.sent + timeout - time.perf_counter()) > 0:
        if (await asyncio.wait([client.done], timeout=left))[0]:
            return await client.done
    raise TimeoutError


async def _processor(address: Address) -> float | None:
    """Seconds of processor time that a gateway's process has used; None where it does not tell."""
    root = replace(address, url=f"{address.parts.scheme}://{address.parts.netloc}")
    answer = await send(root, "/metrics", None, timeout=10)
    lines = [line for line in answer.body.splitlines() if line.startswith(CPU)]
    return float(lines[0].removeprefix(CPU)) if lines else None
