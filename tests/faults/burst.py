"""G03, measured: how long others wait while two hundred clients come and leave within five seconds.

`python -m tests.faults.burst` asks in windows with and without them, in turns, and prints the times of both.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from openai_gateway.bench.sheet import percentile
from tests.faults.clients import Client, clients
from tests.support import Server, running

OTHERS, PAUSE = 4, 0.1
WINDOW = 5.0
"""Seconds, as those of the pause are."""
LEAVING = 200
ROUNDS = 6


async def ask(client: Client, times: list[float], ended: float) -> None:
    """One of the others, who asks again and again."""
    chance = random.Random(client.word)
    while time.monotonic() < ended:
        began = time.perf_counter()
        await client.check(chance, leaving=0)
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PAUSE)


async def leave(client: Client, after: float) -> None:
    """One who asks for much, and is gone when the answer begins."""
    await asyncio.sleep(after)
    asked = asyncio.create_task(client.ask(tokens=1000))
    await asyncio.sleep(0.02)
    asked.cancel()


async def window(others: list[Client], leavers: list[Client]) -> list[float]:
    """The times of all others, in milliseconds."""
    times: list[float] = []
    ended = time.monotonic() + WINDOW
    async with asyncio.TaskGroup() as group:
        for client in others:
            group.create_task(ask(client, times, ended))
        for place, client in enumerate(leavers):
            group.create_task(leave(client, WINDOW * place / len(leavers)))
    return times


async def measure(server: Server) -> str:
    quiet: list[float] = []
    burst: list[float] = []
    async with clients(server.base_url, OTHERS) as others, clients(server.base_url, LEAVING) as leavers:
        await window(others, [])
        for _ in range(ROUNDS):
            quiet += await window(others, [])
            burst += await window(others, leavers)
    rows = (("quiet", quiet), ("200 leaving", burst))
    lines = [f"{name:12} {len(x):8} {percentile(x, 50):8.0f} {percentile(x, 99):8.0f}" for name, x in rows]
    ratio = percentile(burst, 99) / percentile(quiet, 99)
    return "\n".join(["             requests   p50 ms   p99 ms", *lines, f"p99 is {ratio:.2f} times as long"])


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as place,
        running(Path(place), rate_limits="off", max_connections_per_ip=512) as gateway,
    ):
        sys.stdout.write(asyncio.run(measure(gateway)) + "\n")
