from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from openai_gateway.access.audit import Audit
from openai_gateway.access.keys import KeyStore, Usage, digest
from openai_gateway.access.store import Store
from openai_gateway.cli import app


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("OPENAI_GATEWAY_KEY_STORE", str(tmp_path / "keys.db"))
    return Store(tmp_path / "keys.db")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_new_key_stands_alone_on_stdout_and_opens_the_store(store: Store) -> None:
    result = run("create", "alice", "--allow", "chat", "--allow", "models", "--model", "demo", "--limit", "burst=5")
    (secret,) = result.stdout.splitlines()
    key = KeyStore(store).find(digest(secret.encode()))
    assert key is not None
    assert (key.permissions, key.models, key.limits.burst) == (("chat", "models"), ("demo",), 5)
    assert f"{key.id}: this key is not shown again" in result.stderr
    assert [entry.actor for entry in Audit(store).entries()] == ["command line"]


def test_what_is_listed_and_shown_is_never_a_secret(store: Store) -> None:
    made = json.loads(run("create", "alice", "--json").stdout)
    KeyStore(store).add_usage({made["id"]: Usage(3, 10, 0, 5, 0, 1e9)})
    for arguments in (["list"], ["list", "--json"], ["show", "alice"], ["show", "alice", "--json"]):
        output = run(*arguments).output
        assert made["id"] in output
        assert made["shown"] in output
        assert made["secret"] not in output
    assert run("list").stdout.splitlines()[1].split()[-5:-2] == ["models", "3", "15"]
    assert json.loads(run("show", "alice", "--json").stdout)["prompt_tokens"] == 10


def test_a_key_is_rotated_revoked_and_deleted(store: Store) -> None:
    first = run("create", "alice").stdout.strip()
    second = run("rotate", "alice").stdout.strip()
    keys = KeyStore(store)
    assert keys.find(digest(first.encode())) is None
    assert keys.find(digest(second.encode()))
    run("revoke", "alice")
    found = keys.find(digest(second.encode()))
    assert found is not None
    assert found.state == "revoked"
    assert CliRunner().invoke(app, ["keys", "delete", "alice"], input="n\n").exit_code == 1
    assert keys.list()
    run("delete", "alice", "--yes")
    assert keys.list() == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 90 * 86_400), ("12h", 12 * 3600), ("30m", 1800), ("2100-01-31", None)]
)
def test_an_expiry_is_a_time_from_now_or_a_date(text: str, seconds: int | None) -> None:
    before = time.time()
    expires = json.loads(run("create", "alice", "--expires", text, "--json").stdout)["expires"]
    if seconds is None:
        assert time.strftime("%Y-%m-%d", time.localtime(expires)) == text
    else:
        assert before + seconds <= expires <= time.time() + seconds


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "a", "--limit", "fly=1"], 2, "--limit: there is no limit `fly`; the limits are burst, "),
        (["create", "a", "--limit", "burst"], 2, "--limit: `burst` is not NAME=NUMBER with a whole number"),
        (["create", "a", "--limit", "burst=-1"], 2, "--limit: `burst=-1` is not NAME=NUMBER"),
        (["create", "a", "--limit", "burst=1=2"], 2, "--limit: `burst=1=2` is not NAME=NUMBER"),
        (["create", "a", "--limit", "requests_per_day=none"], 2, "--limit: `requests_per_day=none` is not NAME=NUMBER"),
        (["create", "a", "--limit", f"burst={10**9}"], 2, "--limit: `burst` is a whole number or `none`, and at most"),
        (["create", "a", "--expires", "soon"], 2, "soon"),
        (["create", "a", "--expires", "2020-01-01"], 2, "not in the future"),
        (["create", "a", "--expires", "0d"], 2, "not in the future"),
        (["create", "a", "--expires", "9" * 400 + "d"], 2, "nor a date"),
        (["create", "a", "--allow", "fly"], 1, "there are chat"),
        (["show", "nobody"], 1, "no such key"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments, code=code)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_burst_that_nothing_earns_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_LIMITS", "burst=none, requests_per_minute=none")
    assert "`burst` needs `requests_per_minute`" in run("create", "a", "--limit", "burst=5", code=2).stderr
    run("create", "a", "--limit", "burst=5", "--limit", "requests_per_minute=5")


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_bytes(b"not a store" * 1000)
    assert f"{tmp_path / 'keys.db'}: file is not a database" in run("create", "a", code=1).stderr
