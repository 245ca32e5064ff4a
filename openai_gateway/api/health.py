"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@dataclass(slots=True)
class Health:
    """Alive as long as it answers; ready once the models to preload are there, until it drains."""

    waiting_for: str | None = "the models are being loaded"
    """Why requests should go elsewhere; None when they need not."""

    async def live(self, _: Request) -> Response:
        """The process runs and its event loop turns."""
        return JSONResponse({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether to send requests here."""
        if self.waiting_for is not None:
            return JSONResponse({"status": "unavailable", "reason": self.waiting_for}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def old(self, _: Request) -> Response:
        """What older deployments poll."""
        return JSONResponse({"status": "healthy" if self.waiting_for is None else "starting"})
