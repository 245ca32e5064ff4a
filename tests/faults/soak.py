"""A long run of mixed load at half of what the gateway can do: one in ten leaves, one in twenty means harm.

`python -m tests.faults.soak SECONDS` prints what memory, descriptors and times do meanwhile, a line at a time.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil

from openai_gateway.bench.sheet import percentile
from tests.faults.clients import Client, clients
from tests.support import MODEL, Server, running

CLIENTS = 32
LEAVING, HOSTILE = 0.1, 0.05
PARTS = 20
"""Lines of the table."""
HEAD = "requests   p50 ms   p99 ms  gateway MB  worker MB    fds"
BAD: tuple[tuple[str, Any], ...] = (
    ("/completions", {"model": MODEL, "prompt": "x", "logit_bias": {"99999999": 1}}),
    ("/completions", {"model": MODEL, "prompt": "x " * 100_000}),
    ("/completions", {"model": MODEL, "prompt": [2**31 - 1]}),
    ("/completions", {"model": "../../etc/passwd", "prompt": "x"}),
    ("/completions", {"model": MODEL, "prompt": "x", "n": 10**9}),
    ("/chat/completions", {"model": MODEL, "messages": []}),
    ("/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "chat_template": "{{x}}"}),
    ("/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": -1}),
    ("/chat/completions", b"[" * 100_000),
    ("/chat/completions", b"\xff\xfe{"),
    ("/%1B[31mnothing", {}),
)
"""Path and body of requests that are to be refused."""


@dataclass
class Part:
    """What was seen in one part of the run. Sizes are megabytes, times milliseconds."""

    gateway: float = 0
    worker: float = 0
    descriptors: int = 0
    times: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        p50, p99 = (percentile(self.times or [0], rank) for rank in (50, 99))
        return (
            f"{len(self.times):8} {p50:8.0f} {p99:8.0f} {self.gateway:11.1f} {self.worker:10.1f} {self.descriptors:6}"
        )


@dataclass
class Soak:
    """One run: its parts, and everything that should not have happened."""

    rate: float = 0
    """Requests a second."""
    parts: list[Part] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> str:
        """All of it, for a test that has failed."""
        return "\n".join([f"{self.rate:.1f} requests/s", HEAD, *map(str, self.parts), f"wrong: {dict(self.wrong)}"])

    async def run(self, server: Server, seconds: float, tell: Callable[[str], object]) -> None:
        """`tell` is told of each part when it is over."""
        chance = random.Random(1)
        async with (
            clients(server.base_url, CLIENTS) as everybody,
            httpx2.AsyncClient(base_url=server.base_url, timeout=60) as stranger,
        ):
            self.rate = await self._capacity(everybody, chance) / 2
            tell(f"{self.rate:.1f} requests/s\n{HEAD}")
            async with asyncio.TaskGroup() as group:
                for _ in range(PARTS):
                    self.parts.append(Part())
                    ended = time.monotonic() + seconds / PARTS
                    while time.monotonic() < ended:
                        await asyncio.sleep(chance.expovariate(self.rate))
                        group.create_task(self._one(everybody, stranger, chance))
                    self._measure(server)
                    tell(str(self.parts[-1]))

    async def _capacity(self, everybody: list[Client], chance: random.Random) -> float:
        """Requests a second when nobody waits to ask again."""
        ended, asked = time.monotonic() + 10, 0

        async def busy(client: Client) -> None:
            nonlocal asked
            while time.monotonic() < ended:
                await client.check(chance, leaving=0)
                asked += 1

        await asyncio.gather(*map(busy, everybody))
        return asked / 10

    async def _one(self, everybody: list[Client], stranger: httpx2.AsyncClient, chance: random.Random) -> None:
        part, began = self.parts[-1], time.perf_counter()
        try:
            if chance.random() < HOSTILE:
                await self._harm(stranger, chance)
                return
            await chance.choice(everybody).check(chance, leaving=LEAVING)
            part.times.append((time.perf_counter() - began) * 1000)
        except AssertionError:
            self.wrong["an answer of somebody else"] += 1
        except (httpx2.HTTPError, LookupError, ValueError) as error:
            self.wrong[type(error).__name__] += 1

    async def _harm(self, stranger: httpx2.AsyncClient, chance: random.Random) -> None:
        path, body = chance.choice(BAD)
        content: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await stranger.post(path, headers={"content-type": "application/json"}, **content)
        if not 400 <= answer.status_code < 500:
            self.wrong[f"{answer.status_code} for a bad request"] += 1

    def _measure(self, server: Server) -> None:
        gateway, part = psutil.Process(server.process.pid), self.parts[-1]
        part.gateway = gateway.memory_info().rss / 2**20
        part.worker = server.worker().memory_info().rss / 2**20
        part.descriptors = gateway.num_fds()


def soak(seconds: float, folder: Path, tell: Callable[[str], object] = lambda _: None) -> Soak:
    """Run it on a gateway of its own."""
    found = Soak()
    with running(folder, answer_cache="4MB", prefix_cache="64MB", max_batch=16, rate_limits="off") as server:
        asyncio.run(found.run(server, seconds, tell))
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(f"wrong: {dict(soak(float(sys.argv[1]), Path(place), partial(print, flush=True)).wrong)}")
