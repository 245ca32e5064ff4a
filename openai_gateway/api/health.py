"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openai_gateway.registry import Registry


class Health:
    """Alive as long as it answers; ready once the models to preload are there, until it drains."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._draining = False

    def drain(self) -> None:
        """The server is going to stop: not ready from now on."""
        self._draining = True

    @property
    def unready(self) -> str | None:
        """Why requests should go elsewhere; None when they need not."""
        return "the server is shutting down" if self._draining else self._registry.unready

    async def live(self, _: Request) -> Response:
        """The process runs and its event loop turns."""
        return JSONResponse({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether to send requests here."""
        if reason := self.unready:
            return JSONResponse({"status": "unavailable", "reason": reason}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def old(self, _: Request) -> Response:
        """What older deployments poll."""
        return JSONResponse({"status": "starting" if self.unready else "healthy"})
