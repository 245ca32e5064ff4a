from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.types import (
    ChatRequest,
    CompletionRequest,
    Delta,
    Event,
    Failed,
    Message,
    ModelSpec,
    Request,
    Sampling,
    Started,
)
from openai_gateway.worker import fatal, wire
from tests.worker import tiny

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "openai_gateway" / "demo"
EXPLODES = "{% for m in messages %}{{ m.content + missing }}{% endfor %}"


class Worker:
    """A worker process with our end of its socket, and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self._frames = wire.frames(sock)
        self.events: dict[int, list[Event]] = {}

    def send(self, *messages: wire.ToWorker) -> None:
        self.sock.sendall(b"".join(map(wire.encode, messages)))

    def receive(self) -> wire.FromWorker:
        return wire.decode_from_worker(next(self._frames))

    def ready(self) -> wire.Ready:
        assert isinstance(self.receive(), wire.Fetched)
        message = self.receive()
        assert isinstance(message, wire.Ready)
        return message

    def step(self) -> wire.Step:
        message = self.receive()
        assert isinstance(message, wire.Step)
        for id, event in message.events:
            self.events.setdefault(id, []).append(event)
        return message

    def over(self, id: int, n: int = 1) -> bool:
        events = self.events.get(id, [])
        finished = sum(isinstance(event, Delta) and event.finish is not None for event in events)
        return finished == n or any(isinstance(event, Failed) for event in events)

    def finish(self, *ids: int) -> None:
        while not all(map(self.over, ids)):
            self.step()

    def text(self, id: int) -> str:
        return "".join(event.content + event.reasoning for event in self.events[id] if isinstance(event, Delta))

    def tokens(self, id: int) -> int:
        return sum(event.tokens for event in self.events[id] if isinstance(event, Delta))


@contextmanager
def started(path: Path, *, told: bool = True, module: str = "openai_gateway.worker", **engine: Any) -> Iterator[Worker]:
    """A worker that was told what to load, if it was."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", module, str(theirs.fileno()), "tiny", "{}"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=ROOT)
        theirs.close()
        try:
            worker = Worker(process, ours)
            if told:
                worker.send(wire.Fetch(ModelSpec(id="m", path=str(path))), wire.Load(wire.Engine(**engine)))
            yield worker
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with started(DEMO, heartbeat=0.2, prefill_step=64, max_batch=16) as process:
        assert process.ready().info.pid == process.process.pid
        yield process


def complete(prompt: str = "Once", max_tokens: int = 8, **sampling: Any) -> CompletionRequest:
    settings = {"temperature": 0.0, "ignore_eos": True} | sampling
    return CompletionRequest(model="m", prompt=prompt, sampling=Sampling(max_tokens=max_tokens, **settings))


def chat(**more: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=(Message("user", "hi"),), sampling=Sampling(max_tokens=8), **more)


# Ids rise from test to test, as a gateway's do.


def test_a_request_is_accepted_and_answered(worker: Worker) -> None:
    worker.send(wire.Generate(1, complete()), wire.Generate(2, chat()))
    worker.finish(1, 2)
    for id in (1, 2):
        assert isinstance(worker.events[id][0], Started)
        assert isinstance(worker.events[id][-1], Delta)
    assert worker.tokens(1) == 8


def test_a_request_that_cannot_be_served_is_refused_by_name_and_never_started(worker: Worker) -> None:
    refused: dict[int, Request] = {
        10: chat(template_kwargs={"unknown": 1}),
        11: complete("x" * 200_000),
        12: complete(logit_bias={10**6: 1.0}),
    }
    worker.send(*(wire.Generate(id, request) for id, request in refused.items()), wire.Generate(13, complete()))
    worker.finish(*refused, 13)
    failures = {id: worker.events[id] for id in refused}
    assert [[type(event) for event in events] for events in failures.values()] == [[Failed]] * 3
    assert [events[0].error for events in failures.values() if isinstance(events[0], Failed)] == [
        "InvalidRequest", "ContextLengthExceeded", "InvalidRequest",
    ]  # fmt: skip
    assert [events[0].param for events in failures.values() if isinstance(events[0], Failed)] == [
        "chat_template_kwargs", "prompt", "logit_bias",
    ]  # fmt: skip
    assert worker.tokens(13) == 8


def test_a_cancelled_request_is_not_heard_of_again(worker: Worker) -> None:
    worker.send(wire.Generate(20, complete(max_tokens=5000)), wire.Generate(21, complete(max_tokens=60)))
    while not worker.tokens(20) if 20 in worker.events else True:
        worker.step()
    worker.send(wire.Cancel(20))
    worker.finish(21)
    assert not worker.over(20)
    worker.send(wire.Generate(22, complete()))
    worker.finish(22)
    before = len(worker.events[20])
    worker.step()
    assert len(worker.events[20]) == before
    assert worker.text(22) == worker.text(21)[: len(worker.text(22))]


def test_a_cancellation_overtakes_its_own_request(worker: Worker) -> None:
    # The first prompt takes a while to make, so that the second is cancelled before it is one.
    worker.send(
        wire.Generate(30, complete("ab " * 250_000)),
        wire.Generate(31, complete(max_tokens=5000)),
        wire.Cancel(31),
        wire.Generate(32, complete()),
    )
    worker.finish(30, 32)
    assert isinstance(worker.events[30][-1], Failed)
    assert 31 not in worker.events


def test_many_requests_are_answered_alike(worker: Worker) -> None:
    ids = range(100, 160)
    worker.send(*(wire.Generate(id, complete(max_tokens=12)) for id in ids))
    worker.finish(*ids)
    assert {worker.tokens(id) for id in ids} == {12}
    assert len({worker.text(id) for id in ids}) == 1


def test_an_idle_worker_gives_signs_of_life(worker: Worker) -> None:
    worker.send(wire.Generate(200, complete()))
    worker.finish(200)
    began = time.monotonic()
    assert [worker.step().events for _ in range(4)] == [[]] * 4
    assert 0.3 < time.monotonic() - began < 30


def test_a_busy_worker_gives_signs_of_life_while_it_reads_a_long_prompt(worker: Worker) -> None:
    worker.send(wire.Generate(210, CompletionRequest(model="m", prompt=(70,) * 1000, sampling=Sampling(max_tokens=1))))
    steps = 0
    while not worker.over(210):
        worker.step()
        steps += 1
    assert steps >= 1000 // 64


def test_an_interrupt_is_for_the_gateway_alone(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGINT)
    worker.send(wire.Generate(220, complete()))
    worker.finish(220)
    assert worker.tokens(220) == 8


# Processes of their own


def test_a_worker_ends_with_its_socket_even_in_the_middle_of_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with started(DEMO) as worker:
        worker.ready()
        worker.send(wire.Generate(0, complete(max_tokens=20_000)))
        while not worker.events:
            worker.step()
        select.select([worker.sock], [], [], 30)  # with something unread the connection is reset
        os.close(worker.sock.detach())  # `close` leaves it open for the file that reads frames from it
        assert worker.process.wait(30) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("told", [True, False])
def test_a_worker_whose_gateway_is_gone_before_it_has_loaded_ends_without_a_word(
    told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with started(DEMO, told=told) as worker:
        worker.sock.close()
        assert worker.process.wait(30) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_hears_nonsense_ends() -> None:
    with started(DEMO) as worker:
        worker.ready()
        worker.sock.sendall(wire.HEADER.pack(3) + b"abc")
        worker.process.wait(30)


def test_a_model_that_cannot_be_loaded_is_said_to_be_broken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with started(tmp_path) as worker:
        assert isinstance(worker.receive(), wire.Fetched)
        message = worker.receive()
        assert isinstance(message, wire.Broken)
        assert message.message
        assert worker.process.wait(30) == 1


def test_a_worker_whose_device_fails_answers_nobody_any_more_and_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with started(tiny.save(tmp_path, tiny.LLAMA), module="tests.worker.failing") as worker:
        worker.ready()
        worker.send(wire.Generate(0, complete()))
        worker.finish(0)
        worker.send(wire.Generate(1, complete("x" * 30)))
        with pytest.raises(StopIteration):
            worker.finish(1)
        assert worker.process.wait(30) == fatal.STATUS
    assert 1 not in worker.events
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "Insufficient Memory" in line]
    assert "lower `memory`" in line


def test_g33_a_template_that_explodes_fails_its_requests_and_nothing_else(tmp_path: Path) -> None:
    with started(tiny.save(tmp_path, tiny.LLAMA, template=EXPLODES), heartbeat=0.2) as worker:
        worker.ready()
        worker.send(wire.Generate(0, chat()), wire.Generate(1, complete()), wire.Generate(2, chat()))
        worker.finish(0, 1, 2)
        for id in (0, 2):
            (failure,) = worker.events[id]
            assert isinstance(failure, Failed)
            assert (failure.error, failure.param) == ("InvalidRequest", "messages")
        assert worker.tokens(1) == 8
