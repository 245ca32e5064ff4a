"""Which names the gateway answers to.

A page in a browser can point a name of its own at 127.0.0.1 and so talk to a server that only listens there (DNS
rebinding); its requests carry that name as Host, and are refused here. Health checks are not: they come to an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from openai_gateway.access.permissions import OPEN, needed
from openai_gateway.api.envelope import error_response
from openai_gateway.errors import GatewayError, InvalidRequest, PermissionDenied

HOST = re.compile(rb"[A-Za-z0-9._:%\[\]-]+")

REFUSED = "This server does not answer to the name in the Host header: see `allowed_hosts` in its settings."


class Hosts:
    """Lets requests for the `allowed` names pass, with any port; `*` allows every name."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self.app = app
        self.allowed = frozenset(_bare(name) for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal: GatewayError | None = None
        try:
            host = sole_host(scope["headers"], scope["http_version"])
            if not self._allows(host) and needed(scope["method"], scope["path"]) != OPEN:
                refusal = PermissionDenied(REFUSED)
        except InvalidRequest as error:
            refusal = error
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _allows(self, host: str) -> bool:
        return "*" in self.allowed or _name(host) in self.allowed


def sole_host(headers: Iterable[tuple[bytes, bytes]], version: str) -> str:
    """The one Host header; empty where there is none, which HTTP `version` 1.0 alone allows. Raises InvalidRequest."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version != "1.0" and not hosts):
        raise InvalidRequest("A request needs exactly one Host header.")
    if not all(HOST.fullmatch(host) for host in hosts):
        # `a/v1/models?` as a host made one path for whoever built a URL with it, and another for the router.
        raise InvalidRequest("The Host header is not a host.")
    return hosts[0].decode() if hosts else ""


def _name(host: str) -> str:
    """The name in a Host header: without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        name, _, port = host.partition("]")
        # Whatever else follows the bracket is no port, and makes it no name of ours.
        return host if port and not port.startswith(":") else _bare(name)
    return _bare(host.partition(":")[0])


def _bare(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()
