"""Who asks, and whether they may; decided outside the router, so that no route can be forgotten.

Credentials are read from headers (and from the query, where that is switched on), never from cookies: a page in
somebody's browser has none to send along.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable, Iterator
from urllib.parse import unquote_plus

from starlette.types import ASGIApp, Receive, Scope, Send

from openai_gateway.access.keys import OLDER_NAMES, PERMISSIONS, Key, KeyStore, digest
from openai_gateway.access.permissions import OPEN, needed, unknown
from openai_gateway.api.envelope import error_response
from openai_gateway.errors import AuthenticationFailed, GatewayError, InvalidRequest, PermissionDenied

ANYONE = Key(id="", name="anyone", shown="", permissions=tuple(p for p in PERMISSIONS if p != "admin"))
"""Who sends no key where none is asked for."""
MASTER = Key(id="master", name="master", shown="", permissions=(*PERMISSIONS, *OLDER_NAMES))
"""Who has the key of the settings. An id made of the key would tell of one that was thought up: ids are in logs."""
MOST_KEYS = 4
"""In one request: one for each of the places that a client may know."""

ModelNames = Callable[[Iterable[str]], Collection[str]]
"""Every name, aliases included, of the models with these names."""


class Auth:
    """Lets in whoever has the permission that the path needs.

    A key comes as `Authorization: Bearer`, as `x-api-key` (Anthropic's clients) or as `api-key` (Azure's), and with
    `in_query` as `?api_key=`, which nothing behind this gets to see. It is one of the `masters`, or in the store.
    With `anyone`, whoever has no key may do everything but administer.

    Afterwards `scope["state"]` has `key`, the `Key`; `owner`, its id, for caches; and `models`, the names that it may
    use, or None for all. Whether a key came at all is in `key_presented`, also where it was refused. `used` is told the
    id of each stored key that was let in.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyStore,
        masters: Iterable[str] = (),
        anyone: bool = False,
        in_query: bool = False,
        model_names: ModelNames = frozenset,
        used: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.app = app
        self._keys = keys
        self._masters = [_digest(key) for key in masters]
        self._anyone = anyone
        self._in_query = in_query
        self._model_names = model_names
        self._used = used

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no surface has websockets; one that gets them decides here who may use it
            await send({"type": "websocket.close", "code": 1008})
            return
        presented = [*_presented(scope), *(_from_query(scope) if self._in_query else ())]
        state = scope.setdefault("state", {})
        state["key_presented"] = any(presented)
        try:
            key = self._admitted(scope, presented)
        except GatewayError as refusal:
            await error_response(refusal)(scope, receive, send)
            return
        state["key"], state["owner"] = key, key.id
        state["models"] = None if key.models is None else self._model_names(key.models)
        await self.app(scope, receive, send)

    def _admitted(self, scope: Scope, presented: Collection[bytes]) -> Key:
        """Whose request this is. Raises what it is refused with."""
        # What the router goes by; a URL built with the Host header can differ from it (CVE-2026-48710).
        permission = needed(scope["method"], scope["path"])
        if permission == OPEN:
            return ANYONE
        key = self._identify(presented)
        if permission is None and not key.may("admin"):
            raise unknown(scope["method"], scope["path"])
        if permission is not None and not key.may(permission):
            raise PermissionDenied(f"This API key lacks the permission `{permission}`, which {scope['path']} needs.")
        return key

    def _identify(self, presented: Collection[bytes]) -> Key:
        if len(presented) > MOST_KEYS:
            raise InvalidRequest(f"The request has {len(presented)} API keys; send one.")
        digests = [digest(secret) for secret in presented]
        # Digests have one length and tell nothing of the key, so neither has the time that comparing them takes.
        if any([hmac.compare_digest(own, other) for own in self._masters for other in digests]):
            return MASTER
        found = [key for key in map(self._keys.find, digests) if key is not None]
        for key in found:
            if key.state == "active":
                self._used(key.id)
                return key
        if found:
            raise AuthenticationFailed(f"This API key is {found[0].state}.", code=_code(found[0]))
        if self._anyone:
            return ANYONE
        message = "Incorrect API key provided." if presented else "You did not provide an API key."
        raise AuthenticationFailed(f"{message} Send it as `Authorization: Bearer <key>`.")


def _digest(master: str) -> bytes:
    if not master:
        raise ValueError("an empty key would let everybody in; `anyone` says that on purpose")
    return digest(master.encode())


def _code(key: Key) -> str:
    return "expired" if key.state == "expired" else "invalid_api_key"


def _presented(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        if name in (b"x-api-key", b"api-key"):
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def _from_query(scope: Scope) -> list[bytes]:
    """The keys in the query, which is left without them."""
    fields = scope["query_string"].split(b"&")
    keys = [field for field in fields if field.startswith(b"api_key=")]
    if keys:
        scope["query_string"] = b"&".join(field for field in fields if field not in keys)
    return [unquote_plus(field.removeprefix(b"api_key=").decode("latin-1")).encode() for field in keys]
