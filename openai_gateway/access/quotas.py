"""Who is held to which limits, and what a refusal says; counts nothing itself.

A request is counted when it comes, before its body is read: for its key, and for everybody together. Its tokens are
reserved when it is known what it asks for (those of its prompt as estimated, and those that it allows its answer, up to
a bound), and settled to what they were when it has ended, however it did. An answer out of the cache has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple

from openai_gateway.access.estimate import estimate
from openai_gateway.access.keys import Key
from openai_gateway.access.ledgers import Charge, Ledgers, Reply
from openai_gateway.access.limits import Standing, inherited, rate_of_requests, rate_of_tokens
from openai_gateway.access.places import Places
from openai_gateway.access.shared import SharedFailed
from openai_gateway.errors import RateLimited, TokensLimited
from openai_gateway.types import Delta, Event, Limits, ModelSpec, Request, Started

logger = logging.getLogger(__name__)

NONE = Limits()
Kind = Literal["requests", "tokens"]
BUSY = 1_000_000
"""Microseconds after which somebody is asked to come again who has too many requests in progress: nobody knows."""


class Scope(NamedTuple):
    """One who is counted for himself."""

    kind: Literal["key", "model", "everybody"]
    name: str
    limits: Limits

    @property
    def words(self) -> str:
        """How a message names it."""
        return {"key": "your API key", "model": f"the model `{self.name}`", "everybody": "this server"}[self.kind]


class Due(NamedTuple):
    """What a scope is charged."""

    scope: Scope
    kind: Kind
    charge: Charge

    @property
    def tokens(self) -> bool:
        return self.kind == "tokens"


class Caller:
    """Whose request it is. All requests of a key that are in progress have the same one."""

    def __init__(self, scopes: tuple[Scope, ...]) -> None:
        self.scopes = scopes
        self.requests = 0
        self.standings: dict[Kind, Standing] = {}
        self.seen = 0.0

    def see(self, dues: Iterable[Due], reply: Reply) -> None:
        """Remember how much is left of what."""
        self.seen = time.monotonic()
        found = [
            (due.kind, standing)
            for due, charge, ledger in zip(dues, reply.charges, reply.ledgers, strict=True)
            if due.scope.kind != "model" and (standing := ledger.standing(charge.rate)) is not None
        ]
        for kind in dict.fromkeys(kind for kind, _ in found):
            self.standings[kind] = min((s for k, s in found if k == kind), key=lambda standing: standing.remaining)


class Bill:
    """Adds up the tokens of one request."""

    def __init__(self) -> None:
        self._prompt = 0
        self._answer = 0
        self._cached = False

    def add(self, event: Event) -> None:
        """Take one more event into account. This runs for every token."""
        if isinstance(event, Delta):
            self._answer += event.tokens
        elif isinstance(event, Started):
            self._prompt = 0 if event.queued else event.prompt_tokens  # nothing of it is read in the queue
            self._cached = event.answer == "hit"

    @property
    def tokens(self) -> int:
        """What is to be paid for."""
        return 0 if self._cached else self._prompt + self._answer


class Quotas:
    """Holds the requests of each key to its own limits and for the rest to `defaults`, all together to `everybody`,
    and those to a model to the model's.

    `limited` are the keys of the store only; or also master keys, and callers without a key, who are counted as one;
    or none at all. `refused` is told the scope's kind and the limit of each refusal.
    """

    def __init__(
        self,
        ledgers: Ledgers,
        places: Places,
        *,
        defaults: Limits,
        everybody: Limits = NONE,
        limited: Literal["keys", "all", "none"] = "keys",
        token_reserve: int = 1024,
        refused: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._ledgers = ledgers
        self._places = places
        self._defaults = defaults
        self._everybody = [Scope("everybody", "", everybody)] if everybody != NONE and limited != "none" else []
        self._limited = limited
        self._token_reserve = token_reserve
        self._refused = refused
        self._callers: dict[str, Caller] = {}
        self._settling: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def caller(self, key: Key) -> Iterator[Caller | None]:
        """Whose request it is, for as long as it is in progress; None where there is no limit to it."""
        scopes = (*self._own(key), *self._everybody)
        if not scopes:
            yield None
            return
        caller = self._callers.setdefault(key.id, Caller(scopes))
        caller.scopes = scopes  # its limits may have been changed
        caller.requests += 1
        try:
            yield caller
        finally:
            caller.requests -= 1
            if not caller.requests:
                del self._callers[key.id]

    @contextlib.asynccontextmanager
    async def admitted(self, caller: Caller) -> AsyncIterator[None]:
        """Counts a request and lets it in, or raises `RateLimited`."""
        async with contextlib.AsyncExitStack() as stack:
            for scope in caller.scopes:
                await self._enter(stack, scope)
            await self._reserve(caller, [*_dues(caller.scopes, "requests", 1), *_dues(caller.scopes, "tokens", 0)])
            yield

    async def look(self, caller: Caller) -> None:
        """Bring what the caller knows of his limits up to date."""
        await self._reserve(caller, [*_dues(caller.scopes, "requests", 0), *_dues(caller.scopes, "tokens", 0)])

    def charge(self, spec: ModelSpec, requests: Sequence[Request]) -> AbstractAsyncContextManager[Callable[[], Bill]]:
        """Held while the requests of one body, which count as one, are answered by this model: reserves their tokens,
        and settles what the bills say in the end. Raises `RateLimited` when it is entered."""
        caller = self._callers.get(requests[0].owner)
        model = Scope("model", spec.id, spec.limits if self._limited != "none" else NONE)
        scopes = (*(caller.scopes if caller else self._everybody), model)
        dues = [
            *_dues((model,), "requests", 1),
            *_dues(scopes, "tokens", sum(estimate(request, spec, self._token_reserve) for request in requests)),
        ]
        if not dues and model.limits.concurrency is None:
            return contextlib.nullcontext(Bill)
        return self._charged(caller, model, dues)

    async def close(self) -> None:
        """Wait until everything is settled, and give back what is open."""
        await asyncio.gather(*self._settling)
        await self._places.close()
        await self._ledgers.close()

    def _own(self, key: Key) -> list[Scope]:
        created = key.created > 0  # as only the store's keys were
        if not (self._limited == "all" or (self._limited == "keys" and created)):
            return []
        return [Scope("key", key.id, inherited(key.limits, self._defaults))]

    @contextlib.asynccontextmanager
    async def _charged(self, caller: Caller | None, model: Scope, dues: list[Due]) -> AsyncIterator[Callable[[], Bill]]:
        bills: list[Bill] = []

        def another() -> Bill:
            bills.append(Bill())
            return bills[-1]

        async with contextlib.AsyncExitStack() as stack:
            await self._enter(stack, model)
            # Whoever is cancelled on the way neither leaves a reservation behind, nor keeps one.
            reserving = asyncio.ensure_future(self._reserve(caller, dues))
            try:
                await asyncio.shield(reserving)
                yield another
            finally:
                task = asyncio.ensure_future(self._settle(reserving, dues, bills))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)

    async def _enter(self, stack: contextlib.AsyncExitStack, scope: Scope) -> None:
        most = scope.limits.concurrency
        if most is None or await stack.enter_async_context(self._places.taken(f"{scope.kind}:{scope.name}", most)):
            return
        self._refused(scope.kind, "concurrency")
        raise RateLimited.after(f"Limit reached for {scope.words}: {most} requests in progress.", BUSY)

    async def _reserve(self, caller: Caller | None, dues: list[Due]) -> Reply | None:
        if not dues:
            return None
        reply = await self._ledgers.reserve([due.charge for due in dues])
        if caller is not None:
            caller.see(dues, reply)
        if not reply.taken:
            raise self._refusal(dues, reply)
        return reply

    async def _settle(self, reserving: asyncio.Future[Reply | None], dues: list[Due], bills: list[Bill]) -> None:
        try:
            reply = await reserving
            if reply is not None and (tokens := [c for c, due in zip(reply.charges, dues, strict=True) if due.tokens]):
                await self._ledgers.settle(reply._replace(charges=tokens), sum(bill.tokens for bill in bills))
        except RateLimited:
            pass  # then nothing was reserved
        except SharedFailed as error:
            logger.warning("limits: %s; tokens stay reserved until their time is over", error)

    def _refusal(self, dues: list[Due], reply: Reply) -> RateLimited:
        """Names the limit that asks for the longest wait."""
        asked = zip(dues, reply.charges, reply.ledgers, strict=True)
        waits = [(*ledger.wait(charge.rate, charge.amount), due, charge) for due, charge, ledger in asked]
        wait, rule, due, charge = max((each for each in waits if each[3].amount), key=lambda each: each[0])
        unit = "minute" if due.tokens and rule == "burst" else rule
        self._refused(due.scope.kind, f"{due.kind}_{unit}")
        often = "at once" if unit == "burst" else f"per {unit}"
        return (TokensLimited if due.tokens else RateLimited).after(
            f"Rate limit reached for {due.scope.words}: {getattr(charge.rate, rule)} {due.kind} {often}, "
            f"{charge.amount} requested.",
            wait,
        )


def _dues(scopes: Iterable[Scope], kind: Kind, amount: int) -> Iterator[Due]:
    """What those of the scopes are charged that have limits of this kind."""
    for scope in scopes:
        rate = (rate_of_tokens if kind == "tokens" else rate_of_requests)(scope.limits)
        if rate.smallest is not None:
            yield Due(scope, kind, Charge.capped(f"{scope.kind}:{scope.name}:{kind}", rate, amount))
