"""/admin/keys: making, changing and ending API keys, as `openai-gateway keys` does without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openai_gateway.access.keys import ORDINARY, Key, KeyStore, Usage
from openai_gateway.access.limits import inherited
from openai_gateway.access.usage import UsageCounts
from openai_gateway.api.parse import parse
from openai_gateway.errors import InvalidRequest
from openai_gateway.settings_kinds import whole
from openai_gateway.types import Limits


class Nothing(BaseModel):
    """The body of an action that needs none: `{}`, or empty."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Fields(BaseModel):
    """What can be said of a key. What is absent stays as it is; null takes a restriction away."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str = ""
    permissions: list[str] = list(ORDINARY)
    models: list[str] | None = None
    limits: dict[str, Any] = {}
    expires: float | None = None
    """Seconds of Unix time."""

    def given(self, defaults: Limits) -> dict[str, Any]:
        """Those that the body has, as `KeyStore` takes them. Where it names no limit, that of `defaults` holds.

        Raises `InvalidRequest`.
        """
        fields = self.model_dump(exclude_unset=True)
        if "limits" in fields:
            try:
                fields["limits"] = msgspec.convert(self.limits, Limits)
                whole(inherited(fields["limits"], defaults))
            except ValueError as error:
                raise InvalidRequest(f"'limits' is not valid: {error}.", param="limits") from None
        for name in ("permissions", "models"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        return fields


class AdminKeys:
    """The endpoints."""

    def __init__(self, keys: KeyStore, usage: UsageCounts, defaults: Limits) -> None:
        self._keys = keys
        self._usage = usage
        self._defaults = defaults
        self.routes = [
            Route("/admin/keys", self.list, methods=["GET"]),
            Route("/admin/keys", self.create, methods=["POST"]),
            Route("/admin/keys/{key}", self.retrieve, methods=["GET"]),
            Route("/admin/keys/{key}", self.change, methods=["PATCH"]),
            Route("/admin/keys/{key}", self.delete, methods=["DELETE"]),
            Route("/admin/keys/{key}/rotate", self.rotate, methods=["POST"]),
            Route("/admin/keys/{key}/revoke", self.revoke, methods=["POST"]),
        ]

    async def found(self) -> list[tuple[Key, Usage]]:
        """Every key with its usage until now."""
        await self._usage.flush()
        return await asyncio.to_thread(self._keys.list)

    async def list(self, _: Request) -> Response:
        """All of them, the oldest first."""
        found = await self.found()
        return JSONResponse({"object": "list", "data": [shown(key, usage) for key, usage in found]})

    async def create(self, http: Request) -> Response:
        """A new key; this is the only answer that ever holds its `secret`."""
        fields = (await parse(http, Fields)).given(self._defaults)
        key, secret = await asyncio.to_thread(
            lambda: self._keys.create(fields.pop("name", ""), actor=actor(http), **fields)
        )
        return JSONResponse({**shown(key, Usage()), "secret": secret}, 201)

    async def retrieve(self, http: Request) -> Response:
        """One of them."""
        return await self._one(http.path_params["key"])

    async def change(self, http: Request) -> Response:
        """Another name, permissions, models, limits or expiry."""
        fields = (await parse(http, Fields)).given(self._defaults)
        name = http.path_params["key"]
        key = await asyncio.to_thread(lambda: self._keys.change(name, actor=actor(http), **fields))
        return await self._one(key.id)

    async def rotate(self, http: Request) -> Response:
        """Another secret for the key; the old one is refused at once."""
        await parse(http, Nothing, empty=b"{}")
        name = http.path_params["key"]
        key, secret = await asyncio.to_thread(lambda: self._keys.rotate(name, actor=actor(http)))
        return JSONResponse({**shown(key), "secret": secret})

    async def revoke(self, http: Request) -> Response:
        """Refused from now on."""
        await parse(http, Nothing, empty=b"{}")
        name = http.path_params["key"]
        key = await asyncio.to_thread(lambda: self._keys.revoke(name, actor=actor(http)))
        return await self._one(key.id)

    async def delete(self, http: Request) -> Response:
        """Forgotten, with its usage."""
        name = http.path_params["key"]
        key = await asyncio.to_thread(lambda: self._keys.delete(name, actor=actor(http)))
        return JSONResponse({"object": "key", "id": key.id, "deleted": True})

    async def _one(self, name: str) -> Response:
        await self._usage.flush()
        return JSONResponse(shown(*await asyncio.to_thread(self._keys.get, name)))


def actor(http: Request) -> str:
    """Who does it, for the audit log: the id of the key, which is `master` for the one of the settings."""
    key: Key = http.state.key
    return key.id


def shown(key: Key, usage: Usage | None = None) -> dict[str, Any]:
    """A key as JSON; nothing in it opens anything."""
    fields = {"object": "key", **msgspec.to_builtins(key), "state": key.state}
    return fields if usage is None else {**fields, "usage": msgspec.to_builtins(usage)}
