"""A worker that dies, hangs or cannot start costs the requests it was answering, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from openai_gateway.errors import Crowded, ModelFailed, Unavailable, WorkerDied
from openai_gateway.providers import process
from openai_gateway.providers.mlx import MLXProvider, Worker
from openai_gateway.settings import Settings
from openai_gateway.types import CompletionRequest, Delta, Event, ModelInfo, ModelSpec, Sampling, Share, Started
from tests.support import MODEL, ROOT, Server, running

ENDLESS: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 30_000, "ignore_eos": True}


@contextmanager
def streaming(server: Server, **fields: object) -> Iterator[Iterator[str]]:
    """The events of a stream that does not end by itself, after the first of them."""
    with httpx2.stream(
        "POST", f"{server.base_url}/completions", json=ENDLESS | {"stream": True} | fields, timeout=60
    ) as response:
        assert response.status_code == 200
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        next(events)
        yield events


def test_g31_a_killed_worker_fails_its_stream_with_an_error_event_and_the_next_request_is_served(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        first = server.worker()
        with streaming(server) as events:
            first.send_signal(signal.SIGKILL)
            *_, error, done = events
            assert json.loads(error)["error"]["code"] == "worker_died"
            assert done == "[DONE]"
        killed = time.monotonic()
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
        assert time.monotonic() - killed < 5
        assert server.worker().pid != first.pid


def test_g31_a_killed_worker_fails_a_request_that_is_not_streamed_with_503(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        errors: list[openai.APIStatusError] = []

        def ask() -> None:
            try:
                with server.sdk() as sdk:
                    sdk.completions.create(model=MODEL, prompt="x", max_tokens=30_000, extra_body={"ignore_eos": True})
            except openai.APIStatusError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not httpx2.get(f"{server.base_url}/performance").json()["models"][0]["requests"]["running"]:
            time.sleep(0.05)
        time.sleep(0.2)  # from the gateway to the worker
        server.worker().kill()
        thread.join(10)
        (error,) = errors
        assert (error.status_code, error.code) == (503, "worker_died")
        assert int(error.response.headers["retry-after"]) >= 1


def test_a_request_that_ends_worker_after_worker_is_told_not_to_come_again_and_who_ran_beside_it_is_not(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        with streaming(server) as events, streaming(server, prompt="y") as innocent:
            server.worker().kill()
            for each in (events, innocent):
                assert json.loads([*each][-2])["error"]["code"] == "worker_died"
        server.wait_until_ready()
        with streaming(server) as events, streaming(server, prompt="z") as innocent:
            server.worker().kill()
            assert json.loads([*events][-2])["error"]["code"] == "model_failed"
            assert json.loads([*innocent][-2])["error"]["code"] == "worker_died"
        with streaming(server):  # who insists may have it
            pass
        assert "ended by itself with status -9: the system ended it, most likely for lack" in server.log.read_text()


def test_g32_a_worker_that_stops_beating_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, heartbeat_timeout=1.5) as server:
        first = server.worker()
        with streaming(server) as events:
            first.send_signal(signal.SIGSTOP)
            *_, error, _ = events
            assert json.loads(error)["error"]["code"] == "worker_died"
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
        assert not first.is_running()


def test_a_gateway_that_slept_does_not_take_its_worker_for_hanging(tmp_path: Path) -> None:
    with running(tmp_path, heartbeat_timeout=1.5) as server:
        first = server.worker()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        server.process.send_signal(signal.SIGCONT)
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
        time.sleep(0.5)
        assert server.worker().pid == first.pid


def test_a_restart_that_fails_for_want_of_descriptors_is_tried_again(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("limits of other processes are a Linux thing")
    with running(tmp_path) as server:
        gateway = psutil.Process(server.process.pid)
        limits = gateway.rlimit(psutil.RLIMIT_NOFILE)
        gateway.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        server.worker().kill()
        deadline = time.monotonic() + 10
        while "cannot be started" not in server.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        gateway.rlimit(psutil.RLIMIT_NOFILE, limits)
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1, timeout=30).choices


def test_an_idle_worker_is_not_taken_for_a_hanging_one(tmp_path: Path) -> None:
    with running(tmp_path, heartbeat_timeout=1) as server:
        first = server.worker()
        time.sleep(2.5)
        assert server.worker().pid == first.pid


def test_g06_a_full_queue_is_a_429_before_any_header_of_a_stream(tmp_path: Path) -> None:
    with running(tmp_path, max_batch=1, max_queue=1) as server, streaming(server), streaming_soon(server):
        for stream in (False, True):
            with server.sdk() as sdk, pytest.raises(openai.RateLimitError) as caught:
                sdk.completions.create(model=MODEL, prompt="x", stream=stream)
            assert caught.value.code == "rate_limit_exceeded"
            assert "Please try again in 1s" in str(caught.value)
            assert int(caught.value.response.headers["retry-after"]) >= 1


@contextmanager
def streaming_soon(server: Server) -> Iterator[None]:
    """A stream that waits in the queue: its headers have come, and no event."""
    with httpx2.stream(
        "POST", f"{server.base_url}/completions", json=ENDLESS | {"stream": True}, timeout=60
    ) as response:
        assert response.status_code == 200
        yield


def test_g05_a_client_that_stops_reading_is_given_up_and_costs_nobody_else_anything(tmp_path: Path) -> None:
    with running(tmp_path, max_unread=4096) as server:
        gateway = psutil.Process(server.process.pid)
        before = gateway.memory_info().rss
        with httpx2.Client(base_url=server.base_url, timeout=60) as http, unread_stream(server) as client:
            deadline = time.monotonic() + 60
            while "characters unread" not in server.log.read_text() and time.monotonic() < deadline:
                answer = http.post("/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 2})
                assert answer.status_code == 200
            assert "characters unread" in server.log.read_text()
            wait_until_idle(server.worker())  # nothing is computed for it any more
            assert gateway.memory_info().rss - before < 50 * 1024 * 1024
            # Should it read on, it finds what was made for it, and then why there is no more.
            *_, error, done, _ = read_on(client).split(b"\n\n")
            assert json.loads(error.partition(b"data: ")[2])["error"]["code"] == "client_too_slow"
            assert b"data: [DONE]" in done


@contextmanager
def unread_stream(server: Server) -> Iterator[socket.socket]:
    """A long stream with much in each chunk, of which nobody reads."""
    asked = json.dumps(ENDLESS | {"stream": True, "n": 16, "logprobs": 5})
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Connection: close\r\nContent-Length: {len(asked)}\r\n\r\n{asked}".encode())
        yield sock


def read_on(sock: socket.socket) -> bytes:
    """All that arrives until the server closes the connection."""
    sock.settimeout(60)
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def wait_until_idle(process: psutil.Process) -> None:
    """Returns when the process computes nothing that is worth mentioning."""
    process.cpu_percent()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if process.cpu_percent() < 10:
            return
    raise AssertionError("it still computes")


def test_a_slow_reader_gets_few_and_large_chunks_and_everything(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "x", "ignore_eos": True, "max_tokens": 300, "seed": 1}
    with running(tmp_path) as server, httpx2.Client(base_url=server.base_url, timeout=60) as http:
        whole = http.post("/completions", json=asked).json()["choices"][0]["text"]
        gateway = psutil.Process(server.process.pid)
        with http.stream("POST", "/completions", json=asked | {"stream": True}) as response:
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
            texts = [json.loads(next(lines))["choices"][0]["text"]]
            gateway.suspend()
            wait_until_idle(server.worker())
            gateway.resume()
            texts += [json.loads(line)["choices"][0]["text"] for line in lines if line != "[DONE]"]
        assert "".join(texts) == whole
        assert len(texts) < 100


def test_a_gateway_that_is_killed_takes_its_workers_with_it(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        worker = server.worker()
        server.process.kill()
        server.process.wait()
        worker.wait(5)


def test_the_gateway_process_stays_small(gateway: Server) -> None:
    assert psutil.Process(gateway.process.pid).memory_info().rss < 100 * 1024 * 1024


@pytest.mark.anyio
async def test_a_model_with_no_memory_beside_others_is_told_from_one_that_fails() -> None:
    provider = MLXProvider(ModelSpec(id="m", path=str(ROOT / "openai_gateway" / "demo")), Settings())

    async def share() -> Share:
        return Share(taken=10**18)

    with pytest.raises(Crowded):
        await provider.start(share)


@pytest.mark.anyio
async def test_a_request_that_is_cancelled_while_its_worker_is_looked_up_goes_no_further() -> None:
    provider = MLXProvider(ModelSpec(id="m", path="."), Settings())
    worker: Any = object()
    provider._worker.set_result(worker)
    for ticks in range(4):
        looking = asyncio.create_task(provider._alive())
        for _ in range(ticks):
            await asyncio.sleep(0)
        if looking.cancel():
            with pytest.raises(asyncio.CancelledError):
                await looking


INFO = ModelInfo(
    context_length=8,
    vocab_size=8,
    architecture="a",
    reasoning="hint",
    chat_template=False,
    fill_in_the_middle=False,
    parameters=1,
    pid=1,
)
REQUEST = CompletionRequest(model="m", prompt="x")


class Stuck(subprocess.Popen[bytes]):
    """A process that the system holds, whatever is sent to it."""

    def kill(self) -> None:
        pass


@asynccontextmanager
async def hanging(
    command: Callable[[list[str]], subprocess.Popen[bytes]] = subprocess.Popen,
) -> AsyncIterator[tuple[Worker, asyncio.StreamReader]]:
    """A worker that never says anything, and what it is sent."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    sent, other = await asyncio.open_connection(sock=theirs)
    worker = Worker(command(["sleep", "60"]), reader, writer, INFO, Settings())
    try:
        yield worker, sent
    finally:
        await worker.end()
        other.close()
        subprocess.Popen.kill(worker._process)
        worker._process.wait()


@pytest.mark.anyio
async def test_a_request_that_hears_nothing_ends_with_the_model_that_is_unloaded() -> None:
    async with hanging() as (worker, sent), asyncio.timeout(30):
        provider = MLXProvider(ModelSpec(id="m", path="."), Settings())
        provider._worker.set_result(worker)
        provider._supervisor = asyncio.create_task(provider._supervise(worker))
        asking = asyncio.ensure_future(anext(provider.generate(REQUEST, print)))
        await sent.readexactly(1)
        await provider.close()
        for request in (asking, anext(provider.generate(REQUEST, print))):
            with pytest.raises(Unavailable, match="was unloaded"):
                await request
        assert provider.info is None


@pytest.mark.anyio
async def test_a_request_that_waits_for_a_worker_ends_with_the_model_that_is_unloaded() -> None:
    provider = MLXProvider(ModelSpec(id="m", path="."), Settings())
    asking = asyncio.ensure_future(anext(provider.generate(REQUEST, print)))
    await asyncio.sleep(0)
    await provider.close()
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable, match="was unloaded"):
            await asking


@pytest.mark.anyio
async def test_a_request_that_reaches_a_worker_after_its_end_is_told_so() -> None:
    async with hanging() as (worker, _), asyncio.timeout(30):
        await worker.end()
        with pytest.raises(WorkerDied):
            await anext(worker.generate(REQUEST, print))


@pytest.mark.anyio
async def test_a_worker_that_cannot_be_ended_keeps_neither_its_requests_nor_those_who_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    async with asyncio.timeout(30), hanging(Stuck) as (worker, sent):
        asking = asyncio.ensure_future(anext(worker.generate(REQUEST, print)))
        await sent.readexactly(1)
        ending = asyncio.create_task(worker.end())
        with pytest.raises(WorkerDied):
            await asking
        assert not ending.done()
        await ending
        assert "cannot be ended: the system holds it" in caplog.text


@pytest.mark.anyio
async def test_what_waited_for_a_reader_who_leaves_is_told() -> None:
    provider = MLXProvider(ModelSpec(id="m", path=str(ROOT / "openai_gateway" / "demo")), Settings())
    untaken: list[Event] = []

    async def share() -> Share:
        return Share()

    async with asyncio.timeout(120):
        await provider.start(share)
        try:
            sampling = Sampling(max_tokens=50, ignore_eos=True)
            answer = provider.generate(CompletionRequest(model="m", prompt="x", sampling=sampling), untaken.append)
            assert isinstance(await anext(answer), Started)
            while not (stats := provider.stats) or stats.rows or stats.generated_tokens < 50:
                await asyncio.sleep(0.05)
            await answer.aclose()
        finally:
            await provider.close()
    assert sum(event.tokens for event in untaken if isinstance(event, Delta)) == 50


@pytest.mark.anyio
async def test_a_model_that_is_not_there_is_one_line_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    provider = MLXProvider(ModelSpec(id="m", path="models/of/nobody"), Settings())

    async def share() -> Share:
        return Share()

    with pytest.raises(ModelFailed):
        await provider.start(share)
    log = capfd.readouterr().err
    assert "cannot load m: there is no folder models/of/nobody, and it cannot be had from the hub: " in log
    assert "Traceback" not in log


def test_a_worker_that_cannot_be_ended_does_not_keep_the_gateway_from_ending(tmp_path: Path) -> None:
    program = (
        "import asyncio, subprocess\n"
        "from openai_gateway.providers import process\n"
        "class Stuck(subprocess.Popen):\n"
        "    kill = lambda self: None\n"
        "process.PATIENCE = 0.2\n"
        "stuck = Stuck(['sleep', '60'])\n"
        "asyncio.run(process.kill(stuck))\n"
        "print(stuck.pid)\n"
    )
    with (tmp_path / "out").open("w+") as out:
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=out, timeout=30, check=True)
        out.seek(0)
        psutil.Process(int(out.read())).kill()
    assert ended.returncode == 0


@pytest.mark.anyio
async def test_requests_wait_for_the_next_worker_though_the_last_one_is_not_gone_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "PARTING", 0.1)
    monkeypatch.setattr(process, "PATIENCE", 1.0)
    async with asyncio.timeout(30), hanging(Stuck) as (worker, sent):
        provider = MLXProvider(ModelSpec(id="m", path="."), Settings())
        provider._worker.set_result(worker)
        provider._supervisor = asyncio.create_task(provider._supervise(worker))
        asking = asyncio.ensure_future(anext(provider.generate(REQUEST, print)))
        await sent.readexactly(1)
        worker._tasks[0].cancel()  # as if it had hung up
        assert not (await asyncio.wait({asking}, timeout=0.5))[0]
        assert worker._ended
        await provider.close()
        with pytest.raises(Unavailable, match="was unloaded"):
            await asking


@pytest.mark.anyio
async def test_a_model_is_not_closed_before_a_worker_that_was_just_being_ended_has_given_back_its_memory() -> None:
    async with asyncio.timeout(30), hanging(Stuck) as (worker, _):
        provider = MLXProvider(ModelSpec(id="m", path="."), Settings())
        provider._worker.set_result(worker)
        provider._supervisor = asyncio.create_task(provider._supervise(worker))
        worker._tasks[1].cancel()  # as if it had been silent for too long
        while provider.info is not None:
            await asyncio.sleep(0)
        closing = asyncio.create_task(provider.close())
        assert not (await asyncio.wait({closing}, timeout=0.3))[0]
        subprocess.Popen.kill(worker._process)
        await closing
        assert worker._process.returncode == -signal.SIGKILL


@pytest.mark.anyio
async def test_why_a_worker_ended_while_it_loaded_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    provider = MLXProvider(ModelSpec(id="m", path=str(ROOT / "openai_gateway" / "demo")), Settings())

    async def share() -> Share:
        (worker,) = [child for child in psutil.Process().children() if "openai_gateway.worker" in child.cmdline()]
        worker.kill()
        return Share()

    with pytest.raises(ModelFailed, match="ended while it loaded"):
        await provider.start(share)
    assert "most likely for lack of memory" in caplog.text
