"""Real gateways for tests: a server process on a free port, with the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import OpenAI

ROOT = Path(__file__).parent.parent
MODEL = "gateway-demo"
CONFIG: dict[str, Any] = json.loads((ROOT / "openai_gateway/demo/config.json").read_text())
"""Of that model."""


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 address of its own; containers often have none."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no ::1 here")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway that runs in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def base_url(self) -> str:
        """What an OpenAI client is pointed at."""
        return f"{self.url}/v1"

    def sdk(self, api_key: str = "not-needed") -> OpenAI:
        """The official SDK, pointed at this gateway; `with` closes it."""
        return OpenAI(base_url=self.base_url, api_key=api_key, max_retries=0)

    def worker(self) -> psutil.Process:
        """The worker process of the only model that is loaded."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Returns when the model is loaded."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/health/ready").status_code == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the gateway is not ready:\n{self.log.read_text()}")


@contextlib.contextmanager
def running(folder: Path, *arguments: str, ready: bool = True, **settings: object) -> Iterator[Server]:
    """A gateway started with these settings (as environment variables) in `folder`; it is ended afterwards."""
    port = free_port()
    log = folder / "server.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "HF_"))}
    settings.setdefault("answer_cache", "none")  # what a test asks twice, it wants to be generated twice
    settings = {"key_store": folder / "keys.db"} | settings  # and not the one of whoever runs the tests
    environment |= {f"OPENAI_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "openai_gateway", "serve", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment | {"HF_HUB_OFFLINE": "1"}, stderr=output)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that a test has made."""

    id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request carries to be its own."""
        return {"authorization": f"Bearer {self.secret}"}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A gateway in production, and a client for it that has its master key."""

    server: Server
    http: httpx2.Client
    folder: Path

    def key(self, **fields: object) -> Secret:
        """A new key, made through the API."""
        made = self.http.post("/admin/keys", json={"name": "test", **fields})
        assert made.status_code == 201, made.text
        return Secret(made.json()["id"], made.json()["secret"])


@contextlib.contextmanager
def guarded(folder: Path, **settings: object) -> Iterator[Guarded]:
    """A gateway that asks for keys, with two names for the embedded model, and log files in `folder`/logs."""
    demo = ROOT / "openai_gateway" / "demo"
    models = f"[{{id: {MODEL}, path: {demo}, aliases: [demo]}}, {{id: other, path: {demo}}}]"
    (folder / "models.yaml").write_text(f"models: {models}\n")
    master = secrets.token_urlsafe(32)
    logs = {"log_dir": folder / "logs", "log_format": "json", "log_file_level": "debug"}
    options: dict[str, Any] = {"env": "production", "api_key": master, "rate_limits": "off", **logs, **settings}
    with (
        running(folder, **options) as server,
        httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {master}"}, timeout=60) as http,
    ):
        yield Guarded(server, http, folder)
