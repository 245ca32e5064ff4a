"""The log of what administrators do."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.access import audit
from openai_gateway.access.audit import Audit
from openai_gateway.access.store import Store
from openai_gateway.errors import Unavailable
from tests.access.failing import full_disk


def test_the_newest_entries_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    log = Audit(Store(tmp_path / "keys.db"))
    assert log.entries() == []
    for number in range(5):
        log.record("me", "did", f"thing {number}", why=number)
    entries = log.entries(2)
    assert [(entry.subject, entry.detail) for entry in entries] == [("thing 4", {"why": 4}), ("thing 3", {"why": 3})]
    assert entries[0].at >= entries[1].at > 0


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "KEPT", 3)
    log = Audit(Store(tmp_path / "keys.db"))
    for number in range(5):
        log.record("me", "did", str(number))
    assert [entry.subject for entry in log.entries()] == ["4", "3", "2"]


def test_the_servers_log_tells_of_nothing_that_was_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", audit.logger.name)
    log = Audit(Store(tmp_path / "keys.db"))
    log.record("me", "did", "one")
    # SQLite needs 32 KB to begin a transaction, and has room for this one until it is committed.
    with full_disk(60_000), pytest.raises(Unavailable):
        log.record("me", "did", "two", why="x" * 100_000)
    log.record("me", "did", "three")
    assert [entry.subject for entry in log.entries()] == ["three", "one"]
    told = [record.getMessage() for record in caplog.records if record.name == audit.logger.name]
    assert told == ["me: did one {}", "me: did three {}"]
