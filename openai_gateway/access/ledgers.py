"""Where ledgers are kept, and what stands in where that fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from openai_gateway.access.limits import Ledger, Rate
from openai_gateway.access.shared import PAUSE, SharedFailed, SharedFile

logger = logging.getLogger(__name__)

TRIES = 4
"""How often something is settled in a file that fails, `PAUSE` seconds apart."""
SWEEP = 1000
"""Of so many calls, one removes the ledgers that time has emptied."""

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, state BLOB, at INTEGER, idle INTEGER) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS idle ON ledger (idle)",
    "CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY, ahead INTEGER)",
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ledger).decode


class Charge(NamedTuple):
    """So much of one kind, for one whose ledger has this name."""

    name: str
    rate: Rate
    amount: int

    @classmethod
    def capped(cls, name: str, rate: Rate, amount: int) -> Charge:
        """What asks for more than can ever pass takes all that can, and owes the rest once it is settled."""
        return cls(name, rate, amount if rate.smallest is None else min(amount, max(1, rate.smallest)))

    def scaled(self, share: float) -> Charge:
        """The same, where only a part of each limit may pass."""
        return Charge.capped(self.name, self.rate.scaled(share), self.amount)


class Reply(NamedTuple):
    """What became of a reservation: all of it was taken, or nothing was."""

    taken: bool
    now: int
    charges: Sequence[Charge]
    """With the limits that they were held to."""
    ledgers: Sequence[Ledger]
    """One for each charge, as it is afterwards."""
    keeper: Ledgers
    """Who has taken them, and is to be told what was used."""


class Ledgers(Protocol):
    """Keeps ledgers. What reads or writes them raises `SharedFailed`."""

    async def reserve(self, charges: Sequence[Charge]) -> Reply:
        """Take all of the charges, or none."""
        ...

    async def settle(self, reply: Reply, used: int) -> None:
        """Correct every charge of a reservation to what was used of it. May take seconds: nobody is to wait for it."""
        ...

    async def close(self) -> None:
        """Give back what is open; a later call opens it again."""
        ...


def since_boot() -> int:
    """Microseconds of a clock that all processes share, that nobody can set, and that runs while the machine sleeps."""
    if sys.platform == "darwin":
        kind = time.CLOCK_MONOTONIC_RAW
    else:
        kind = time.CLOCK_BOOTTIME
    return time.clock_gettime_ns(kind) // 1000


class LocalLedgers:
    """The ledgers of this machine, or of this process alone where `path` is None.

    Time goes on from where it stood: `clock` starts again with the machine, and how long that was off counts as
    nothing, for only the wall clock could tell, and it can be set.
    """

    def __init__(self, path: Path | None, clock: Callable[[], int] = since_boot) -> None:
        self._file = SharedFile(path, self._prepare)
        self._clock = clock
        self._ahead = 0
        self._calls = 0

    async def reserve(self, charges: Sequence[Charge]) -> Reply:
        async with self._file.transaction() as db:
            now = self._now(db)
            ledgers = [_ledger(db, charge, now) for charge in charges]
            each = list(zip(charges, ledgers, strict=True))
            taken = all(ledger.fits(charge.rate, charge.amount) for charge, ledger in each)
            for charge, ledger in each if taken else ():
                if charge.amount:
                    ledger.take(charge.rate, charge.amount)
                    _save(db, charge, ledger)
            return Reply(taken, now, charges, ledgers, self)

    async def settle(self, reply: Reply, used: int) -> None:
        for _ in range(TRIES - 1):
            with contextlib.suppress(SharedFailed):  # nothing of it was done, so that it can be done again
                await self._settle(reply, used)
                return
            await asyncio.sleep(PAUSE)
        await self._settle(reply, used)

    async def close(self) -> None:
        self._file.close()

    async def _settle(self, reply: Reply, used: int) -> None:
        async with self._file.transaction() as db:
            now = self._now(db)
            for charge in reply.charges:
                ledger = _ledger(db, charge, now)
                ledger.settle(charge.rate, reply.now, charge.amount, used)
                _save(db, charge, ledger)

    def _prepare(self, db: sqlite3.Connection) -> None:
        for statement in SCHEMA:
            db.execute(statement)
        (latest,) = db.execute("SELECT ifnull(max(at), 0) FROM ledger").fetchone()
        (self._ahead,) = db.execute("SELECT ahead FROM clock").fetchone() or (0,)
        if self._clock() + self._ahead < latest:  # the machine was started again
            self._ahead = latest
        db.execute("INSERT OR REPLACE INTO clock VALUES (0, ?)", (self._ahead,))

    def _now(self, db: sqlite3.Connection) -> int:
        now = self._clock() + self._ahead
        self._calls += 1
        if self._calls % SWEEP == 0:
            idle = "SELECT name FROM ledger WHERE idle <= ? LIMIT ?"
            db.execute(f"DELETE FROM ledger WHERE name IN ({idle})", (now, 10 * SWEEP))
        return now


def _ledger(db: sqlite3.Connection, charge: Charge, now: int) -> Ledger:
    row = db.execute("SELECT state FROM ledger WHERE name = ?", (charge.name,)).fetchone()
    ledger = Ledger()
    if row:
        with contextlib.suppress(msgspec.MsgspecError):  # another version has written it
            ledger = _decode(row[0])
    ledger.advance(charge.rate, now)
    return ledger


def _save(db: sqlite3.Connection, charge: Charge, ledger: Ledger) -> None:
    row = (charge.name, _encode(ledger), ledger.at, ledger.idle_at(charge.rate))
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?)", row)


class Failover:
    """The `first` ledgers, and a `share` of every limit in the `second` ones while those fail.

    What fails is left alone for `PAUSE` seconds at a time, so that it costs hardly a request its time.
    """

    def __init__(self, first: Ledgers, second: Ledgers, share: float) -> None:
        self._first = first
        self._second = second
        self._share = share
        self._failing = False
        self._resume = 0.0

    async def reserve(self, charges: Sequence[Charge]) -> Reply:
        if time.monotonic() >= self._resume:
            try:
                reply = await self._first.reserve(charges)
            except SharedFailed as error:
                self._resume = time.monotonic() + PAUSE
                if not self._failing:
                    logger.warning("limits: %s; until that is over, %.3g of each applies here", error, self._share)
                self._failing = True
            else:
                if self._failing:
                    logger.warning("limits: that is over")
                self._failing = False
                return reply
        return await self._second.reserve([charge.scaled(self._share) for charge in charges])

    async def settle(self, reply: Reply, used: int) -> None:
        await reply.keeper.settle(reply, used)

    async def close(self) -> None:
        await self._first.close()
        await self._second.close()
