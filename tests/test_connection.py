"""Hostile bytes, sent to a real server through real sockets. After each of them, an ordinary request gets its 200."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from openai_gateway.access.body import BodyLimit
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.bounds import Bounds
from openai_gateway.server import Server, Tls

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
LARGE = 20_000_000
BOUNDS = Bounds(header_timeout=0.4, write_timeout=0.4, linger=2.0, keep_alive=5)

app_ended = threading.Event()


async def ok(_: Request) -> Response:
    return PlainTextResponse("ok")


async def echo(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{dict(request.scope['headers']).get(b'late')} {body!r}")


async def ignore(_: Request) -> Response:
    return PlainTextResponse("ignored")


async def flood(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65_536
                await asyncio.sleep(0)
        finally:
            app_ended.set()

    return StreamingResponse(chunks())


async def drip(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"drip"
            await asyncio.sleep(0.05)

    return StreamingResponse(chunks())


async def large(_: Request) -> Response:
    return PlainTextResponse(b"x" * LARGE)


async def slow(_: Request) -> Response:
    await asyncio.sleep(0.3)
    return PlainTextResponse("slow")


async def until_left(request: Request) -> Response:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    app_ended.set()
    return PlainTextResponse("left")


ROUTES = [
    Route(f"/{f.__name__}", f, methods=["GET", "POST"]) for f in (echo, drip, ignore, flood, large, slow, until_left)
]
APP = Starlette(
    routes=[Route("/", ok), *ROUTES],
    middleware=[Middleware(BodyLimit, max_bytes=1_000_000, timeout=0.4)],
    exception_handlers=EXCEPTION_HANDLERS,
)


@contextlib.contextmanager
def serving(bounds: Bounds, tls: Tls | None = None) -> Iterator[int]:
    urls: list[str] = []
    up = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        up.set()

    server = Server(
        APP, host="127.0.0.1", port=0, bounds=bounds, drain_timeout=0.1, on_drain=lambda: None, ready=ready, tls=tls
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert up.wait(10)
        yield int(urls[0].rpartition(":")[2])
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[int]:
    with serving(BOUNDS) as port:
        yield port


@pytest.fixture
def port(shared: int) -> Iterator[int]:
    yield shared
    assert status(talk(shared, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=8)


def read_all(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(65_536):
            data += more
    return data


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = client.recv(65_536)
        assert more, data
        data += more
    return data


def talk(port: int, *parts: bytes) -> bytes:
    """Sends the parts, and reads until the server closes."""
    with connect(port) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                client.sendall(part)
        return read_all(client)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, Any]:
    """The error of a refusal, checked for all that every refusal has."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = [line.lower() for line in head.split(b"\r\n")]
    assert b"connection: close" in lines
    assert b"content-type: application/json" in lines
    assert b"content-length: %d" % len(body) in lines
    assert any(line.startswith(b"x-request-id: req_") for line in lines)
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@dataclass(frozen=True)
class Case:
    name: str
    sent: tuple[bytes, ...]
    status: int


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = [
    Case("a 1 MB header", (HEAD, b"X: ", b"x" * 2**20, b"\r\n\r\n"), 431),
    Case("a 64 MB header", (HEAD, b"X: ", *[b"x" * 2**20] * 64, b"\r\n\r\n"), 431),
    Case("a header too large by one byte", (HEAD + b"X: " + b"x" * (65_537 - len(HEAD) - 7) + b"\r\n\r\n",), 431),
    Case("20,000 fields", (HEAD, b"".join(b"x%d: y\r\n" % i for i in range(20_000)), b"\r\n"), 431),
    Case("101 fields", (HEAD + b"".join(b"x%d: y\r\n" % i for i in range(100)) + b"\r\n",), 431),
    Case("64 KB of trailers", (CHUNKED, b"1\r\na\r\n0\r\n", b"T: " + b"x" * 200_000, b"\r\n\r\n"), 431),
    Case("a long URL", (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",), 414),
    Case("an endless method line", (b"GET /" + b"a" * 200_000,), 414),
    Case("a slow header", (HEAD + b"X: y",), 408),
    Case("CL and TE", (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",), 400),
    Case("two lengths", (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",), 400),
    Case("a chunk size that overflows", (CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",), 400),
    Case("no Host", (b"GET / HTTP/1.1\r\n\r\n",), 400),
    Case("two Hosts", (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",), 400),
    Case("a Host with a path", (b"GET / HTTP/1.1\r\nHost: a/v1/models?\r\n\r\n",), 400),
    Case("bare LF", (b"GET / HTTP/1.1\nHost: a\n\n",), 400),
    Case("a TLS hello", (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),), 400),
    Case("HTTP/0.9", (b"GET /\r\n\r\n",), 400),
    Case("HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), 400),
    Case("a folded header", (HEAD + b"X: y\r\n z\r\n\r\n",), 400),
    Case("CONNECT", (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",), 400),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_b3_what_is_no_request_is_refused_in_the_envelope_and_the_connection_closed(port: int, case: Case) -> None:
    began = time.monotonic()
    answer = talk(port, *case.sent)
    assert status(answer) == case.status
    assert error(answer)["type"] == "invalid_request_error"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert time.monotonic() - began < 4


def test_a_header_of_just_the_allowed_size_is_served(port: int) -> None:
    head = HEAD + b"Connection: close\r\nX: "
    assert status(talk(port, head + b"x" * (65_536 - len(head) - 4) + b"\r\n\r\n")) == 200


def test_b3_a_connection_that_never_sends_a_byte_is_closed_without_a_word(port: int) -> None:
    began = time.monotonic()
    assert talk(port) == b""
    assert 0.3 < time.monotonic() - began < 3


def test_empty_lines_do_not_keep_a_connection_open(port: int) -> None:
    with connect(port) as client:
        client.sendall(GET)
        assert status(read_until(client, b"ok")) == 200
        client.sendall(b"\r\n")
        assert status(read_all(client)) == 408


def test_b3_a_body_that_stalls_is_answered_with_408(port: int) -> None:
    with connect(port) as client:
        client.sendall(POST + b"Content-Length: 9\r\n\r\nabc")
        assert status(read_until(client, b"}}")) == 408


def test_b3_a_200_mb_body_is_refused_by_its_announcement_and_read_on_so_that_the_answer_arrives(port: int) -> None:
    with connect(port) as client:
        client.sendall(POST + b"Content-Length: 200000000\r\n\r\n")
        for _ in range(16):
            client.sendall(b"x" * 2**20)
        assert status(client.recv(65_536)) == 413


def test_the_rest_of_a_refused_body_is_not_read_for_ever() -> None:
    with serving(Bounds(linger=0.2)) as port:
        answer = talk(port, POST + b"Content-Length: 200000000\r\n\r\n")
    assert status(answer) == 413


def test_an_unwanted_body_that_ends_soon_leaves_the_connection_open(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        read_until(client, b"ignored")
        client.sendall(b"abc" + GET)
        read_until(client, b"ok")


def test_a_body_held_back_by_expect_is_not_mistaken_for_the_next_request(port: int) -> None:
    began = time.monotonic()
    answer = talk(port, b"POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n")
    assert answer.endswith(b"ignored")
    assert time.monotonic() - began < BOUNDS.linger / 2


def test_a_body_that_turns_out_malformed_ends_the_app_that_waits_for_it(port: int) -> None:
    app_ended.clear()
    with connect(port) as client:
        client.sendall(b"POST /until_left HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        time.sleep(0.05)
        client.sendall(b"no size\r\n")
        assert app_ended.wait(2)
        assert status(read_until(client, b"}}")) == 400


def test_a_body_that_turns_out_malformed_below_its_answer_cuts_the_answer(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"POST /drip HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        read_until(client, b"drip\r\n")
        client.sendall(b"no size\r\n")
        rest = read_all(client)
    assert b"HTTP/1.1" not in rest
    assert not rest.endswith(b"0\r\n\r\n")


def test_pipelined_requests_are_answered_in_order_and_the_refusal_of_the_last_does_not_cut_them_short(
    port: int,
) -> None:
    answer = talk(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + GET + b"GARBAGE\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"slow") < answer.rindex(b"ok")


def test_a_pipeline_has_a_bounded_length(port: int) -> None:
    answer = talk(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + GET * 500)
    assert answer.count(b"HTTP/1.1 200 OK") == 1 + BOUNDS.max_pipelined


def test_a_pipelined_request_that_stays_unfinished_times_out_after_the_answer_before_it(port: int) -> None:
    answer = talk(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET / HTTP/1.1\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\n\r\nslowHTTP/1.1 408" in answer


def test_a_client_that_leaves_with_requests_in_its_pipeline_is_missed_by_the_one_that_runs(port: int) -> None:
    app_ended.clear()
    with connect(port) as client:
        client.sendall(b"GET /until_left HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        time.sleep(0.1)
    assert app_ended.wait(3)


def test_g05_a_reader_that_stops_reading_is_dropped_and_its_stream_ended(port: int) -> None:
    app_ended.clear()
    with connect(port) as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
        assert app_ended.wait(5)


def test_a_trailer_does_not_become_a_header(port: int) -> None:
    answer = talk(
        port, POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", b"1\r\na\r\n0\r\nLate: 1\r\n\r\n"
    )
    assert answer.endswith(b"None b'a'")


def test_a_reader_that_never_takes_the_end_of_its_answer_is_dropped(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        time.sleep(2.5)
        assert len(read_all(client)) < LARGE


def test_a_reader_that_is_slow_gets_all_of_its_answer(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        got = 0
        while more := len(client.recv(1_000_000, socket.MSG_WAITALL)):
            got += more
            time.sleep(0.08)
        assert got > LARGE


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_upgrade_is_ignored_and_the_body_read(port: int, offer: bytes) -> None:
    head = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nContent-Length: 3\r\n\r\n" % offer
    with connect(port) as client:
        client.sendall(head + b"abc")
        read_until(client, b"b'abc'")
        client.sendall(head)
        client.sendall(b"def" + GET)
        assert b"b'def'" in read_until(client, b"ok")


@pytest.fixture
def connections() -> Iterator[Callable[[int, int], list[bytes]]]:
    """Opens that many connections and asks on each; the answers, empty where the connection was dropped."""
    with contextlib.ExitStack() as stack:

        def opened(port: int, count: int) -> list[bytes]:
            clients = [stack.enter_context(connect(port)) for _ in range(count)]
            answers = []
            for client in clients:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(GET)
                try:
                    answers.append(client.recv(65_536))
                except ConnectionResetError:
                    answers.append(b"")
            return answers

        yield opened


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (Bounds(max_connections=3, max_refusals=2), 503),
        (Bounds(max_connections_per_ip=3, max_refusals=2), 429),
    ],
)
def test_g07_connections_beyond_the_cap_are_refused_and_those_beyond_that_are_dropped(
    connections: Callable[[int, int], list[bytes]], bounds: Bounds, expected: int
) -> None:
    with serving(bounds) as port:
        answers = connections(port, 7)
        assert [status(answer) for answer in answers[:5]] == [200, 200, 200, expected, expected]
        assert answers[5:] == [b"", b""]
        assert b"retry-after: 1" in answers[3]


def test_the_cap_per_address_does_not_hold_for_a_proxy_that_many_come_through(
    connections: Callable[[int, int], list[bytes]],
) -> None:
    proxies = (ip_network("10.0.0.0/8"), ip_network("127.0.0.1"))
    with serving(Bounds(max_connections_per_ip=1, max_connections=4, proxies=proxies)) as port:
        assert [status(answer) for answer in connections(port, 5)] == [200, 200, 200, 200, 503]


def test_connections_that_close_make_room() -> None:
    with serving(Bounds(max_connections=1, max_connections_per_ip=1, max_refusals=0)) as port:
        for _ in range(3):
            assert status(talk(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200
            time.sleep(0.05)


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with a certificate that has room for one connection, and refuses one more."""
    folder = tmp_path_factory.mktemp("tls")
    tls = Tls(folder / "tls.pem", folder / "tls.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-out", str(tls.certificate), "-keyout", str(tls.key)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    with serving(Bounds(header_timeout=0.4, linger=0.4, max_connections_per_ip=1, max_refusals=1), tls) as port:
        yield port


def connect_tls(port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connect(port))


def test_over_tls_a_slow_header_is_refused_and_its_place_free_again_though_the_client_stays(over_tls: int) -> None:
    deadline = time.monotonic() + 8
    with connect_tls(over_tls) as slow:
        slow.sendall(HEAD)
        assert status(read_all(slow)) == 408
        while True:
            with connect_tls(over_tls) as other:
                other.sendall(GET)
                if status(other.recv(65_536)) == 200:
                    break
            assert time.monotonic() < deadline


def test_over_tls_a_connection_beyond_the_cap_is_told_so_and_closed(over_tls: int) -> None:
    with connect_tls(over_tls) as kept:
        kept.sendall(GET)
        assert status(read_until(kept, b"ok")) == 200
        with connect_tls(over_tls) as other:
            assert status(read_all(other)) == 429


def test_a_tls_handshake_that_is_never_made_is_given_up(over_tls: int) -> None:
    with connect(over_tls) as silent:
        assert silent.recv(1) == b""
