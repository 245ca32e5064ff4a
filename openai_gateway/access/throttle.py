"""Lets requests in as often as limits say, and tells clients how far they are from them; knows headers, no numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_gateway.access.permissions import OPEN, needed
from openai_gateway.access.quotas import Caller, Quotas
from openai_gateway.api.envelope import error_response
from openai_gateway.errors import RateLimited

FRESH = 1.0
"""Seconds for which what was known of somebody's limits may still be told."""


class Throttle:
    """Counts what is posted, but for administration: everything that makes a model work.

    It stands behind `Auth`, which has found out whose request it is, and in front of everything that reads a body.
    """

    def __init__(self, app: ASGIApp, quotas: Quotas) -> None:
        self.app = app
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or needed(scope["method"], scope["path"]) == OPEN:
            await self.app(scope, receive, send)
            return
        with self._quotas.caller(scope["state"]["key"]) as caller:
            if caller is None:
                await self.app(scope, receive, send)
                return
            counted = scope["method"] == "POST" and not scope["path"].startswith("/admin/")
            await self._limited(caller, counted, scope, receive, send)

    async def _limited(self, caller: Caller, counted: bool, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                if time.monotonic() - caller.seen > FRESH:
                    await self._quotas.look(caller)
                message = {**message, "headers": [*message.get("headers", ()), *_headers(caller)]}
            elif not message.get("more_body"):
                # With the end of its answer a client may ask again at once, and must not find itself in progress.
                await progress.aclose()
            await send(message)

        async with contextlib.AsyncExitStack() as progress:
            if counted:
                try:
                    await progress.enter_async_context(self._quotas.admitted(caller))
                except RateLimited as refusal:
                    await error_response(refusal)(scope, receive, told)
                    return
            await self.app(scope, receive, told)


def _headers(caller: Caller) -> Iterator[tuple[bytes, bytes]]:
    """Those of OpenAI's API, for the rule of each kind that has the least left."""
    for kind, standing in caller.standings.items():
        yield f"x-ratelimit-limit-{kind}".encode(), b"%d" % standing.limit
        yield f"x-ratelimit-remaining-{kind}".encode(), b"%d" % standing.remaining
        yield f"x-ratelimit-reset-{kind}".encode(), duration(standing.reset).encode()


def duration(microseconds: int) -> str:
    """As Go writes one, to the millisecond above: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = -(-microseconds // 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest // 1000}.{rest % 1000:03}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + seconds
