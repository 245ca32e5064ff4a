"""Whether a request carries the key; decided outside the router, so that no route can be forgotten."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from openai_gateway.api.envelope import error_response
from openai_gateway.errors import AuthenticationFailed

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})


class Auth:
    """Asks for `key` on everything but health checks and CORS preflights; None lets everybody in.

    The key comes as `Authorization: Bearer`, as `x-api-key` (Anthropic's clients) or as `api-key` (Azure's). Whose it
    is stands in `scope["state"]["owner"]` afterwards: a name that is always the same and does not tell the key.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        if key == "":
            raise ValueError("an empty key would let everybody in; None says that on purpose")
        self.app = app
        self.digest = None if key is None else sha256(key.encode()).digest()
        self.owner = "" if self.digest is None else self.digest.hex()[:16]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.digest is None or _open(scope):
            await self._let_in("", scope, receive, send)
            return
        presented = list(_presented(scope))
        # Digests have one length and tell nothing of the key, so neither has the time that comparing them takes.
        if any([hmac.compare_digest(self.digest, sha256(key).digest()) for key in presented]):
            await self._let_in(self.owner, scope, receive, send)
            return
        message = "Incorrect API key provided." if presented else "You did not provide an API key."
        refusal = AuthenticationFailed(f"{message} Send it as `Authorization: Bearer <key>`.")
        await error_response(refusal)(scope, receive, send)

    async def _let_in(self, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, receive, send)


def _open(scope: Scope) -> bool:
    # scope["path"] is what the router goes by; a URL built with the Host header can differ from it (CVE-2026-48710).
    return scope["method"] == "OPTIONS" or (scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS)


def _presented(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        if name in (b"x-api-key", b"api-key"):
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
