"""The whole gateway on one page: routes, middleware, and what lives as long as the server does.

A request passes, outermost first: request id and log line → host check → body limit → key, and then reaches one of
the endpoints below, each of which turns its body into a `types.Request` for the `Gateway`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openai_gateway import server
from openai_gateway.access.auth import Auth
from openai_gateway.access.body import BodyLimit
from openai_gateway.access.hosts import Hosts
from openai_gateway.api.chat import Chat
from openai_gateway.api.completions import Completions
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.api.health import Health
from openai_gateway.api.models import Models
from openai_gateway.api.performance import Figures
from openai_gateway.gateway import Gateway
from openai_gateway.observe.metrics import Metrics
from openai_gateway.observe.performance import Performance
from openai_gateway.observe.requests import RequestLog, configure_logging
from openai_gateway.registry import Registry, read_models
from openai_gateway.settings import Settings
from openai_gateway.sse import ClientGone

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> Starlette:
    """The ASGI application; `app.state.health` is to be told when it drains. Raises `SettingsError`."""
    registry = Registry(read_models(settings), settings)
    performance = Performance()
    gateway = Gateway(registry, performance.watch)
    health = Health(registry)
    models = Models(registry, settings)
    figures = Figures(registry, performance, Metrics(registry, performance))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        preloading = asyncio.create_task(registry.preload())
        try:
            yield
        finally:
            preloading.cancel()
            await asyncio.wait([preloading])
            await registry.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", Chat(gateway, settings).create, methods=["POST"]),
            Route("/v1/completions", Completions(gateway, settings).create, methods=["POST"]),
            Route("/v1/models", models.list),
            Route("/v1/models/{model:path}", models.retrieve),
            Route("/v1/capabilities", models.capabilities),
            Route("/v1/performance", figures.performance),
            Route("/metrics", figures.metrics),
            Route("/health", health.old),
            Route("/health/live", health.live),
            Route("/health/ready", health.ready),
        ],
        middleware=[
            Middleware(RequestLog),
            Middleware(Hosts, allowed=settings.hosts),
            *cors(settings),
            Middleware(BodyLimit, max_bytes=settings.max_body, timeout=settings.body_timeout),
            Middleware(Auth, key=settings.api_key.get_secret_value() if settings.api_key else None),
        ],
        exception_handlers={**EXCEPTION_HANDLERS, ClientGone: nobody},
        lifespan=lifespan,
    )
    app.state.health = health
    app.router.redirect_slashes = False  # it would send clients wherever their Host header says
    return app


async def nobody(_: Request, __: Exception) -> Response:
    """The client left; 499 is for the log."""
    return Response(status_code=499)


def cors(settings: Settings) -> list[Middleware]:
    """Lets pages of the configured origins call the gateway and read the headers that OpenAI's clients use."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-prefix-cache", "openai-processing-ms", "retry-after"],
        )
    ]


def serve(settings: Settings) -> None:
    """Run the gateway until a signal ends it. Raises `SettingsError`, and OSError when the port is taken."""
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    server.run(
        app,
        host=settings.host,
        port=settings.port,
        bounds=server.Bounds(
            max_header_bytes=settings.max_header_bytes,
            max_headers=settings.max_headers,
            header_timeout=settings.header_timeout,
            max_connections=settings.max_connections,
            max_connections_per_ip=settings.max_connections_per_ip,
            write_timeout=settings.write_timeout,
            keep_alive=settings.keep_alive,
        ),
        drain_timeout=settings.drain_timeout,
        on_drain=app.state.health.drain,
        ready=_ready,
    )


def _ready(url: str) -> None:
    # What was imported stays for good. Looking for garbage in it again and again would halt every stream for 50 ms.
    gc.collect()
    gc.freeze()
    logger.info("serving on %s/v1", url)
