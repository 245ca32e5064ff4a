"""The measure of kept answers, on a real gateway that keeps them and on one that does not."""

from __future__ import annotations

import asyncio
import socket
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.address import Address
from openai_gateway.bench import hits
from openai_gateway.bench import server as bench
from openai_gateway.bench.desk import Desk, Plan
from openai_gateway.bench.load import Failed
from openai_gateway.bench.prompts import Writer
from openai_gateway.bench.server import meet
from openai_gateway.bench.sheet import Sheet
from tests.bench.support import Reply, serving, whole
from tests.support import Server, running

pytestmark = pytest.mark.anyio


async def measured(server: Server, monkeypatch: pytest.MonkeyPatch) -> Sheet:
    """What a short measurement writes."""
    monkeypatch.setattr(hits, "ALONE", 20)
    monkeypatch.setattr(hits, "SECONDS", 0.1)
    sheet = Sheet()
    asked = await meet("ours", Address(server.base_url), timeout=60)
    await hits.hits(Desk(asked, Plan(), sheet.page("hits", "ours"), Writer()))
    return sheet


async def test_kept_answers_are_timed_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, answer_cache="1MB") as server:
        sheet = await measured(server, monkeypatch)
    found = {row.metric: samples["ours"] for row, samples in sheet.samples.items()}
    assert len(found[hits.LATENCY]) == 20
    assert found[hits.RATE][0] > 16
    assert found[hits.PROCESSOR][0] > 0
    assert not sheet.notes


async def test_a_server_that_keeps_no_answers_is_said_to(gateway: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = await measured(gateway, monkeypatch)
    assert not sheet.samples
    assert "ours: it keeps no answers, or does not say so in an x-cache header" in sheet.notes


def desk(address: Address, timeout: float = 10) -> Desk:
    server = bench.Server("ours", address, "m", timeout=timeout)
    return Desk(server, Plan(), Sheet().page("hits", "ours"), Writer())


async def refuse(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(whole("429 Too Many Requests", {}))


async def keep_silent(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("reply", "timeout", "reason"), [(refuse, 10, "status 429"), (keep_silent, 0.2, "no end after 0.2 s")]
)
async def test_a_request_without_an_answer_is_counted_and_ends_the_measurement(
    reply: Reply, timeout: float, reason: str
) -> None:
    async with serving(reply) as address:
        asking = desk(address, timeout)
        with pytest.raises(Failed, match=reason):
            await hits.hits(asking)
    assert asking.page.sheet.failures == {("hits", "asked first", "ours"): {reason: 1}}
    assert asking.page.sheet.asked == {("hits", "asked first", "ours"): 1}


async def test_a_server_that_is_gone_is_counted_too() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        asking = desk(Address(f"http://127.0.0.1:{holder.getsockname()[1]}/v1"))
        with pytest.raises(Failed):
            await hits.hits(asking)
    assert asking.page.sheet.failures == {("hits", "asked first", "ours"): {"connection refused": 1}}


async def test_what_was_measured_before_an_error_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()

    async def answer_once(head: str, _: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("200 OK", {}).replace(b"\r\n", b"\r\nX-Cache: hit\r\n", 1))
        if head.startswith("POST") and next(numbers) == 4:
            await asyncio.sleep(0.1)  # the last client fails after the others, and is waited for

    monkeypatch.setattr(hits, "ALONE", 1)
    monkeypatch.setattr(hits, "TOGETHER", 2)
    async with serving(answer_once) as address:
        asking = desk(address)
        with pytest.raises(Failed, match="connection closed"):
            await hits.hits(asking)
    (measured,) = asking.page.sheet.samples
    assert (measured.case, measured.metric) == ("asked again", hits.LATENCY)
    assert asking.page.sheet.failures == {("hits", "2 clients", "ours"): {"connection closed": 2}}
    assert asking.page.sheet.asked["hits", "2 clients", "ours"] == 4
