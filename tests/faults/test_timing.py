"""Whether the time of an answer tells one owner what another has asked. A real server, and both caches in use."""

from __future__ import annotations

import math
import random
import string
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from openai_gateway.bench.prompts import Writer
from tests.support import guarded
from tests.worker import tiny

pytestmark = pytest.mark.anyio

TRIALS = 30
WORDS = 300
MODEL = tiny.LLAMA | {"max_position_embeddings": 4096}
STOPS = list(string.ascii_letters)
"""With which an answer ends soon and by itself, so that it is kept."""

Ask = Callable[[str, str], Awaitable[None]]
"""Has an owner ask with a prompt; returns when the answer is there."""


@dataclass
class Watched:
    """Seconds of B's requests, by whether A had asked the same before."""

    asked: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)


@asynccontextmanager
async def two_keys(folder: Path, *, shared: bool) -> AsyncIterator[Ask]:
    """A real server and two of its keys, a and b, which keeps answers, and whose prompts are `shared` or not."""
    tiny.save(folder / "tiny", MODEL)
    with guarded(folder, model=folder / "tiny", answer_cache="64MB", share_prefixes=shared) as server:
        keys = {owner: server.key() for owner in ("a", "b")}

        async def ask(owner: str, prompt: str) -> None:
            body = {"model": "tiny", "prompt": prompt, "seed": 1, "temperature": 1, "max_tokens": 500, "stop": STOPS}
            said = await client.post("/v1/completions", json=body, headers=keys[owner].headers)
            assert (said.json()["choices"][0]["finish_reason"], said.headers["x-cache"]) == ("stop", "miss")

        async with httpx2.AsyncClient(base_url=server.server.url, timeout=60) as client:
            yield ask


async def watch(ask: Ask) -> Watched:
    """A always asks something; half of the time it is what B asks next. In no order that the machine could follow."""
    watched, writer = Watched(), Writer()
    order = [True, False] * TRIALS
    random.Random(1).shuffle(order)
    await ask("b", writer.fresh(WORDS))
    for same in order:
        prompt = writer.fresh(WORDS)
        await ask("a", prompt if same else writer.fresh(WORDS))
        began = time.perf_counter()
        await ask("b", prompt)
        (watched.asked if same else watched.new).append(time.perf_counter() - began)
    return watched


def chance(one: list[float], other: list[float]) -> float:
    """That two samples of the same would differ as much: Mann and Whitney's rank test, in its normal approximation."""
    above = sum((a > b) + (a == b) / 2 for a in one for b in other)
    spread = math.sqrt(len(one) * len(other) * (len(one) + len(other) + 1) / 12)
    return math.erfc(abs(above - len(one) * len(other) / 2) / spread / math.sqrt(2))


async def test_g19_g23_time_does_not_tell_one_key_what_another_has_asked(tmp_path: Path) -> None:
    async with two_keys(tmp_path, shared=False) as ask:
        watched = await watch(ask)
    assert chance(watched.asked, watched.new) > 0.001


async def test_where_prompts_are_shared_it_does(tmp_path: Path) -> None:
    """What the test above would see, were it so; a kept answer would tell yet more."""
    async with two_keys(tmp_path, shared=True) as ask:
        watched = await watch(ask)
    assert chance(watched.asked, watched.new) < 0.001
