"""How many requests are in progress, in all processes of this machine; those of a process that died are not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from openai_gateway.access.shared import PAUSE, SharedFailed, SharedFile

logger = logging.getLogger(__name__)

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS place "
    "(name TEXT, process INTEGER, taken INTEGER, PRIMARY KEY (name, process)) WITHOUT ROWID"
)


class Places:
    """Lends places, at most so many of a name at once.

    Each process holds a lock on a byte of its own, in a file beside the shared one. The system lets go of it when the
    process ends, however it does, and from then on its places count for nobody.

    Where the file fails, each process counts for itself and leaves it alone, but for one try every `PAUSE` seconds to
    write down what it has lent meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._file = SharedFile(path, self._prepare)
        self._lock_path = path.with_name(path.name + ".alive")
        self._lock: int | None = None
        self._process = secrets.randbits(62)
        self._own: Counter[str] = Counter()
        self._recovery: asyncio.Task[None] | None = None
        self._returns: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def taken(self, name: str, most: int) -> AsyncIterator[bool]:
        """Whether a place could be had; it has been given back when the block is over."""
        had = await self._take(name, most)  # who is cancelled in it has none: taking one is not interrupted
        try:
            yield had
        finally:
            if had:
                await asyncio.shield(self._returned(name))

    async def close(self) -> None:
        """Wait until every place is given back, and close the files."""
        await asyncio.gather(*self._returns)
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
            self._recovery = None
        self._file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self, db: sqlite3.Connection) -> None:
        if self._lock is None:
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._process)
        db.execute(SCHEMA)
        self._set_all(db)  # it may be another file than before

    async def _take(self, name: str, most: int) -> bool:
        try:
            async with self._transaction() as db:
                had = self._taken(db, name) < most or self._reaped(db, name) < most
                if had:
                    self._set(db, name, self._own[name] + 1)
        except SharedFailed:
            had = self._own[name] < most
        if had:
            self._own[name] += 1
        return had

    def _returned(self, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._give_back(name))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)
        return task

    async def _give_back(self, name: str) -> None:
        self._own[name] -= 1
        if not self._own[name]:
            del self._own[name]
        with contextlib.suppress(SharedFailed):
            async with self._transaction() as db:
                self._set(db, name, self._own[name])

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[sqlite3.Connection]:
        """Raises `SharedFailed`: at once while the file is left alone."""
        if self._recovery is not None:
            raise SharedFailed
        try:
            async with self._file.transaction() as db:
                yield db
        except SharedFailed as error:
            if self._recovery is None:  # and several have not found out at the same time
                logger.warning("limits: %s; each process counts requests in progress for itself", error)
                self._recovery = asyncio.create_task(self._recover())
            raise

    async def _recover(self) -> None:
        while self._recovery is not None:
            await asyncio.sleep(PAUSE)
            with contextlib.suppress(SharedFailed):
                async with self._file.transaction() as db:
                    self._set_all(db)
                logger.warning("limits: that is over; requests in progress are counted together again")
                self._recovery = None

    def _set(self, db: sqlite3.Connection, name: str, taken: int) -> None:
        if taken:
            db.execute("INSERT OR REPLACE INTO place VALUES (?, ?, ?)", (name, self._process, taken))
        else:
            db.execute("DELETE FROM place WHERE name = ? AND process = ?", (name, self._process))

    def _set_all(self, db: sqlite3.Connection) -> None:
        # Writes in any case, so that it fails on a disk that is full.
        db.execute("INSERT OR REPLACE INTO place VALUES ('', ?, 0)", (self._process,))
        db.execute("DELETE FROM place WHERE process = ?", (self._process,))
        for name, taken in self._own.items():
            self._set(db, name, taken)

    def _taken(self, db: sqlite3.Connection, name: str) -> int:
        """Of all processes. What the file says of this one may be out of date."""
        others = "SELECT ifnull(sum(taken), 0) FROM place WHERE name = ? AND process != ?"
        return int(db.execute(others, (name, self._process)).fetchone()[0]) + self._own[name]

    def _reaped(self, db: sqlite3.Connection, name: str) -> int:
        """How many are taken, without those of processes that are no more."""
        for (process,) in db.execute("SELECT process FROM place WHERE name = ?", (name,)).fetchall():
            if process != self._process and not self._lives(process):
                db.execute("DELETE FROM place WHERE process = ?", (process,))
        return self._taken(db, name)

    def _lives(self, process: int) -> bool:
        if self._lock is None:
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, process)
        except OSError:
            return True
        fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, process)
        return False
