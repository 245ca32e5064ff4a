"""/admin: what an administrator sees and does besides keys. Whoever comes here has the permission `admin`.

What changes something is written to the audit log before it is done.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openai_gateway.access.audit import Audit
from openai_gateway.api.admin_keys import AdminKeys, Nothing, actor
from openai_gateway.api.parse import parse
from openai_gateway.errors import Conflict, InvalidRequest, ModelNotFound
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings, SettingsError, sources
from openai_gateway.types import ModelSpec

MOST_ENTRIES = 1000


class Admin:
    """The endpoints. `figures` are what /admin/stats tells by name; `listed` reads models.yaml anew."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        keys: AdminKeys,
        audit: Audit,
        listed: Callable[[], Sequence[ModelSpec]],
        figures: Mapping[str, Callable[[], object]],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._keys = keys
        self._audit = audit
        self._listed = listed
        self._figures = figures
        self._began = time.monotonic()
        self._actions: Mapping[str, Callable[[str], Awaitable[None]]] = {
            "load": registry.load,
            "unload": registry.unload,
            "restart": registry.restart,
            "pin": self._pin,
            "unpin": self._unpin,
        }
        self.routes = [
            *keys.routes,
            Route("/admin/stats", self.stats, methods=["GET"]),
            Route("/admin/config", self.config, methods=["GET"]),
            Route("/admin/audit", self.audit, methods=["GET"]),
            Route("/admin/models", self.models, methods=["GET"]),
            Route("/admin/reload", self.reload, methods=["POST"]),
            *(
                Route(f"/admin/models/{{model:path}}/{action}", self._acting(action), methods=["POST"])
                for action in self._actions
            ),
        ]

    async def stats(self, _: Request) -> Response:
        """What was asked and answered since the start, and what each key was used for in all its time."""
        keys = await self._keys.found()
        stats = {
            "object": "stats",
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "keys": {
                "states": Counter(key.state for key, _ in keys),
                "usage": {key.id: usage for key, usage in keys},
            },
            **{name: figure() for name, figure in self._figures.items()},
        }
        return Response(msgspec.json.encode(stats), media_type="application/json")

    async def config(self, _: Request) -> Response:
        """Every setting in force and where it came from; secrets are masked."""
        data = [{"name": name, "value": value, "source": source} for name, value, source in sources(self._settings)]
        return JSONResponse({"object": "list", "data": data})

    async def audit(self, http: Request) -> Response:
        """The newest entries of the audit log, `?limit=` of them."""
        limit = http.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= MOST_ENTRIES):
            raise InvalidRequest(f"'limit' is a number from 1 to {MOST_ENTRIES}.", param="limit")
        entries = await asyncio.to_thread(self._audit.entries, int(limit))
        return JSONResponse({"object": "list", "data": msgspec.to_builtins(entries)})

    async def models(self, _: Request) -> Response:
        """Every model of the list, and how it is doing."""
        return JSONResponse({"object": "list", "data": self._models()})

    async def reload(self, http: Request) -> Response:
        """Serve what models.yaml lists now. If anything is wrong in it, nothing changes."""
        await parse(http, Nothing, empty=b"{}")
        self._check_alone()
        await self._record(http, "reload models", "models.yaml")
        try:
            specs = await asyncio.to_thread(self._listed)
        except SettingsError as error:
            raise InvalidRequest(
                f"models.yaml was not taken, and the models are as before: {'; '.join(error.problems)}",
                code="invalid_models_file",
            ) from None
        await self._registry.replace(specs)
        return JSONResponse({"object": "list", "data": self._models()})

    def _acting(self, action: str) -> Callable[[Request], Awaitable[Response]]:
        async def act(http: Request) -> Response:
            await parse(http, Nothing, empty=b"{}")
            self._check_alone()
            model = self._registry.resolve(http.path_params["model"]).id
            await self._record(http, f"{action} model", model)
            await self._actions[action](model)
            for found in self._models():
                if found["id"] == model:
                    return JSONResponse(found)
            raise ModelNotFound.named(model)  # it was taken off the list meanwhile

        return act

    def _check_alone(self) -> None:
        """Raises `Conflict` where there are processes that would not take part."""
        if self._settings.workers > 1:
            raise Conflict(
                f"This gateway runs in {self._settings.workers} processes, each with models of its own, and only one "
                "of them would do this. Restart the server instead, or run it with one worker."
            )

    async def _pin(self, model: str) -> None:
        self._registry.pin(model, True)
        await self._registry.load(model)

    async def _unpin(self, model: str) -> None:
        self._registry.pin(model, False)

    async def _record(self, http: Request, action: str, subject: str) -> None:
        await asyncio.to_thread(self._audit.record, actor(http), action, subject)

    def _models(self) -> list[dict[str, Any]]:
        return [
            {
                "id": spec.id,
                "object": "model",
                "aliases": list(spec.aliases),
                "provider": spec.provider,
                **state._asdict(),
                "pid": info.pid if (info := self._registry.info(spec.id)) else None,
            }
            for spec, state in self._registry.states()
        ]
