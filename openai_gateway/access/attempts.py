"""Slows down who tries keys until one fits; knows addresses and statuses, no keys."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_gateway.access.limits import Ledger, Rate
from openai_gateway.access.permissions import OPEN, needed
from openai_gateway.api.envelope import error_response
from openai_gateway.errors import RateLimited

RATE = Rate(burst=20, minute=20)
ADDRESSES = 4096
"""Remembered at most; those that failed longest ago are forgotten first."""


class Attempts:
    """Refuses an address for a while after `RATE` requests with a wrong key, before another key is looked at.

    An IPv6 address counts as its network of 64 bits, which is what one customer gets. This machine's own are let
    through: behind a proxy that is not listed as trusted, everybody's would be that one. Each process counts alone.
    """

    def __init__(
        self, app: ASGIApp, refused: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._refused = refused
        self._clock = clock
        self._failures: OrderedDict[str, Ledger] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        network = _network(scope["client"][0]) if scope.get("client") else None
        if network is None or needed(scope["method"], scope["path"]) == OPEN:
            await self.app(scope, receive, send)
            return
        if wait := self._wait(network):
            self._refused("address", "failed_keys")
            refusal = RateLimited.after("Too many requests with a wrong API key.", wait)
            await error_response(refusal)(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            # Who sends no key tries none, like a monitor that has an address in common with others.
            refused = message["type"] == "http.response.start" and message["status"] == 401
            if refused and scope["state"]["key_presented"]:
                self._fail(network)
            await send(message)

        await self.app(scope, receive, watched)

    def _wait(self, network: str) -> int:
        ledger = self._failures.get(network)
        if ledger is None:
            return 0
        ledger.advance(RATE, int(self._clock() * 1e6))
        return ledger.wait(RATE, 1)[0]

    def _fail(self, network: str) -> None:
        ledger = self._failures.setdefault(network, Ledger())
        ledger.advance(RATE, int(self._clock() * 1e6))
        ledger.take(RATE, 1)
        self._failures.move_to_end(network)
        if len(self._failures) > ADDRESSES:
            self._failures.popitem(last=False)


@lru_cache(ADDRESSES)
def _network(client: str) -> str | None:
    """Who is asking; None where nobody is held to anything."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:  # a name: a local socket
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    address = mapped or address
    if address.is_loopback:
        return None
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
