"""Places that processes share, also with processes that die while they have some."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from openai_gateway.access import places as module
from openai_gateway.access import shared
from openai_gateway.access.places import Places
from tests.access.failing import busy, full_disk
from tests.support import ROOT

pytestmark = pytest.mark.anyio

HOLDER = """
import asyncio, sys
from contextlib import AsyncExitStack
from pathlib import Path
from openai_gateway.access.places import Places

async def main():
    places = Places(Path(sys.argv[1]))
    async with AsyncExitStack() as stack:
        print([await stack.enter_async_context(places.taken("key", 3)) for _ in range(2)], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await places.close()

asyncio.run(main())
"""


ASKER = """
import asyncio, sys
from pathlib import Path
from openai_gateway.access.places import Places

async def main():
    places = Places(Path(sys.argv[1]))
    async with places.taken("a", 1) as had:
        print(had)
    await places.close()

asyncio.run(main())
"""


def another_has(file: Path) -> bool:
    """Whether another process gets the only place."""
    command = [sys.executable, "-c", ASKER, str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "limits.db"


@pytest.fixture
async def places(file: Path) -> AsyncIterator[Places]:
    found = Places(file)
    yield found
    await found.close()


async def recovered(places: Places) -> None:
    """The file works again, and has what was lent meanwhile."""
    assert places._recovery is not None
    await asyncio.wait_for(places._recovery, 60)


def holder(file: Path) -> subprocess.Popen[str]:
    """A process that has two places."""
    command = [sys.executable, "-c", HOLDER, str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "[True, True]\n"
    return process


async def have(places: Places, *names: str, most: int = 3) -> list[bool]:
    """Who of so many at once gets a place; all are given back."""
    async with AsyncExitStack() as stack:
        had = [await stack.enter_async_context(places.taken(name, most)) for name in names]
    await asyncio.gather(*places._returns)
    return had


async def test_so_many_at_once_and_again_when_they_are_given_back(places: Places) -> None:
    for _ in range(2):
        assert await have(places, *"aaaab") == [True, True, True, False, True]
    assert await have(places, "a", most=0) == [False]


async def test_who_is_cancelled_keeps_no_place(places: Places) -> None:

    async def stay() -> None:
        async with places.taken("a", 3):
            await asyncio.Event().wait()

    for turns in range(5):
        tasks = [asyncio.create_task(stay()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await asyncio.gather(*places._returns)
    assert await have(places, *"aaa") == [True] * 3


async def test_places_of_other_processes_count_while_those_live(places: Places, file: Path) -> None:
    other = holder(file)
    assert await have(places, "key", "key") == [True, False]
    other.communicate("", timeout=20)
    assert await have(places, *["key"] * 4) == [True, True, True, False]


async def test_places_of_a_process_that_was_killed_count_for_nobody(places: Places, file: Path) -> None:
    other = holder(file)
    assert await have(places, "key", "key") == [True, False]
    other.kill()
    other.communicate()
    assert await have(places, *["key"] * 4) == [True, True, True, False]


async def test_where_the_file_fails_a_process_counts_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = Places(tmp_path / "file" / "limits.db")
    for _ in range(2):
        assert await have(places, *"aaaa") == [True, True, True, False]
    await places.close()


async def test_a_place_that_could_not_be_given_back_at_once_is_there_again(
    places: Places, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    async with AsyncExitStack() as stack:
        assert await stack.enter_async_context(places.taken("a", 1))
        with busy(file):
            await stack.aclose()
            assert await have(places, *"aa", most=1) == [True, False]
    await recovered(places)
    assert another_has(file)
    assert await have(places, *"aa", most=1) == [True, False]


async def test_a_place_has_been_given_back_when_its_block_is_over(places: Places, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        async with places.taken("a", 1):
            assert db.execute("SELECT name, taken FROM place").fetchall() == [("a", 1)]
        assert db.execute("SELECT name, taken FROM place").fetchall() == []


async def test_a_place_is_free_again_before_the_file_says_so(
    places: Places, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 60.0)
    async with AsyncExitStack() as stack:
        assert await stack.enter_async_context(places.taken("a", 1))
        with busy(file):
            returning = asyncio.create_task(stack.aclose())
            await asyncio.sleep(0.01)
        assert await have(places, "a", most=1) == [True]  # nobody else has looked at the file since
        await returning


async def test_places_lent_while_the_file_failed_count_when_it_works_again(
    places: Places, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    await have(places, "a")
    with busy(file):
        block = places.taken("a", 1)
        assert await block.__aenter__()
    await recovered(places)
    assert not another_has(file)
    assert await have(places, "a", most=1) == [False]
    await block.__aexit__(None, None, None)
    assert another_has(file)


async def test_places_count_in_the_next_file_when_theirs_is_removed(places: Places, file: Path) -> None:
    async with places.taken("a", 1):
        file.unlink()
        await have(places, "b")
        assert not another_has(file)
    assert another_has(file)


async def test_a_file_that_failed_is_left_alone_for_a_while_so_that_nobody_waits_for_it(
    places: Places, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 3600.0)
    await have(places, "a")
    with busy(file):
        assert await have(places, *"aaaa") == [True, True, True, False]
    async with places.taken("a", 3) as had:
        assert had
        with contextlib.closing(sqlite3.connect(file)) as db:
            assert db.execute("SELECT * FROM place").fetchall() == []


async def test_a_disk_that_is_full_is_told_of_once_until_there_is_room(
    places: Places, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    await have(places, "a")
    other = Places(file)  # as in another process: what SQLite keeps beside the file is there already
    await have(other, "b")
    with full_disk(file.with_name("limits.db-wal").stat().st_size):
        for _ in range(5):
            assert await have(places, *"aaaa") == [True, True, True, False]
            await asyncio.sleep(0.02)
        (record,) = caplog.records
        assert "limits.db: disk I/O error;" in record.getMessage()
    await recovered(places)
    assert len(caplog.records) == 2
    assert await have(places, *"aaaa") == [True, True, True, False]
    await other.close()
