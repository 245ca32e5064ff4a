"""API keys: what one is, and where they are kept.

A key is shown once, when it is made. Kept is its SHA-256 digest, which is all that it is ever looked up by; a slow
hash would protect passwords that people think up, and adds nothing to 256 random bits.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from openai_gateway.access.audit import recording
from openai_gateway.access.store import Store
from openai_gateway.errors import InvalidRequest, NotFound
from openai_gateway.types import Limits

PREFIX = "sk-og-"
STORED = "key_"
"""How the ids of stored keys begin, and nobody else's."""

PERMISSIONS = ("chat", "completions", "embeddings", "audio", "batch", "models", "metrics", "admin")
OLDER_NAMES = {"generate:text": "completions", "generate:chat": "chat", "generate:stream": "stream"}
"""Permissions as earlier deployments write them → what they allow; `stream` is for routes that do nothing else."""
ORDINARY = ("chat", "completions", "embeddings", "audio", "batch", "models")
"""What a new key may do unless somebody says otherwise: everything that tells nothing of other keys."""


class Key(Struct, frozen=True):
    """What is known of a key; times in seconds of Unix time."""

    id: str
    """Stays the same when the key is rotated, and tells nothing of it: caches and logs know a key by it."""
    name: str
    shown: str
    """Its first and last characters, for people to recognise it by."""
    permissions: tuple[str, ...]
    models: tuple[str, ...] | None = None
    """Ids or aliases of the models that it may use; None: all."""
    limits: Limits = Limits()
    """Of its own; what is None is as for every key."""
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything now."""
        if self.revoked is not None:
            return "revoked"
        return "active" if self.expires is None or time.time() < self.expires else "expired"

    def may(self, permission: str) -> bool:
        """Whether it has the permission, by whatever name."""
        return any(OLDER_NAMES.get(own, own) == permission for own in self.permissions)


class Usage(Struct):
    """What a key was used for; `last_used` in seconds of Unix time, 0 where it never was."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    last_used: float = 0.0


def digest(secret: bytes) -> bytes:
    """What a key is looked up by."""
    return sha256(secret).digest()


def new_secret() -> str:
    """A key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


class KeyStore:
    """The keys of a store. What changes them raises `InvalidRequest`, `NotFound` and `Unavailable`.

    Every method but `find` may wait for the disk: not on the event loop. `actor` goes to the audit log.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, wanted: bytes) -> Key | None:
        """The key with this digest, whatever its state, as of the last commit of any process."""
        with self._store.glancing() as db:
            row = db.execute("SELECT digest, record FROM keys WHERE digest = ?", (wanted,)).fetchone() if db else None
        if row is None or not hmac.compare_digest(row[0], wanted):
            return None
        return msgspec.json.decode(row[1], type=Key)

    def get(self, name: str) -> tuple[Key, Usage]:
        """One by its id, or by its name where no other has the same."""
        with self._store.reading() as db:
            return _named(_all(db) if db else [], name)

    def create(
        self,
        name: str,
        *,
        actor: str,
        permissions: Sequence[str] = ORDINARY,
        models: Sequence[str] | None = None,
        limits: Limits | None = None,
        expires: float | None = None,
    ) -> tuple[Key, str]:
        """A new key, and the key itself, which nobody can be told again."""
        key = Key(
            id=STORED + secrets.token_hex(8),
            name=name,
            shown="",
            permissions=tuple(dict.fromkeys(permissions)),
            models=None if models is None else tuple(models),
            limits=limits or Limits(),
            created=time.time(),
            expires=expires,
        )
        _check(key)
        secret = new_secret()
        key = _shown(key, secret)
        asked = {name: getattr(key, name) for name in ("name", "permissions", "models", "limits", "expires")}
        with recording(self._store) as (db, record):
            row = (key.id, digest(secret.encode()), msgspec.json.encode(key))
            db.execute("INSERT INTO keys (id, digest, record) VALUES (?, ?, ?)", row)
            record(actor, "create key", key.id, **asked)
        return key, secret

    def change(self, name: str, /, *, actor: str, **fields: Any) -> Key:
        """Give a key another name, permissions, models, limits or expiry."""
        with recording(self._store) as (db, record):
            key = replace(_named(_all(db), name)[0], **fields)
            _check(key)
            _update(db, key)
            record(actor, "change key", key.id, **fields)
        return key

    def rotate(self, name: str, *, actor: str) -> tuple[Key, str]:
        """The same key under a new secret; the old one is refused from now on."""
        secret = new_secret()
        with recording(self._store) as (db, record):
            key = _shown(_named(_all(db), name)[0], secret)
            if key.state == "revoked":
                raise InvalidRequest("This key was revoked; make a new one.")
            _update(db, key)
            db.execute("UPDATE keys SET digest = ? WHERE id = ?", (digest(secret.encode()), key.id))
            record(actor, "rotate key", key.id)
        return key, secret

    def revoke(self, name: str, *, actor: str) -> Key:
        """Refuse the key from now on; its record and its usage stay."""
        with recording(self._store) as (db, record):
            key = _named(_all(db), name)[0]
            if key.revoked is None:
                key = replace(key, revoked=time.time())
                _update(db, key)
                record(actor, "revoke key", key.id)
        return key

    def delete(self, name: str, *, actor: str) -> Key:
        """Forget the key and its usage; the audit log remembers that it was."""
        with recording(self._store) as (db, record):
            key = _named(_all(db), name)[0]
            db.execute("DELETE FROM keys WHERE id = ?", (key.id,))
            db.execute("DELETE FROM usage WHERE key = ?", (key.id,))
            record(actor, "delete key", key.id, name=key.name)
        return key

    def add_usage(self, added: Mapping[str, Usage]) -> None:
        """Add to what each key, by its id, was used for; ids that are no longer kept are left out."""
        rows = [(key, *msgspec.structs.astuple(usage)) for key, usage in added.items()]
        with self._store.writing() as db:
            db.executemany(
                "INSERT INTO usage SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM keys WHERE id = ?1) "
                "ON CONFLICT (key) DO UPDATE SET requests = requests + ?2, prompt_tokens = prompt_tokens + ?3, "
                "cached_tokens = cached_tokens + ?4, completion_tokens = completion_tokens + ?5, "
                "reasoning_tokens = reasoning_tokens + ?6, last_used = max(last_used, ?7)",
                rows,
            )

    def list(self) -> list[tuple[Key, Usage]]:
        """All of them with their usage so far, the oldest first."""
        with self._store.reading() as db:
            return _all(db) if db else []


def _all(db: sqlite3.Connection) -> list[tuple[Key, Usage]]:
    usages = {row[0]: Usage(*row[1:]) for row in db.execute("SELECT * FROM usage")}
    keys = [msgspec.json.decode(row[0], type=Key) for row in db.execute("SELECT record FROM keys")]
    return [(key, usages.get(key.id, Usage())) for key in sorted(keys, key=lambda key: key.created)]


def _named(keys: Sequence[tuple[Key, Usage]], name: str) -> tuple[Key, Usage]:
    found = [pair for pair in keys if pair[0].id == name] or [pair for pair in keys if pair[0].name == name]
    if not found:
        raise NotFound("There is no such key.")
    if len(found) > 1:
        raise InvalidRequest(f"There are {len(found)} keys with this name; say which by its id.")
    return found[0]


def _update(db: sqlite3.Connection, key: Key) -> None:
    db.execute("UPDATE keys SET record = ? WHERE id = ?", (msgspec.json.encode(key), key.id))


def _shown(key: Key, secret: str) -> Key:
    return replace(key, shown=f"{secret[: len(PREFIX) + 4]}...{secret[-4:]}")


def _check(key: Key) -> None:
    if not 0 < len(key.name) <= 100 or not key.name.isprintable():
        raise InvalidRequest("The name of a key has 1 to 100 printable characters.", param="name")
    known = (*PERMISSIONS, *OLDER_NAMES)
    for permission in key.permissions:
        if permission not in known:
            message = f"There is no permission `{permission}`; there are {', '.join(known)}."
            raise InvalidRequest(message, param="permissions")
    if key.models is not None and not key.models:
        raise InvalidRequest("Without any model the key opens nothing; leave `models` out for all.", param="models")
    if key.expires is not None and not 0 < key.expires < 10**11:
        raise InvalidRequest("`expires` is a time in seconds of Unix time.", param="expires")
