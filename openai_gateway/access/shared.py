"""A small SQLite file that all processes of this machine share: exact while they run, and there after a restart.

A transaction takes some 50 microseconds and never waits for the disk: what the operating system has been given is safe
from the end of a process, also by force in the middle of a write. The end of the machine may cost what is in it.

The file may be removed or replaced meanwhile, by hand or by a process that has found it broken: each transaction looks
first whether its file still has the name. SQLite's own files beside it go by that name, whichever file they belong to;
so whoever opens or removes a file has the folder locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PATIENCE = 0.25
"""Seconds after which a lock that another process holds is taken for a failure; none is held for a millisecond."""
PAUSE = 1.0
"""Seconds for which what has failed is left alone."""
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SharedFailed(Exception):
    """What is shared cannot be read or written just now."""


class SharedFile:
    """The file, or the memory of this process where `path` is None; `prepare` is given each new connection."""

    def __init__(self, path: Path | None, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self._path = path
        self._prepare = prepare
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[sqlite3.Connection]:
        """One at a time, of all processes. Nothing may be awaited inside: this one has a single connection.

        Raises `SharedFailed`.
        """
        with self._translated():
            db = await self._begun()
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite ends it by itself where the disk is full
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; a later transaction opens another one."""
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _begun(self) -> sqlite3.Connection:
        """While another process has its transaction, the event loop goes on."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                db = self._current()
                db.execute("BEGIN IMMEDIATE")
                return db
            except (sqlite3.OperationalError, BlockingIOError) as error:
                if _code(error) not in (None, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.0005)

    def _current(self) -> sqlite3.Connection:
        """The open connection; another one where its file no longer has the name."""
        if self._db is not None and self._file != self._named():
            self.close()
        if self._db is None:
            with self._locked_folder():
                self._db = self._opened()
        return self._db

    def _named(self) -> tuple[int, int] | None:
        """The file that has the name now; None where there is none."""
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Raises BlockingIOError where somebody else has it."""
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(folder)

    def _opened(self) -> sqlite3.Connection:
        if self._path is not None and not self._path.exists():
            _remove(self._path)  # what a file that was removed by hand has left beside it
            self._path.touch(0o600)
        self._file = self._named()
        with contextlib.ExitStack() as unless_opened:
            db = sqlite3.connect(self._path or ":memory:", timeout=0, isolation_level=None)
            unless_opened.callback(db.close)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            self._prepare(db)
            db.execute("COMMIT")
            unless_opened.pop_all()
            return db

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            if _code(error) in BROKEN:
                self._begin_again()
            raise SharedFailed(f"{self._path}: {error}") from error

    def _begin_again(self) -> None:
        with contextlib.suppress(OSError), self._locked_folder():
            if self._path is not None and self._file == self._named():  # or somebody else has begun again already
                logger.warning("%s is broken; what is counted in it begins at nothing again", self._path)
                _remove(self._path)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _code(error: Exception) -> int | None:
    """SQLite's for an error; None for those of others."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
