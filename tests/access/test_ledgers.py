"""Ledgers that processes share, with real files, real processes, and processes that are killed."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openai_gateway.access import ledgers as module
from openai_gateway.access import shared
from openai_gateway.access.ledgers import SWEEP, Charge, Failover, LocalLedgers
from openai_gateway.access.limits import SECOND, Rate
from openai_gateway.access.shared import SharedFailed
from tests.access.failing import busy
from tests.support import ROOT

pytestmark = pytest.mark.anyio

TEN = Rate(day=10)


class Clock:
    """Microseconds, as a test says."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def one(name: str = "a", rate: Rate = TEN, amount: int = 1) -> Charge:
    return Charge(name, rate, amount)


async def test_everything_is_taken_or_nothing_is(tmp_path: Path) -> None:
    ledgers = LocalLedgers(tmp_path / "limits.db")
    assert (await ledgers.reserve([one("a"), one("b", Rate(day=1))])).taken
    refused = await ledgers.reserve([one("a"), one("b", Rate(day=1))])
    assert not refused.taken
    assert [ledger.slots[2][1::2] for ledger in refused.ledgers] == [[1], [1]]
    for _ in range(9):
        assert (await ledgers.reserve([one("a")])).taken
    assert not (await ledgers.reserve([one("a")])).taken
    await ledgers.close()


async def test_asking_for_nothing_is_looking_and_never_refused(tmp_path: Path) -> None:
    ledgers = LocalLedgers(None)
    await ledgers.reserve([one(amount=10)])
    for _ in range(2):
        seen = await ledgers.reserve([one(amount=0)])
        assert seen.taken
        assert seen.ledgers[0].slots[2][1::2] == [10]


async def test_what_is_settled_is_what_was_used(tmp_path: Path) -> None:
    ledgers = LocalLedgers(None)
    reply = await ledgers.reserve([one(amount=10), one("b", Rate(day=100), 10)])
    await ledgers.settle(reply, 3)
    seen = await ledgers.reserve([one(amount=0), one("b", Rate(day=100), 0)])
    assert [ledger.slots[2][1::2] for ledger in seen.ledgers] == [[3], [3]]


async def test_g13_counters_survive_a_restart_of_the_gateway_and_one_of_the_machine(tmp_path: Path) -> None:
    clock = Clock(5000 * SECOND)
    ledgers = LocalLedgers(tmp_path / "limits.db", clock)
    await ledgers.reserve([one(rate=Rate(hour=10), amount=10)])
    await ledgers.close()
    clock.now += 10 * SECOND
    assert not (await ledgers.reserve([one(rate=Rate(hour=10))])).taken
    await ledgers.close()
    clock.now = 7 * SECOND  # the clock begins again with the machine
    ledgers = LocalLedgers(tmp_path / "limits.db", clock)
    refused = await ledgers.reserve([one(rate=Rate(hour=10))])
    assert not refused.taken
    wait, _ = refused.ledgers[0].wait(Rate(hour=10), 1)
    assert 3500 * SECOND < wait <= 3660 * SECOND
    clock.now += wait
    assert (await ledgers.reserve([one(rate=Rate(hour=10))])).taken
    await ledgers.close()


async def test_g12_the_wall_clock_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    ledgers = LocalLedgers(None)
    await ledgers.reserve([one(rate=Rate(burst=10, minute=10), amount=10)])
    for hours in (25, -25):
        for name, scale in (("time", 1), ("time_ns", 10**9)):
            jumped = (time.time_ns() // 10**9 + hours * 3600) * scale
            monkeypatch.setattr(time, name, lambda jumped=jumped: jumped)
        refused = await ledgers.reserve([one(rate=Rate(burst=10, minute=10))])
        assert not refused.taken
        assert refused.ledgers[0].wait(Rate(burst=10, minute=10), 1)[0] <= 61 * SECOND
        monkeypatch.undo()


HAMMER = """
import asyncio, sys
from pathlib import Path
from openai_gateway.access.ledgers import Charge, LocalLedgers
from openai_gateway.access.limits import Rate

async def main():
    ledgers = LocalLedgers(Path(sys.argv[1]))
    charges = [Charge("key", Rate(day=100), 1), Charge("everybody", Rate(day=1000), 1)]
    replies = await asyncio.gather(*(ledgers.reserve(charges) for _ in range(200)))
    print(sum(reply.taken for reply in replies))

asyncio.run(main())
"""


def hammering(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HAMMER, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_g09_four_processes_together_take_as_much_as_one_may(tmp_path: Path) -> None:
    running = [hammering(tmp_path / "limits.db") for _ in range(4)]
    assert sum(int(process.communicate(timeout=60)[0]) for process in running) == 100


async def test_a_process_that_is_killed_inside_a_transaction_takes_nothing_with_it(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    ledgers = LocalLedgers(file)
    await ledgers.reserve([one(amount=4)])
    killed = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('DELETE FROM ledger')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(file)], check=False).returncode == -9
    assert (await ledgers.reserve([one(amount=6)])).taken
    assert not (await ledgers.reserve([one()])).taken
    await ledgers.close()


async def test_the_event_loop_goes_on_while_another_process_has_the_lock(tmp_path: Path) -> None:
    ledgers = LocalLedgers(tmp_path / "limits.db")
    await ledgers.reserve([one()])
    with sqlite3.connect(tmp_path / "limits.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(ledgers.reserve([one()]))
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        other.execute("COMMIT")
        assert (await waiting).taken
    other.close()
    await ledgers.close()


async def test_a_lock_that_is_never_given_back_is_a_failure_and_then_a_share_of_the_limit_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = LocalLedgers(tmp_path / "limits.db")
    ledgers = Failover(shared, LocalLedgers(None), 0.25)
    assert (await ledgers.reserve([one()])).taken
    with busy(tmp_path / "limits.db"):
        with pytest.raises(SharedFailed):
            await shared.reserve([one()])
        with caplog.at_level(logging.WARNING):
            taken = [(await ledgers.reserve([one()])).taken for _ in range(10)]
        assert taken.count(True) == 2
        assert len(caplog.records) == 1
    await ledgers.close()


async def test_what_was_used_is_counted_though_the_file_was_locked_when_it_was_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(module, "TRIES", 10_000)
    ledgers = LocalLedgers(tmp_path / "limits.db")
    reply = await ledgers.reserve([one(amount=10)])
    with busy(tmp_path / "limits.db"):
        settling = asyncio.create_task(ledgers.settle(reply, 3))
        while ledgers._file._db is not None:  # until the first try has failed
            await asyncio.sleep(0.001)
    await settling
    assert (await ledgers.reserve([one(amount=0)])).ledgers[0].slots[2][1::2] == [3]
    await ledgers.close()


async def test_what_cannot_be_settled_is_given_up_after_some_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(shared, "PATIENCE", 0.0)
    ledgers = LocalLedgers(tmp_path / "limits.db")
    reply = await ledgers.reserve([one(amount=10)])
    with busy(tmp_path / "limits.db"), pytest.raises(SharedFailed, match="locked"):
        await ledgers.settle(reply, 3)
    await ledgers.close()


async def test_a_file_that_is_broken_is_begun_again(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    file.write_bytes(b"this is no database" * 1000)
    ledgers = LocalLedgers(file)
    with pytest.raises(SharedFailed):
        await ledgers.reserve([one()])
    assert (await ledgers.reserve([one()])).taken
    await ledgers.close()


async def test_a_ledger_that_another_version_has_written_is_begun_again(tmp_path: Path) -> None:
    file = tmp_path / "limits.db"
    ledgers = LocalLedgers(file)
    await ledgers.reserve([one(amount=10)])
    with sqlite3.connect(file) as other:
        other.execute("UPDATE ledger SET state = x'c1'")
    assert (await ledgers.reserve([one(amount=10)])).taken
    assert not (await ledgers.reserve([one()])).taken
    await ledgers.close()


async def test_g43_where_nothing_can_be_written_limits_hold_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledgers = Failover(LocalLedgers(tmp_path / "file" / "limits.db"), LocalLedgers(None), 1)
    assert [(await ledgers.reserve([one()])).taken for _ in range(12)].count(True) == 10
    await ledgers.close()


async def test_a_reservation_is_settled_where_it_was_made(tmp_path: Path) -> None:
    first, second = LocalLedgers(tmp_path / "limits.db"), LocalLedgers(None)
    ledgers = Failover(first, second, 1)
    reply = await ledgers.reserve([one(amount=10)])
    ledgers._resume = float("inf")
    await ledgers.settle(reply, 1)
    assert (await first.reserve([one(amount=9)])).taken
    assert (await second.reserve([one(amount=10)])).taken
    await ledgers.close()


async def test_g37_ten_thousand_keys_are_forgotten_when_their_time_is_over(tmp_path: Path) -> None:
    clock = Clock(SECOND)
    ledgers = LocalLedgers(tmp_path / "limits.db", clock)
    for number in range(10_000):
        await ledgers.reserve([one(f"key {number}", Rate(minute=10))])
    assert os.stat(tmp_path / "limits.db").st_size < 4_000_000
    clock.now += 62 * SECOND
    for _ in range(SWEEP):
        await ledgers.reserve([one("the last", Rate(minute=10))])
    with sqlite3.connect(tmp_path / "limits.db") as db:
        assert db.execute("SELECT name FROM ledger").fetchall() == [("the last",)]
    db.close()
    await ledgers.close()


def test_more_than_can_ever_pass_takes_all_that_can() -> None:
    charge = Charge.capped("a", Rate(minute=10, day=100), 5000)
    assert charge.amount == 10
    assert charge.scaled(0.5) == Charge("a", Rate(minute=5, day=50), 5)
    assert Charge.capped("a", Rate(day=0), 5).amount == 1
