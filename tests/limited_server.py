"""A program for tests: several processes on one port, real keys and limits, and an endpoint that costs nothing.

    python -m tests.limited_server FOLDER PROCESSES [REDIS_URL]

It prints its port, then a line for whatever its processes say; `GET /v1/capabilities` kills the one that answers, and
`GET /v1/performance` is answered when its client has left.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from openai_gateway import server
from openai_gateway.access.auth import Auth
from openai_gateway.access.keys import KeyStore
from openai_gateway.access.policy import quotas_of
from openai_gateway.access.store import Store
from openai_gateway.access.throttle import Throttle
from openai_gateway.processes import Processes
from openai_gateway.settings import Settings

KEY = "sk-the-key-of-a-test"


def say(line: str) -> None:
    """In one piece, for others say something too."""
    os.write(1, f"{line}\n".encode())


async def answer(_: Request) -> Response:
    """Says which process it is."""
    return PlainTextResponse(str(os.getpid()))


async def die(_: Request) -> Response:
    """As by force."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


async def hold(http: Request) -> Response:
    """In progress for as long as its client is there."""
    say("held")
    while (await http.receive())["type"] != "http.disconnect":
        pass
    return Response()


def serve(folder: Path, processes: int, redis_url: str | None, number: int, listeners: list[socket.socket]) -> None:
    """One of the processes. The wait for Redis is long, for what is tested is not how busy this machine is."""
    settings = Settings(
        rate_limits="on",
        workers=processes,
        limits="burst=10, requests_per_minute=10",
        redis_url=redis_url and SecretStr(redis_url),
        redis_timeout=20,
    )
    quotas = quotas_of(settings, folder / "limits.db", lambda *_: None)
    app = Starlette(
        routes=[Route("/v1/chat/completions", answer, methods=["POST"]), Route("/v1/models", answer),
                Route("/v1/capabilities", die), Route("/v1/performance", hold)],
        middleware=[
            Middleware(Auth, keys=KeyStore(Store(folder / "keys.db")), masters=[KEY]),
            Middleware(Throttle, quotas=quotas),
        ],
    )  # fmt: skip
    server.run(
        app,
        listeners=listeners,
        ready=lambda _: say(f"{number} serves"),
        on_drain=lambda: say(f"{number} drains"),
    )


def fail(_: int, __: list[socket.socket]) -> None:
    """As an app that cannot start."""
    sys.exit(3)


def main(folder: str, processes: str, redis_url: str | None = None) -> int:
    """Exits with what the processes end with."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have started them with nohup
    with server.listening("127.0.0.1", 0) as listeners:
        say(str(listeners[0].getsockname()[1]))
        return Processes(partial(serve, Path(folder), int(processes), redis_url), int(processes), listeners).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
