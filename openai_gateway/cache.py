"""Whole answers of deterministic requests, kept in memory and, where several gateways share one, in a Redis.

An answer is found by a digest of everything that can change it. What cannot be found for whatever reason is a miss:
nothing here fails a request, or holds one up for longer than `PATIENCE`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import cachetools
import msgspec
from msgspec.structs import replace

from openai_gateway.types import Delta, Echo, Request, Started

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

PATIENCE = 0.05
"""Seconds that a Redis gets for one call …"""
PAUSE = 1.0
"""… and for which it is not called for the same again when it took longer, or is gone."""
REMINDER = 60.0
"""Seconds until the log says once more that it refuses something."""
CONNECTIONS = 16
OVERHEAD = 512
"""Bytes that an answer takes besides its own."""
SHARE = 8
"""The part of all memory that one answer may take is one of so many."""
PREFIX = "openai-gateway:answer:"

Kept = Started | Echo | Delta
"""What an answer is made of."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Kept, ...]).decode
_decode_shared = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


class Reuse(NamedTuple):
    """What a client allows: under Cache-Control `no-cache` nothing is read, under `no-store` nothing kept either."""

    read: bool = True
    store: bool = True


REUSE = Reuse()


def deterministic(request: Request) -> bool:
    """Whether the same request would be answered the same again. A temperature that is left out is not one of 0."""
    return request.sampling.temperature == 0 or request.sampling.seed is not None


def digest(request: Request, identity: bytes, day: date, *, shared: bool = False) -> bytes:
    """32 bytes that stand for a request to the model of this `identity`, and for its owner unless that is `shared`.

    Its model's name and its priority change nothing in an answer. The day does: chat templates write it into prompts.
    """
    asked = replace(request, model="", priority=0, owner="" if shared else request.owner)
    return sha256(_encode((identity, day.isoformat(), asked))).digest()


class Store(Protocol):
    """Where other gateways find answers too."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, value: bytes) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class Answers:
    """Keeps answers for `ttl` seconds, in at most `limit` bytes of memory.

    What is least recently used goes first, and of the owner who keeps the most: nobody's flood takes others' answers.
    """

    limit: int
    ttl: float
    store: Store | None = None
    shared: bool = False
    """Whether what one owner asked answers others as well."""
    clock: Callable[[], float] = time.monotonic
    today: Callable[[], date] = date.today
    _owners: dict[str, cachetools.TTLCache[bytes, bytes]] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Bytes of the largest answer that is kept."""
        return self.limit // SHARE

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return int(sum(kept.currsize for kept in self._owners.values()))

    def key(self, request: Request, identity: bytes, day: date) -> bytes:
        """What its answer is kept under, where it was asked on this day."""
        return digest(request, identity, day, shared=self.shared)

    def get(self, owner: str, key: bytes) -> tuple[Kept, ...] | None:
        """An answer that is in memory."""
        kept = self._owners.get(self._partition(owner))
        value = None if kept is None else kept.get(key)
        return None if value is None else _decode(value)

    async def find(self, key: bytes) -> tuple[Kept, ...] | None:
        """An answer that is elsewhere. It stays there alone, where its age is known."""
        value = await self.store.get(key) if self.store is not None else None
        if value is None:
            return None
        try:
            return _decode(value)
        except msgspec.MsgspecError:
            logger.warning("the store of answers holds something else, which is left alone")
            return None

    async def put(self, owner: str, key: bytes, events: Sequence[Kept]) -> None:
        """Keep a complete answer, here and elsewhere."""
        value = _encode(events)
        self._remember(owner, key, value)
        if self.store is not None and len(value) <= self.most:
            await self.store.put(key, value)

    async def close(self) -> None:
        """Close the connections to the store."""
        if self.store is not None:
            await self.store.close()

    def _partition(self, owner: str) -> str:
        return "" if self.shared else owner

    def _remember(self, owner: str, key: bytes, value: bytes) -> None:
        if len(value) > self.most:
            return
        name = self._partition(owner)
        mine = self._owners.get(name) or self._owners.setdefault(name, self._empty())
        mine[key] = value
        while self.size > self.limit:
            largest = max(self._owners, key=lambda name: self._owners[name].currsize)
            self._owners[largest].popitem()
        for name in [name for name, kept in self._owners.items() if not kept]:
            del self._owners[name]

    def _empty(self) -> cachetools.TTLCache[bytes, bytes]:
        return cachetools.TTLCache(math.inf, self.ttl, self.clock, lambda value: len(value) + OVERHEAD)


class RedisStore:
    """Answers in a Redis. A value carries its key, so that a reply that was meant for another call is none."""

    def __init__(
        self, url: str, ttl: float, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError for what is no URL of a Redis."""
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=patience, retry=Retry(NoBackoff(), 0)
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._ttl = max(1, int(ttl))
        self._patience = patience
        self._clock = clock
        self._resume = {"find": 0.0, "keep": 0.0}
        self._remind = -math.inf

    async def get(self, key: bytes) -> bytes | None:
        """The value, None where there is none or no Redis."""
        reply = await self._unless_slow("find", lambda: self._redis.get(PREFIX + key.hex()))
        if not isinstance(reply, bytes):
            return None
        try:
            owner, value = _decode_shared(reply)
        except msgspec.MsgspecError:
            return None
        return value if owner == key else None

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep a value; lost where there is no Redis."""
        content = _encode((key, value))
        await self._unless_slow("keep", lambda: self._redis.set(PREFIX + key.hex(), content, ex=self._ttl))

    async def close(self) -> None:
        """Close its connections."""
        await self._redis.aclose()

    async def _unless_slow(self, purpose: Literal["find", "keep"], call: Callable[[], Awaitable[object]]) -> object:
        """What the call returns; None where that takes too long or fails. A call that ends early takes its connection
        with it, so that no later one is given its reply."""
        from redis.exceptions import RedisError, ResponseError

        if self._clock() < self._resume[purpose]:
            return None
        try:
            async with asyncio.timeout(self._patience):
                return await call()
        except ResponseError as error:  # a full one still finds what it has
            self._refused(purpose, error)
        except (TimeoutError, OSError, RedisError) as error:
            self._resume[purpose] = self._clock() + PAUSE
            logger.warning("no Redis to %s answers in: %s", purpose, type(error).__name__)
        return None

    def _refused(self, purpose: str, error: Exception) -> None:
        if self._clock() >= self._remind:
            self._remind = self._clock() + REMINDER
            logger.warning("Redis refuses to %s an answer: %s", purpose, error)
