"""What a key is, and what its store does to it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from openai_gateway.access.audit import Audit
from openai_gateway.access.keys import ORDINARY, Key, KeyStore, Usage, digest
from openai_gateway.access.store import Store
from openai_gateway.errors import InvalidRequest, NotFound
from openai_gateway.types import Limits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.db"


@pytest.fixture
def keys(file: Path) -> KeyStore:
    return KeyStore(Store(file))


def find(keys: KeyStore, secret: str) -> Key | None:
    return keys.find(digest(secret.encode()))


def test_a_key_is_found_by_what_was_shown_once_and_that_is_kept_nowhere(keys: KeyStore, file: Path) -> None:
    key, secret = keys.create("alice", actor="me")
    assert secret.startswith("sk-og-")
    assert len(secret) >= 48
    assert find(keys, secret) == key
    assert (key.shown[:10], key.shown[-4:]) == (secret[:10], secret[-4:])
    kept = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert key.id.encode() in kept
    assert secret.encode() not in kept


@pytest.mark.parametrize("other", ["", "sk-og-", "' OR 1=1 --", "%", "\x00"])
def test_b2_auth_store_injection_and_cache_collision_find_nothing(keys: KeyStore, other: str) -> None:
    _, secret = keys.create("alice", actor="me")
    for wrong in (other, secret[:20], secret[:-1], f"{secret} ", f"{secret}{other}x", secret.upper()):
        assert find(keys, wrong) is None
    assert keys.find(digest(secret.encode())[:16]) is None


def test_without_a_file_there_are_no_keys_and_looking_makes_none(keys: KeyStore, file: Path) -> None:
    assert keys.list() == []
    assert find(keys, "sk-og-x") is None
    assert not file.parent.exists()


def test_only_its_owner_can_read_the_store(keys: KeyStore, file: Path) -> None:
    keys.create("alice", actor="me")
    find(keys, "x")
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in file.parent.iterdir()} == {0o600}


def test_g16_what_another_process_does_to_a_key_holds_for_the_next_look(keys: KeyStore, file: Path) -> None:
    key, secret = keys.create("alice", actor="me")
    assert find(keys, secret)
    code = (
        "import sys, pathlib\n"
        "from openai_gateway.access.keys import KeyStore\n"
        "from openai_gateway.access.store import Store\n"
        "KeyStore(Store(pathlib.Path(sys.argv[1]))).revoke(sys.argv[2], actor='other')"
    )
    subprocess.run([sys.executable, "-c", code, str(file), key.id], check=True)
    found = find(keys, secret)
    assert found is not None
    assert found.state == "revoked"


def test_a_rotated_key_keeps_its_id_and_loses_its_secret(keys: KeyStore) -> None:
    key, old = keys.create("alice", actor="me")
    rotated, new = keys.rotate("alice", actor="me")
    assert rotated.id == key.id
    assert rotated.shown != key.shown
    assert (find(keys, old), find(keys, new)) == (None, rotated)


def test_g17_a_key_is_good_until_the_moment_it_expires(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = keys.create("alice", actor="me", expires=1000.0)
    states: list[str] = []
    for now in (999.999, 1000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        states.append(key.state)
    assert states == ["active", "expired"]


def test_a_revoked_key_cannot_come_back(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me")
    first = keys.revoke("alice", actor="me")
    assert keys.revoke("alice", actor="me") == first
    with pytest.raises(InvalidRequest, match="revoked"):
        keys.rotate("alice", actor="me")
    found = find(keys, secret)
    assert found is not None
    assert found.state == "revoked"


def test_a_deleted_key_is_gone_with_its_usage(keys: KeyStore) -> None:
    key, secret = keys.create("alice", actor="me")
    keys.add_usage({key.id: Usage(requests=1)})
    keys.delete(key.id, actor="me")
    keys.add_usage({key.id: Usage(requests=1)})
    assert find(keys, secret) is None
    assert keys.list() == []
    with pytest.raises(NotFound):
        keys.get(key.id)


def test_a_key_is_named_by_its_id_or_by_a_name_that_no_other_has(keys: KeyStore) -> None:
    alice, _ = keys.create("alice", actor="me")
    twin, _ = keys.create("twin", actor="me")
    keys.create("twin", actor="me")
    assert keys.get("alice")[0] == keys.get(alice.id)[0] == alice
    assert keys.get(twin.id)[0] == twin
    with pytest.raises(InvalidRequest, match="2 keys"):
        keys.get("twin")


def test_what_is_changed_is_changed_and_the_rest_stays(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me", models=["a"], limits=Limits(burst=3))
    keys.change("alice", actor="me", name="bob", permissions=("chat",), models=None)
    found = find(keys, secret)
    assert found is not None
    assert (found.name, found.permissions, found.models, found.limits.burst) == ("bob", ("chat",), None, 3)


def test_usage_adds_up(keys: KeyStore) -> None:
    key, _ = keys.create("alice", actor="me")
    keys.add_usage({key.id: Usage(1, 2, 3, 4, 5, 60.0)})
    keys.add_usage({key.id: Usage(1, 2, 3, 4, 5, 50.0)})
    assert keys.get(key.id)[1] == Usage(2, 4, 6, 8, 10, 60.0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\x1b[31m"}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"permissions": ["chat", "fly"]}, "permissions"),
        ({"models": []}, "models"),
        ({"expires": -1.0}, "expires"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(keys: KeyStore, fields: dict[str, object], param: str) -> None:
    keys.create("alice", actor="me")
    with pytest.raises(InvalidRequest) as made:
        keys.create(**{"name": "bob", "actor": "me", **fields})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as changed:
        keys.change("alice", actor="me", **fields)
    assert (made.value.param, changed.value.param) == (param, param)
    assert [key.name for key, _ in keys.list()] == ["alice"]


@pytest.mark.parametrize(
    ("own", "wanted", "may"),
    [
        ("chat", "chat", True),
        ("generate:chat", "chat", True),
        ("generate:text", "completions", True),
        ("generate:chat", "completions", False),
        ("chat", "admin", False),
        ("admin", "chat", False),
    ],
)
def test_a_permission_gives_what_it_says_under_its_older_name_too(own: str, wanted: str, may: bool) -> None:
    assert Key(id="k", name="k", shown="", permissions=(own,)).may(wanted) is may


def test_every_change_is_in_the_audit_log_with_who_did_it_and_no_secret(keys: KeyStore, file: Path) -> None:
    key, first = keys.create("alice", actor="one", models=["a"], limits=Limits(burst=2), expires=9e9)
    keys.change("alice", actor="two", limits=Limits(burst=3))
    _, second = keys.rotate("alice", actor="three")
    keys.revoke("alice", actor="four")
    keys.delete("alice", actor="five")
    entries = Audit(Store(file)).entries()
    assert [(entry.actor, entry.action, entry.subject) for entry in reversed(entries)] == [
        ("one", "create key", key.id),
        ("two", "change key", key.id),
        ("three", "rotate key", key.id),
        ("four", "revoke key", key.id),
        ("five", "delete key", key.id),
    ]
    assert entries[4].detail == {
        "name": "alice",
        "permissions": list(ORDINARY),
        "models": ["a"],
        "limits": {"burst": 2},
        "expires": 9e9,
    }
    assert entries[3].detail == {"limits": {"burst": 3}}
    assert first not in str(entries)
    assert second not in str(entries)
