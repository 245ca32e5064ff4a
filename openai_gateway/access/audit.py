"""Who changed what, when: a row for every action of an administrator, in the file of the keys."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from openai_gateway.access.store import Store

logger = logging.getLogger("openai_gateway.audit")

KEPT = 100_000
"""Rows; the oldest go first."""

COMMAND_LINE = "command line"
"""The actor where it was no key."""


class Entry(Struct, frozen=True):
    """One action; `at` in seconds of Unix time."""

    number: int
    at: float
    actor: str
    """Id of a key, which is `master` for the one of the settings, or `COMMAND_LINE`."""
    action: str
    subject: str
    detail: dict[str, Any]
    """What was asked for, never a secret."""


class Record(Protocol):
    """Adds a row to a transaction."""

    def __call__(self, actor: str, action: str, subject: str, /, **detail: Any) -> None: ...


@contextlib.contextmanager
def recording(store: Store) -> Iterator[tuple[sqlite3.Connection, Record]]:
    """A transaction that what it does is recorded in, so that there is never the one without the other.

    The server's log tells of it when it is committed. Raises `Unavailable`.
    """
    rows: list[tuple[str, str, str, str]] = []

    def record(actor: str, action: str, subject: str, /, **detail: Any) -> None:
        rows.append((actor, action, subject, json.dumps(msgspec.to_builtins(detail))))
        db.execute(
            "INSERT INTO audit (at, actor, action, subject, detail) VALUES (?, ?, ?, ?, ?)", (time.time(), *rows[-1])
        )
        db.execute("DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?", (KEPT,))

    with store.writing() as db:
        yield db, record
    for row in rows:
        logger.info("%s: %s %s %s", *row)


class Audit:
    """The log of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, actor: str, action: str, subject: str, /, **detail: Any) -> None:
        """Add a row for what changes nothing in the store itself. Raises `Unavailable`."""
        with recording(self._store) as (_, record):
            record(actor, action, subject, **detail)

    def entries(self, limit: int = 100) -> list[Entry]:
        """The newest rows, newest first."""
        with self._store.reading() as db:
            found = db.execute("SELECT * FROM audit ORDER BY number DESC LIMIT ?", (limit,)).fetchall() if db else []
        return [
            Entry(number=number, at=at, actor=actor, action=action, subject=subject, detail=json.loads(detail))
            for number, at, actor, action, subject, detail in found
        ]
