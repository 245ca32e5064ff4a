"""The whole gateway on one page: routes, middleware, and what lives as long as the server does.

A request passes, outermost first: request id and log line → host check → body limit → key → limits, and then reaches
one of the endpoints below, each of which turns its body into a `types.Request` for the `Gateway`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, NoReturn

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openai_gateway import logs, processes, server
from openai_gateway.access.attempts import Attempts
from openai_gateway.access.audit import Audit
from openai_gateway.access.auth import Auth
from openai_gateway.access.body import BodyLimit
from openai_gateway.access.exposure import has_keys, open_to_anyone
from openai_gateway.access.hosts import Hosts
from openai_gateway.access.keys import KeyStore
from openai_gateway.access.policy import quotas_of
from openai_gateway.access.store import Store, key_file
from openai_gateway.access.throttle import Throttle
from openai_gateway.access.transport import https, proxies
from openai_gateway.access.usage import UsageCounts
from openai_gateway.api.admin import Admin
from openai_gateway.api.admin_keys import AdminKeys
from openai_gateway.api.chat import Chat
from openai_gateway.api.completions import Completions
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.api.health import Health
from openai_gateway.api.models import Models
from openai_gateway.api.performance import Figures
from openai_gateway.cache import Answers, RedisStore
from openai_gateway.gateway import Gateway
from openai_gateway.models_file import read_models
from openai_gateway.observe.metrics import Metrics
from openai_gateway.observe.performance import Performance
from openai_gateway.observe.prompts import logged
from openai_gateway.observe.requests import RequestLog
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings, SettingsError
from openai_gateway.sse import ClientGone
from openai_gateway.types import ModelSpec

logger = logging.getLogger(__name__)

EXPOSED = (
    *("x-request-id", "x-cache", "x-prefix-cache", "openai-processing-ms"),
    *("retry-after", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)
"""Headers that pages of other origins may read."""


class Found(NamedTuple):
    """What is read once, when the gateway starts: a process that replaces another is to be like those it joins."""

    anyone: bool
    """Whether requests need no key."""
    models: list[ModelSpec]


def create_app(settings: Settings, session_key: str | None = None, found: Found | None = None) -> Starlette:
    """The ASGI application; `app.state.health` is to be told when it drains. Raises `SettingsError`.

    `session_key` is the master key where the settings have none. `found` is read where it is not passed, and is
    `app.state.found`.
    """
    file = key_file(settings)
    store = Store(file)
    keys = KeyStore(store)
    usage = UsageCounts(keys)
    found = found or Found(open_to_anyone(settings, has_keys(keys)), read_models(settings))
    registry = Registry(found.models, settings)
    performance = Performance()
    performance.subscribe(usage.measured)
    metrics = Metrics(registry, performance)
    quotas = quotas_of(settings, file.with_name("limits.db"), metrics.refused)
    answers = kept_answers(settings)
    watch = logged(performance.watch) if settings.log_prompts else performance.watch
    gateway = Gateway(registry, watch, answers, quotas.charge)
    health = Health(registry)
    models = Models(registry, settings)
    figures = Figures(registry, performance, metrics)
    admin = Admin(
        registry, settings, AdminKeys(keys, usage, settings.limits), Audit(store),
        partial(read_models, settings), {"performance": figures.report, "totals": metrics.totals},
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(registry.preload()), asyncio.create_task(usage.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await registry.close()
            await quotas.close()
            store.close()
            if answers is not None:
                await answers.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", Chat(gateway, settings).create, methods=["POST"]),
            Route("/v1/completions", Completions(gateway, settings).create, methods=["POST"]),
            Route("/v1/models", models.list),
            Route("/v1/models/{model:path}", models.retrieve),
            Route("/v1/capabilities", models.capabilities),
            Route("/v1/performance", figures.performance),
            Route("/metrics", figures.metrics),
            *admin.routes,
            Route("/health", health.old),
            Route("/health/live", health.live),
            Route("/health/ready", health.ready),
        ],
        middleware=[
            *proxies(settings),
            Middleware(RequestLog),
            Middleware(Hosts, allowed=settings.hosts),
            *cors(settings),
            *https(settings),
            Middleware(BodyLimit, max_bytes=settings.max_body, timeout=settings.body_timeout),
            Middleware(Attempts, refused=metrics.refused),
            Middleware(
                Auth,
                keys=keys,
                masters=masters(settings, session_key),
                anyone=found.anyone,
                in_query=settings.api_key_in_query,
                model_names=registry.names,
                used=usage.request,
            ),
            Middleware(Throttle, quotas=quotas),
        ],
        exception_handlers={**EXCEPTION_HANDLERS, ClientGone: nobody},
        lifespan=lifespan,
    )
    app.state.health = health
    app.state.found = found
    app.router.redirect_slashes = False  # it would send clients wherever their Host header says
    return app


def kept_answers(settings: Settings) -> Answers | None:
    """Where answers are kept; None where none are. That `redis_url` can be used, `quotas_of` has seen to."""
    if not settings.answer_cache:
        return None
    url = settings.redis_url
    store = RedisStore(url.get_secret_value(), settings.answer_ttl) if url else None
    return Answers(settings.answer_cache, settings.answer_ttl, store, settings.share_answers)


def masters(settings: Settings, session_key: str | None) -> list[str]:
    """The keys that may do everything."""
    key = settings.api_key.get_secret_value() if settings.api_key else session_key
    return [key] if key else []


def certificate(settings: Settings) -> server.Tls | None:
    """The files to serve over HTTPS with, loaded once to see that they can be. Raises `SettingsError`."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    tls = server.Tls(settings.tls_certificate, settings.tls_key)

    def locked() -> NoReturn:  # without it, OpenSSL asks on the terminal
        raise SettingsError([f"tls_key: {tls.key} has a passphrase, which nobody is asked for; use a key without one"])

    for name, file in (("tls_certificate", tls.certificate), ("tls_key", tls.key)):
        try:
            file.open("rb").close()
        except OSError as error:
            raise SettingsError([f"{name}: {file} cannot be read: {error.strerror}"]) from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls, password=locked)
    except ssl.SSLError:
        problem = f"{tls.certificate} and {tls.key} are not a certificate and its key in PEM form"
        raise SettingsError([f"tls_certificate, tls_key: {problem}"]) from None
    return tls


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
            expose_headers=EXPOSED,
            allow_private_network=True,  # of an origin that is allowed: Chrome asks where a page is from the internet
        )
    ]


def serve(settings: Settings, session_key: str | None = None) -> None:
    """Run the gateway until a signal ends it; `session_key` is the master key where the settings have none.

    Raises `SettingsError`, and OSError when the port is taken.
    """
    settings = settings.model_copy(update={"key_store": key_file(settings)})  # one for all processes
    app = create_app(settings, session_key)  # what is wrong with the settings is said once, and here
    tls = certificate(settings)
    _configure_logs(settings, session_key)
    if settings.workers == 1:
        _run(settings, app, tls)
        return
    with server.listening(settings.host, settings.port) as listeners:
        work = partial(_serve_share, settings, session_key, app.state.found)
        status = processes.Processes(work, settings.workers, listeners).run()
    if status:
        raise SystemExit(status)


def _serve_share(
    settings: Settings, session_key: str | None, found: Found, number: int, listeners: list[socket.socket]
) -> None:
    """One of several processes; what they cannot share is divided among them."""
    own = {
        "log_dir": settings.log_dir and settings.log_dir / str(number),
        "prefix_folder": settings.prefix_folder / str(number),
        "prefix_disk": settings.prefix_disk // settings.workers,
    }
    settings = settings.model_copy(update=own)
    try:
        _configure_logs(settings, session_key)
        app = create_app(settings, session_key, found)
        tls = certificate(settings)
    except (SettingsError, OSError) as error:
        logger.error("gateway process %d cannot serve: %s", number, error)
        raise SystemExit(processes.FAILED_START) from None
    _run(settings, app, tls, listeners)


def _run(
    settings: Settings, app: Starlette, tls: server.Tls | None, listeners: list[socket.socket] | None = None
) -> None:
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
            proxies=settings.proxies,
        ),
        tls=tls,
        drain_timeout=settings.drain_timeout,
        on_drain=app.state.health.drain,
        ready=_ready,
        listeners=listeners,
    )


def _configure_logs(settings: Settings, session_key: str | None) -> None:
    try:
        logs.configure(logs.Logs.of(settings), secrets=masters(settings, session_key))
    except OSError as error:
        raise SettingsError([f"log_dir: cannot be written: {error.strerror}"]) from None


def _ready(url: str) -> None:
    # What was imported stays for good. Looking for garbage in it again and again would halt every stream for 50 ms.
    gc.collect()
    gc.freeze()
    logger.info("serving on %s/v1", url)
