"""A file that processes share, when it is removed, broken or replaced under their hands."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from openai_gateway.access.ledgers import Charge, LocalLedgers
from openai_gateway.access.limits import Rate
from openai_gateway.access.shared import SharedFailed, SharedFile
from tests.access.failing import full_disk

pytestmark = pytest.mark.anyio


def of_ten(amount: int) -> list[Charge]:
    """So much of a limit of ten."""
    return [Charge("a", Rate(day=10), amount)]


async def test_when_the_file_is_removed_all_go_on_together_in_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    first, second = LocalLedgers(file), LocalLedgers(file)
    await first.reserve(of_ten(10))
    file.unlink()  # and what SQLite keeps beside it stays
    assert (await second.reserve(of_ten(6))).taken
    assert not (await first.reserve(of_ten(5))).taken
    assert (await first.reserve(of_ten(4))).taken
    assert not (await second.reserve(of_ten(1))).taken
    await first.close()
    await second.close()


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("UPDATE ledger SET idle = idle + 1")
print("open", flush=True)
sys.stdin.read()
"""


async def test_what_a_removed_file_leaves_beside_it_is_not_taken_for_that_of_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    ledgers = LocalLedgers(file)
    await ledgers.reserve(of_ten(1))
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert idle.stdout is not None
        assert idle.stdout.readline() == b"open\n"
        file.unlink()
        assert [(await ledgers.reserve(of_ten(5))).taken for _ in range(3)] == [True, True, False]
        idle.communicate()
    await ledgers.close()


async def test_when_the_file_breaks_all_go_on_together_in_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    first, second = LocalLedgers(file), LocalLedgers(file)
    for ledgers in (first, second):
        await ledgers.reserve(of_ten(1))
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with file.open("r+b") as content:
        content.write(b"this is no database" * 1000)
    with pytest.raises(SharedFailed):
        await first.reserve(of_ten(1))
    assert (await first.reserve(of_ten(6))).taken
    assert (await second.reserve(of_ten(4))).taken
    assert not (await first.reserve(of_ten(1))).taken
    await first.close()
    await second.close()


async def test_whoever_finds_its_file_broken_leaves_another_one_alone_that_has_its_name_by_now(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    late, early = SharedFile(file, lambda _: None), LocalLedgers(file)
    broken = sqlite3.DatabaseError("broken")
    broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with pytest.raises(SharedFailed):
        async with late.transaction():
            file.unlink()
            assert (await early.reserve(of_ten(10))).taken
            raise broken
    assert not (await LocalLedgers(file).reserve(of_ten(1))).taken
    await early.close()


async def test_a_folder_that_somebody_keeps_locked_is_a_failure(tmp_path: Path) -> None:
    one, other = SharedFile(tmp_path / "limits.db", lambda _: None), SharedFile(tmp_path / "limits.db", lambda _: None)
    with one._locked_folder(), pytest.raises(SharedFailed):
        async with other.transaction():
            pass
    async with other.transaction():
        pass
    other.close()


async def test_a_disk_that_is_full_is_said_to_be(tmp_path: Path) -> None:
    def prepare(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS a (b)")

    file = tmp_path / "limits.db"
    shared = SharedFile(file, prepare)
    async with shared.transaction() as db:
        db.execute("INSERT INTO a VALUES (1)")
    with (
        full_disk(file.with_name("limits.db-wal").stat().st_size),
        pytest.raises(SharedFailed, match=r"limits\.db: .*disk"),
    ):
        async with shared.transaction() as db:
            db.execute("INSERT INTO a VALUES (2)")
    async with shared.transaction() as db:
        assert db.execute("SELECT b FROM a").fetchall() == [(1,)]
    shared.close()
