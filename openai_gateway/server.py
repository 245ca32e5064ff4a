"""The HTTP server: uvicorn on our connections, with an orderly end.

Asked to stop (SIGTERM, SIGINT, SIGHUP) it takes nothing new, finishes what it has begun, and returns; asked twice, it
returns at once. Either way the app's own shutdown runs, which ends the worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvicorn
import uvloop
from starlette.types import ASGIApp

from openai_gateway.bounds import Bounds, State
from openai_gateway.connection import Connection

__all__ = ["Bounds", "Server", "Tls", "listening", "run"]

LOCALHOST = ("127.0.0.1", "::1")
"""What clients take `localhost` for: either of them first. On macOS the one that nobody listens on may be anybody's who
listens on all addresses."""

NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

MAC_FILES = 10_240
"""Open files that macOS allows a process on any machine. It has a limit, but names none, and refuses what is above."""

HURRY = 5.0
"""Seconds that the app's own shutdown gets once somebody has asked twice for the end."""


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that ask for the end; that the terminal is closed does not where nohup lets it be ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT) if ignored else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Tls(NamedTuple):
    """PEM files to serve over HTTPS with."""

    certificate: Path
    key: Path


class Loop(uvloop.Loop):
    """uvloop's, with the deadline for TLS handshakes that uvicorn has no setting for."""

    handshake_timeout: float

    async def create_server(self, *args: Any, ssl: Any = None, **more: Any) -> asyncio.Server:
        timeout = self.handshake_timeout if ssl else None
        server = await super().create_server(*args, ssl=ssl, ssl_handshake_timeout=timeout, **more)
        return cast(asyncio.Server, server)


class Server(uvicorn.Server):
    """Calls `on_drain` as soon as it is asked to stop, and `ready` with its URL when it listens."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        bounds: Bounds,
        drain_timeout: float,
        on_drain: Callable[[], None],
        ready: Callable[[str], None] | None = None,
        tls: Tls | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            loop=f"{__name__}:Loop",
            ws="none",
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=bounds.keep_alive,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        super().__init__(config)
        self.server_state: State = State(bounds)
        self._drain_timeout = drain_timeout
        self._on_drain = on_drain
        self._ready = ready
        self._hurry = asyncio.Event()

    def stop(self, asked: signal.Signals) -> None:
        """Asks for the end: in order the first time, at once when it is called again. Not thread-safe."""
        if self.server_state.draining:
            if asked != signal.SIGHUP:  # a terminal that is closed says so twice: its shell does, and then the system
                self._hurry.set()
            return
        self.server_state.draining = True
        self.should_exit = True
        self._on_drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's raises the signal once more at the end, which would turn a clean end into a status of 143.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = ending_signals()
        for number in signals:
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        cast(Loop, asyncio.get_running_loop()).handshake_timeout = self.server_state.bounds.header_timeout
        await super().startup(sockets)
        if self._ready is not None:
            self._ready(self._url())

    def _url(self) -> str:
        """Where a client on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.host, self.config.host)
        port = self.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # Once per second.
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                cast(Connection, connection).check_progress(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._drained()
        if tasks := list(self.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
        await self._end_app()

    async def _drained(self) -> None:
        deadline = time.monotonic() + self._drain_timeout
        while (self.server_state.connections or self.server_state.tasks) and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`: in Python 3.11 it can forget that it was cancelled.
                async with asyncio.timeout(0.05):
                    await self._hurry.wait()
                return

    async def _end_app(self) -> None:
        ending = asyncio.ensure_future(self.lifespan.shutdown())
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({ending, hurried}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({ending}, timeout=HURRY)
        hurried.cancel()


def run(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    bounds: Bounds | None = None,
    drain_timeout: float = 30.0,
    on_drain: Callable[[], None] = lambda: None,
    ready: Callable[[str], None] | None = None,
    tls: Tls | None = None,
    listeners: list[socket.socket] | None = None,
) -> None:
    """Serves until a signal comes, then returns. Exits with status 3 where the app fails; raises what `listening` does.

    `listeners` are served instead of `host` and `port`. Requests that still run `drain_timeout` seconds after the
    signal are cut off.
    """
    bounds = _within_descriptors(bounds or Bounds())
    with contextlib.nullcontext(listeners) if listeners else listening(host, port) as sockets:
        Server(
            app,
            host=host,
            port=port,
            bounds=bounds,
            drain_timeout=drain_timeout,
            on_drain=on_drain,
            ready=ready,
            tls=tls,
        ).run(sockets)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets, which processes can share, at each address of a host; all of them on one port, a free one where it is 0.

    Raises OSError where one of them is taken.
    """
    names = LOCALHOST if host.lower() in ("localhost", "127.0.0.1") else (host,)
    flags = socket.AI_PASSIVE
    found = [each for name in names for each in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)]
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sock = socket.create_server((address[0], port, *address[2:]), family=family, backlog=2048)
            except OSError as error:
                if not sockets or error.errno not in NO_IPV6:
                    raise
            else:
                sockets.append(opened.enter_context(sock))
                port = sock.getsockname()[1]
        yield sockets


def _within_descriptors(bounds: Bounds) -> Bounds:
    """Raises the limit on open files as far as the connections need it (macOS starts with 256), or lowers theirs."""
    spare = 128  # Listening sockets, pipes of workers, log and model files, connections that are being refused.
    wanted = bounds.max_connections + bounds.max_refusals + spare
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        for limit in (min(allowed, MAC_FILES), allowed):
            if limit > soft:
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        available = max(soft // 2, soft - bounds.max_refusals - spare)
        bounds = replace(bounds, max_connections=min(bounds.max_connections, available))
    return bounds
