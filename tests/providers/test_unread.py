"""What waits for a slow reader is joined without losing anything, and is bounded."""

from __future__ import annotations

import asyncio

import pytest

from openai_gateway.providers.unread import PIECES, Unread, joined, size
from openai_gateway.types import CallDelta, Delta, Echo, Event, Failed, Progress, Started, TokenLogprob

pytestmark = pytest.mark.anyio

ENTRY = TokenLogprob("a", b"a", -0.5, (("a", b"a", -0.5), ("b", b"b", -1.0)))


async def test_deltas_that_piled_up_come_as_one_for_each_choice_with_all_that_they_held() -> None:
    unread = Unread(10_000_000)
    for place in range(500):
        for index in (1, 0):
            last = place == 499
            unread.put(
                Delta(index, f"{place} ", f"r{place} ", (ENTRY,) * index, 2, 1, "length" if last and index else None)
            )
    one, zero = await unread.get(), await unread.get()
    content, reasoning = (
        "".join(f"{place} " for place in range(500)),
        "".join(f"r{place} " for place in range(500)),
    )
    assert one == Delta(1, content, reasoning, (ENTRY,) * 500, 1000, 500, "length")
    assert zero == Delta(0, content, reasoning, (), 1000, 500, None)


async def test_a_reader_that_keeps_up_gets_every_delta_by_itself() -> None:
    unread = Unread(100)
    deltas = [Delta(0, "x", tokens=1), Delta(0, "y", tokens=1), Delta(1, "z", tokens=1, finish="stop")]
    seen: list[Event] = []

    async def read() -> None:
        while len(seen) < 3:
            seen.append(await unread.get())

    reading = asyncio.create_task(read())
    for delta in deltas:
        await asyncio.sleep(0)
        unread.put(delta)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await reading
    assert seen == deltas


async def test_the_prompt_comes_before_the_answer_and_a_failure_after_it() -> None:
    unread = Unread(100)
    failure = Failed("WorkerDied", "x")
    for event in (
        Started(9), Progress(1, 9), Progress(5, 9), Echo("p"), Started(9, 4), Echo("q"), Delta(0, "a"), Delta(0, "b"),
        failure,
    ):  # fmt: skip
        unread.put(event)
    assert [await unread.get() for _ in range(6)] == [
        Started(9, 4),
        Progress(5, 9),
        Echo("p"),
        Echo("q"),
        Delta(0, "ab"),
        failure,
    ]


async def test_it_is_overfull_only_while_the_reader_is_elsewhere() -> None:
    unread = Unread(10)
    unread.put(Delta(0, "x" * 6))
    assert not unread.overfull
    unread.put(Delta(1, reasoning="y" * 5))
    assert unread.overfull
    await unread.get()
    assert not unread.overfull
    await unread.get()

    reading = asyncio.ensure_future(unread.get())
    await asyncio.sleep(0)
    unread.put(Delta(0, "x" * 50))  # the reader waits for it, and only has not had its turn
    assert not unread.overfull
    assert await reading == Delta(0, "x" * 50)


async def test_log_probabilities_count_as_well() -> None:
    unread = Unread(1000)
    for _ in range(20):
        unread.put(Delta(0, logprobs=(ENTRY,)))
    assert unread.overfull


async def test_many_small_deltas_are_held_as_few() -> None:
    unread = Unread(10_000_000)
    for _ in range(100_000):
        unread.put(Delta(0, "x"))
    (pile,) = unread._deltas.values()
    assert len(pile) < PIECES
    assert await unread.get() == Delta(0, "x" * 100_000)


async def test_a_reader_that_is_cancelled_loses_nothing_for_the_next() -> None:
    unread = Unread(10)
    reading = asyncio.ensure_future(unread.get())
    await asyncio.sleep(0)
    unread.put(Delta(0, "a"))
    reading.cancel()
    await asyncio.wait([reading])
    unread.put(Delta(0, "b"))
    assert await unread.get() == Delta(0, "ab")


def test_joining_keeps_the_size() -> None:
    deltas = [Delta(3, "ab", "c", (ENTRY, ENTRY), 1), Delta(3, "", "d", (), 1), Delta(3, "e", finish="stop")]
    assert joined(deltas) == Delta(3, "abe", "cd", (ENTRY, ENTRY), 2, 0, "stop")
    assert size(joined(deltas)) == sum(map(size, deltas))


async def test_parts_of_a_call_are_joined_and_what_begins_it_stays_by_itself() -> None:
    unread = Unread(10)
    for calls in (
        (CallDelta(0, id="a", name="f"),),
        (CallDelta(0, "{"),),
        (CallDelta(0, "}"), CallDelta(1, id="b", name="f")),
        (CallDelta(1, "12345"),),
    ):
        unread.put(Delta(0, "x", calls=calls, tokens=1))
    assert unread.overfull
    joined = (CallDelta(0, id="a", name="f"), CallDelta(0, "{}"), CallDelta(1, id="b", name="f"), CallDelta(1, "12345"))
    assert await unread.get() == Delta(0, "xxxx", calls=joined, tokens=4)
    assert unread._size == 0
