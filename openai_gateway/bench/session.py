"""A whole measurement: which servers, what of them, how often; and what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from openai_gateway.address import Address
from openai_gateway.bench.compare import Local, contenders
from openai_gateway.bench.desk import Plan
from openai_gateway.bench.run import Contender, Remote, run, steps
from openai_gateway.bench.scenarios import NAMES
from openai_gateway.bench.server import Server, meet
from openai_gateway.bench.sheet import Sheet

ASSUMED_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Place:
    """A server that somebody named; without a model, it is asked for its first one."""

    name: str
    address: Address
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """`NAME=URL[#MODEL]`, the key in the URL as a password. Raises `ValueError`."""
        name, found, url = text.partition("=")
        parts = urlsplit(url)
        if not name or not found:
            raise ValueError(f"`{text}`: a server is named NAME=URL, such as ollama=http://localhost:11434/v1.")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        key = unquote(parts.password) if parts.password else None
        return cls(name, Address(bare, key), unquote(parts.fragment) or None)


@dataclass(frozen=True, slots=True)
class Session:
    """What to measure. `context` is in tokens, `timeout` in seconds; `local` are servers to be started here."""

    places: tuple[Place, ...] = ()
    local: Local | None = None
    scenarios: tuple[str, ...] = NAMES
    plan: Plan = field(default_factory=Plan)
    rounds: int = 1
    context: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        names = [place.name for place in self.places] + (["plain", "gateway", "mlx_lm.server"] if self.local else [])
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"Two servers are called `{double}`.")
        if unknown := next((name for name in self.scenarios if name not in NAMES), None):
            raise ValueError(f"There is no scenario `{unknown}`; there are {', '.join(NAMES)}.")
        if not self.scenarios or min(self.plan.streams, default=0) < 1:
            raise ValueError("There is nothing to measure: name a scenario, and numbers of streams from 1 on.")
        if self.local:
            self.local.libraries()  # now, for it says what is wrong with one

    async def measure(self, progress: Callable[[str, float], None]) -> Results:
        """Raises `Failed` if a server does not answer. `progress` gets what comes next, and the share done."""
        async with self._contenders() as found:
            sheet = Sheet()
            if self.local and (chosen := self.local.libraries()):
                sheet.notes[f"each that was started here {chosen.summary}"] = None
            plan = self._plan([c.server for c in found if isinstance(c, Remote)], sheet)
            order = steps(self.scenarios, plan)
            await run(sheet, found, order, plan, self.rounds, progress)
            return Results(self, plan, sheet, [_described(contender) for contender in found])

    @asynccontextmanager
    async def _contenders(self) -> AsyncIterator[list[Contender]]:
        named: list[Contender] = [
            Remote(await meet(p.name, p.address, model=p.model, context=self.context, timeout=self.timeout))
            for p in self.places
        ]
        if self.local is None:
            yield named
            return
        async with contenders(self.local) as started:
            yield [*started, *named]

    def _plan(self, servers: Sequence[Server], sheet: Sheet) -> Plan:
        """The same prompts for all: as long as the shortest context and the longest tokens allow."""
        known = [server.context for server in servers if server.context is not None]
        context = self.context or min(known, default=ASSUMED_CONTEXT)
        if not known and not self.context:
            sheet.notes[f"no server says its context length: {context} tokens are assumed (--context)"] = None
        for server in servers:
            if not server.counts_tokens:
                sheet.page("", server.name).note("it sends no usage, so each chunk is counted as a token")
        return replace(self.plan, context=context, tokens_per_word=max(server.tokens_per_word for server in servers))


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured, and of whom."""

    session: Session
    plan: Plan
    sheet: Sheet
    servers: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        return [server["name"] for server in self.servers]

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, for the JSON report."""
        local = self.session.local
        return {
            "scenarios": list(self.session.scenarios),
            "rounds": self.session.rounds,
            "streams": list(self.plan.streams),
            "max_tokens": self.plan.max_tokens,
            "context": self.plan.context,
            "tokens_per_word": self.plan.tokens_per_word,
            "batch": local.batch if local else None,
            "libraries": chosen.summary if local and (chosen := local.libraries()) else None,
        }


def _described(contender: Contender) -> dict[str, Any]:
    """What the report says of a contender; no key."""
    if not isinstance(contender, Remote):
        return {"name": contender.name}
    server = contender.server
    return {
        "name": server.name,
        "url": server.address.url,
        "model": server.model,
        "context_length": server.context,
        "fields": server.extras,
        "sends_usage": server.counts_tokens,
    }
