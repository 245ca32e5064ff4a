"""Several gateway processes on one port: limits that hold for all of them, and how they live and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.limited_server import KEY
from tests.redis_server import running_redis
from tests.support import ROOT, ipv6

pytestmark = pytest.mark.anyio

HEADERS = {"Authorization": f"Bearer {KEY}"}


class Running:
    """The program, and what its processes say."""

    def __init__(self, folder: Path, *arguments: str, processes: int = 4) -> None:
        command = [sys.executable, "-m", "tests.limited_server", str(folder), str(processes), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.line()}"
        assert sorted(self.line() for _ in range(processes)) == [f"{number} serves" for number in range(processes)]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def children(self) -> set[int]:
        """Ids of the processes that serve."""
        children = psutil.Process(self.process.pid).children()
        return {child.pid for child in children if "spawn_main" in " ".join(child.cmdline())}


@contextlib.contextmanager
def running(folder: Path, *arguments: str, processes: int = 4) -> Iterator[Running]:
    program = Running(folder, *arguments, processes=processes)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.communicate()


async def at_once(url: str, count: int) -> list[httpx2.Response]:
    """The answers to so many requests, each on a connection of its own."""
    limits = httpx2.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=60, limits=limits, headers=HEADERS) as client:
        asked = (client.post(f"{url}/v1/chat/completions") for _ in range(count))
        return await asyncio.gather(*asked)


def told(answers: list[httpx2.Response]) -> list[int]:
    """What those that passed were told of how many more may."""
    return sorted(int(a.headers["x-ratelimit-remaining-requests"]) for a in answers if a.status_code == 200)


async def test_g09_of_two_hundred_at_once_over_four_processes_exactly_ten_pass(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        answers = await at_once(program.url, 200)
        assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 190}
        assert told(answers)[0] == 0
        ours = {int(answer.text) for answer in answers if answer.status_code == 200}
        assert ours <= program.children()
        # What they counted is there when all of them are gone.
        program.process.terminate()
        assert program.process.wait(30) == 0
    with running(tmp_path, processes=1) as program:
        assert {answer.status_code for answer in await at_once(program.url, 5)} == {429}


async def test_g09_of_two_hundred_at_once_over_four_processes_with_redis_exactly_ten_pass(tmp_path: Path) -> None:
    with running_redis(tmp_path) as redis, running(tmp_path, redis.url) as program:
        answers = await at_once(program.url, 200)
        assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 190}
        assert told(answers)[0] == 0
        assert not (tmp_path / "limits.db").exists()


def test_a_process_that_dies_is_replaced_the_others_go_on_and_a_signal_ends_them_all(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as program:
        before = program.children()
        with contextlib.suppress(httpx2.TransportError):
            httpx2.get(f"{program.url}/v1/capabilities", headers=HEADERS, timeout=20)
        assert httpx2.get(f"{program.url}/v1/models", headers=HEADERS, timeout=20).status_code == 200
        assert program.line().endswith(" serves")
        assert len(program.children()) == 2
        children = program.children()
        assert len(children & before) == 1
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(30) == 0
        assert {"0 drains", "1 drains"} == {program.line(), program.line()}
        assert not any(psutil.pid_exists(child) for child in children)


@ipv6
def test_all_of_them_are_reached_by_either_address_of_localhost(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as program:
        port = program.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert httpx2.get(f"http://{host}:{port}/v1/models", headers=HEADERS, timeout=20).status_code == 200


async def test_who_comes_while_they_drain_is_refused_at_once(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as program:
        address = ("127.0.0.1", int(program.url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(f"GET /v1/performance HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
            assert program.line() == "held"
            program.process.terminate()
            assert {"0 drains", "1 drains"} == {program.line(), program.line()}
            async with asyncio.timeout(15):
                with pytest.raises(ConnectionRefusedError):
                    while True:
                        socket.create_connection(address, timeout=5).close()
                        await asyncio.sleep(0.05)
            assert program.process.poll() is None
        assert program.process.wait(30) == 0


def test_a_terminal_that_is_closed_lets_them_finish_though_it_says_so_twice(tmp_path: Path) -> None:
    with running(tmp_path, processes=1) as program:
        address = ("127.0.0.1", int(program.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=1) as client:
            client.sendall(f"GET /v1/performance HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
            assert program.line() == "held"
            program.process.send_signal(signal.SIGHUP)
            assert program.line() == "0 drains"
            program.process.send_signal(signal.SIGHUP)
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert program.process.wait(30) == 0


def test_none_of_them_outlives_the_one_that_started_them(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as program:
        children = [psutil.Process(child) for child in program.children()]
        program.process.kill()
        program.process.wait()
        assert psutil.wait_procs(children, timeout=20)[1] == []


def test_what_would_fail_again_is_not_tried_again() -> None:
    program = (
        "import sys\n"
        "from openai_gateway.processes import Processes\n"
        "from openai_gateway.server import listening\n"
        "from tests.limited_server import fail\n"
        "with listening('127.0.0.1', 0) as listeners:\n"
        "    sys.exit(Processes(fail, 2, listeners).run())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 3
