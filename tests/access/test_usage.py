"""Counting what keys are used for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openai_gateway.access.auth import MASTER
from openai_gateway.access.keys import KeyStore, Usage
from openai_gateway.access.store import Store
from openai_gateway.access.usage import UsageCounts
from openai_gateway.observe.performance import Performance
from openai_gateway.types import CompletionRequest, ModelSpec, Started

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "keys.db")


async def test_counts_are_written_together_and_add_to_those_of_before(store: Store) -> None:
    keys = KeyStore(store)
    key, _ = keys.create("alice", actor="me")
    for _ in range(2):  # as two gateways, or one that was started again
        counts = UsageCounts(keys)
        counts.request(key.id)
        counts.tokens(key.id, prompt=5, cached=4, completion=3, reasoning=2)
        await counts.flush()
    usage = keys.get(key.id)[1]
    assert (usage.requests, usage.prompt_tokens, usage.cached_tokens) == (2, 10, 8)
    assert (usage.completion_tokens, usage.reasoning_tokens) == (6, 4)
    assert usage.last_used > 0


async def test_g43_what_cannot_be_written_is_kept_until_it_can(store: Store) -> None:
    keys = KeyStore(store)
    key, _ = keys.create("alice", actor="me")
    counts = UsageCounts(keys)
    counts.request(key.id)
    hidden = store.path.rename(store.path.with_suffix(".away"))
    store.path.mkdir()  # nothing can be written to a folder
    await counts.flush()
    counts.request(key.id)
    store.path.rmdir()
    hidden.rename(store.path)
    assert keys.get(key.id)[1] == Usage()
    await counts.flush()
    assert keys.get(key.id)[1].requests == 2


async def test_the_end_writes_what_is_left(store: Store) -> None:
    keys = KeyStore(store)
    key, _ = keys.create("alice", actor="me")
    counts = UsageCounts(keys)
    task = asyncio.create_task(counts.run())
    await asyncio.sleep(0)
    counts.request(key.id)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert keys.get(key.id)[1].requests == 1


async def test_for_a_key_that_is_not_in_the_store_there_is_nothing_to_write(store: Store) -> None:
    """A gateway that somebody tries out leaves no file behind."""
    counts = UsageCounts(KeyStore(store))
    performance = Performance()
    performance.subscribe(counts.measured)
    for owner in ("", MASTER.id):
        request = CompletionRequest(model="m", prompt="hi", owner=owner)
        with performance.watch(ModelSpec(id="m", path="m"), request) as seen:
            seen.add(Started(5))
    await counts.flush()
    assert not store.path.exists()


async def test_g37_ids_that_are_not_kept_leave_nothing_behind(store: Store) -> None:
    keys = KeyStore(store)
    counts = UsageCounts(keys)
    for number in range(100):
        counts.request(f"key_{number}")
    await counts.flush()
    with store.reading() as db:
        assert db is not None
        assert db.execute("SELECT count(*) FROM usage").fetchone() == (0,)
