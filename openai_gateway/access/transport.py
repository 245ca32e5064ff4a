"""How a request came here: from whom, where proxies stand in between, and whether the way was encrypted."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from openai_gateway.access.permissions import OPEN, needed
from openai_gateway.api.envelope import error_response
from openai_gateway.errors import PermissionDenied
from openai_gateway.settings import Settings


class RequireHttps:
    """Refuses what came over plain HTTP, but health checks. It does not redirect: the key has been overheard by then.

    The scheme is the server's, or what a trusted proxy says of its client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["scheme"] == "https" or needed(scope["method"], scope["path"]) == OPEN:
            await self.app(scope, receive, send)
            return
        refusal = PermissionDenied("This server answers over HTTPS only. A key sent without it should be rotated.")
        await error_response(refusal)(scope, receive, send)


def proxies(settings: Settings) -> list[Middleware]:
    """Has everything behind it see the client, and not the trusted proxy that it came through."""
    if not settings.proxies:
        return []
    return [Middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.proxies])]


def https(settings: Settings) -> list[Middleware]:
    """Refuses plain HTTP where the settings say so."""
    return [Middleware(RequireHttps)] if settings.require_https else []
