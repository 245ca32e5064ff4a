"""Ledgers in a Redis, for several machines: one call of a Lua script to reserve, and one to settle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from openai_gateway.access.ledgers import Charge, Reply
from openai_gateway.access.limits import Ledger
from openai_gateway.access.shared import SharedFailed

PREFIX = "{openai-gateway:limits}:"
"""In braces, for a cluster to keep all that one script needs in one place."""
CONNECTIONS = 16
LATE = 3.0
"""Seconds for which a reply is awaited beyond the time that a request waits for it."""

_decode = msgspec.msgpack.Decoder(Ledger).decode


class RedisLedgers:
    """Fails rather than have a request wait for more than `timeout` seconds.

    A call that ends early takes its connection with it, as redis-py does it, or the next one there would read the
    reply to this one. A reservation that takes too long may still be made, while the request is counted elsewhere: it
    goes on for a while, and what it takes is given back.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """Raises ValueError for what is no URL of a Redis."""
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=timeout + LATE, retry=Retry(NoBackoff(), 0), protocol=2
        )
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(Path(__file__).with_name("limits.lua").read_text())
        self._timeout = timeout
        self._late: set[asyncio.Task[None]] = set()

    async def reserve(self, charges: Sequence[Charge]) -> Reply:
        call = asyncio.ensure_future(self._reserve(charges))
        try:
            await asyncio.wait([call], timeout=self._timeout)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not call.done():
            task = asyncio.ensure_future(self._give_back(call))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise SharedFailed("no answer of Redis in time")
        return call.result()

    async def settle(self, reply: Reply, used: int) -> None:
        await self._call("settle", reply.charges, reply.now, used)

    async def close(self) -> None:
        await asyncio.gather(*self._late)
        await self._redis.aclose()

    async def _reserve(self, charges: Sequence[Charge]) -> Reply:
        taken, now, states = await self._call("reserve", charges, 0, 0)
        return Reply(bool(taken), now, charges, [_decode(state) for state in states], self)

    async def _give_back(self, call: asyncio.Future[Reply]) -> None:
        with contextlib.suppress(SharedFailed):
            reply = await call
            if reply.taken:
                await self.settle(reply, 0)

    async def _call(self, action: str, charges: Sequence[Charge], taken: int, used: int) -> Any:
        keys = [PREFIX + charge.name for charge in charges]
        limits = [-1 if limit is None else limit for charge in charges for limit in (charge.amount, *charge.rate)]
        try:
            async with asyncio.timeout(self._timeout + LATE):
                return await self._script(keys, [action, taken, used, *limits])
        except (TimeoutError, OSError, RedisError) as error:
            raise SharedFailed(f"no answer of Redis ({type(error).__name__})") from error
