"""Real server processes, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from openai_gateway import server as server_module
from openai_gateway.server import Bounds, Server, listening
from tests.support import ipv6

ROOT = Path(__file__).parents[1]

PROGRAM = """
import asyncio, contextlib, sys
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from openai_gateway.logs import Logs, configure
from openai_gateway.observe.requests import RequestLog
from openai_gateway.server import Bounds, run

def say(word):
    print(word, flush=True)

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    say("app ended")

async def ok(request):
    return PlainTextResponse("ok")

async def stream(request):
    async def chunks():
        for number in range(int(request.query_params["n"])):
            yield f"{number};"
            await asyncio.sleep(0.05)
    return StreamingResponse(chunks())

async def hang(request):
    await asyncio.sleep(60)

routes = [Route("/", ok), Route("/stream", stream), Route("/hang", hang)]
app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(RequestLog)])
configure(Logs(level="warning"))
run(app, port=0, drain_timeout=float(sys.argv[1]), on_drain=lambda: say("draining"), ready=say)
"""


class Process:
    """A server process, and what it says."""

    def __init__(self, drain_timeout: float, program: str = PROGRAM) -> None:
        # Whoever runs the tests may have started them with nohup.
        attached = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        command = [sys.executable, "-c", attached + program, str(drain_timeout)]
        self.child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.clients = contextlib.ExitStack()
        self.port = int(self.line().rpartition(":")[2])

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def ask(self, path: str, host: str = "127.0.0.1") -> socket.socket:
        client = self.clients.enter_context(socket.create_connection((host, self.port), timeout=8))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return client

    def end(self) -> tuple[int, str, str]:
        """Its status, and what it said on both ways out since it was last asked."""
        out, err = self.child.communicate(timeout=8)
        return self.child.returncode, out, err


@contextlib.contextmanager
def running(drain_timeout: float = 10.0, program: str = PROGRAM) -> Iterator[Process]:
    process = Process(drain_timeout, program)
    try:
        yield process
    finally:
        process.clients.close()
        process.child.kill()
        process.child.communicate()


def read_all(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(65_536):
            data += more
    return data


def read_body(client: socket.socket) -> bytes:
    """The body of one answer that carries its length; empty where the server closed before it sent one."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in data and (more := client.recv(65_536)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        while len(body) < length and (more := client.recv(65_536)):
            body += more
        return body
    return b""


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_g34_a_signal_says_so_at_once_lets_the_stream_finish_and_exits_with_0(asked: signal.Signals) -> None:
    with running() as server:
        stream = server.ask("/stream?n=10")
        started = stream.recv(65_536)
        server.child.send_signal(asked)
        assert server.line() == "draining"
        rest = read_all(stream)
        assert b"0;" in started + rest
        assert rest.endswith(b"9;\r\n0\r\n\r\n")
        assert server.end() == (0, "app ended\n", "")


def test_a_terminal_that_is_closed_lets_the_stream_finish_though_it_says_so_twice() -> None:
    with running() as server:
        stream = server.ask("/stream?n=20")
        stream.recv(65_536)
        server.child.send_signal(signal.SIGHUP)
        assert server.line() == "draining"
        server.child.send_signal(signal.SIGHUP)
        assert read_all(stream).endswith(b"19;\r\n0\r\n\r\n")
        assert server.end() == (0, "app ended\n", "")


def test_under_nohup_a_terminal_that_is_closed_ends_nothing() -> None:
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with running(program=nohup + PROGRAM) as server:
        kept = server.ask("/")
        assert read_body(kept) == b"ok"
        server.child.send_signal(signal.SIGHUP)
        kept.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_body(kept) == b"ok"
        assert read_body(server.ask("/")) == b"ok"


def test_while_it_drains_a_server_takes_no_connection_and_closes_the_idle_ones() -> None:
    with running() as server:
        idle = server.ask("/")
        assert read_body(idle) == b"ok"
        stream = server.ask("/stream?n=10")
        stream.recv(65_536)
        server.child.terminate()
        assert server.line() == "draining"
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            server.ask("/")
        assert read_all(stream).endswith(b"9;\r\n0\r\n\r\n")


def test_a_request_on_a_kept_connection_in_the_first_moment_of_the_drain_gets_503() -> None:
    with running() as server:
        kept = server.ask("/")
        assert read_body(kept) == b"ok"
        server.child.terminate()
        assert server.line() == "draining"
        kept.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = read_all(kept)
        assert b" 503 " in answer
        assert b"shutting down" in answer
        assert server.end()[0] == 0


def test_a_second_signal_cuts_what_still_runs_and_ends_the_app_all_the_same() -> None:
    with running(drain_timeout=60) as server:
        hanging, stream = server.ask("/hang"), server.ask("/stream?n=1000")
        stream.recv(65_536)
        server.child.terminate()
        assert server.line() == "draining"
        began = time.monotonic()
        server.child.terminate()
        assert server.end() == (0, "app ended\n", "")
        assert time.monotonic() - began < 4
        assert b" 503 " in read_all(hanging)
        assert not read_all(stream).endswith(b"0\r\n\r\n")


def test_a_drain_has_an_end() -> None:
    with running(drain_timeout=0.2) as server:
        hanging = server.ask("/hang")
        time.sleep(0.1)
        server.child.terminate()
        assert server.end() == (0, "draining\napp ended\n", "")
        assert b" 503 " in read_all(hanging)


@pytest.mark.anyio
async def test_who_is_cancelled_while_it_drains_stays_cancelled_though_somebody_asked_for_hurry() -> None:
    server = Server(Starlette(), host="127.0.0.1", port=0, bounds=Bounds(), drain_timeout=60, on_drain=lambda: None)
    server.server_state.tasks.add(running := asyncio.create_task(asyncio.sleep(60)))
    draining = asyncio.create_task(server._drained())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    server._hurry.set()
    draining.cancel()
    await asyncio.wait([draining])
    running.cancel()
    assert draining.cancelled()


def test_a_second_signal_also_ends_an_app_that_does_not_end_itself() -> None:
    stuck = PROGRAM.replace('say("app ended")', 'say("ending"); await asyncio.sleep(60)')
    patient = "import openai_gateway.server as server; server.HURRY = 0.1\n"
    with running(program=patient + stuck) as server:
        server.child.terminate()
        assert [server.line(), server.line()] == ["draining", "ending"]
        server.child.terminate()
        assert server.end()[0] == 0


@ipv6
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST"])
def test_this_machine_is_listened_on_at_both_of_its_addresses_and_one_port(host: str) -> None:
    with listening(host, 0) as sockets:
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1", "::1"]
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    with listening("::1", 0) as sockets:
        assert [sock.getsockname()[0] for sock in sockets] == ["::1"]


@ipv6
def test_the_default_host_is_served_whichever_address_a_client_takes_for_localhost() -> None:
    with running() as server:
        for host in ("127.0.0.1", "::1"):
            assert read_body(server.ask("/", host)) == b"ok"


@ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_at_either_address_is_said_before_anything_starts(host: str) -> None:
    with listening(host, 0) as (first, *_), pytest.raises(OSError, match="in use.*" + host):
        listening("127.0.0.1", first.getsockname()[1]).__enter__()


def test_a_server_whose_port_is_taken_starts_no_app() -> None:
    with running() as first:
        program = PROGRAM.replace("port=0", f"port={first.port}")
        second = subprocess.run(
            [sys.executable, "-c", program, "1"], cwd=ROOT, capture_output=True, text=True, timeout=8, check=False
        )
    assert (second.returncode, second.stdout) == (1, "")
    assert "Address already in use" in second.stderr


def test_a_machine_without_ipv6_is_served_at_its_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # Those who do not have it say so when a socket is bound.
    monkeypatch.setattr(server_module, "LOCALHOST", ("127.0.0.1", "2001:db8::1"))
    with listening("localhost", 0) as sockets:
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1"]
    with pytest.raises(OSError, match="2001:db8::1"), listening("2001:db8::1", 0):
        pass


def test_g49_where_the_system_refuses_so_many_open_files_it_is_asked_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, resource.RLIM_INFINITY)]

    def as_on_a_mac(kind: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > 61_440:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", as_on_a_mac)
    bounds = server_module._within_descriptors(Bounds(max_connections=100_000, max_refusals=100))
    assert bounds.max_connections == 10_240 - 100 - 128
    assert server_module._within_descriptors(Bounds(max_connections=50_000)).max_connections == 50_000


def test_g49_connections_are_capped_below_the_limit_on_open_files() -> None:
    scarce = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    with running(program=scarce + PROGRAM) as server:
        clients = [server.ask("/") for _ in range(60)]
        answers = [read_body(client) for client in clients]
        assert answers[0] == b"ok"
        assert any(b"too many connections" in answer for answer in answers)
        for client in clients:
            client.close()
        deadline = time.monotonic() + 4
        while read_body(server.ask("/")) != b"ok":
            assert time.monotonic() < deadline
