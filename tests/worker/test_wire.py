from __future__ import annotations

import math
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from openai_gateway.types import (
    ChatRequest,
    CompletionRequest,
    Defaults,
    Delta,
    Echo,
    Failed,
    Message,
    ModelInfo,
    ModelSpec,
    Progress,
    Sampling,
    Started,
    TokenLogprob,
    ToolCall,
)
from openai_gateway.worker import wire

SPEC = ModelSpec(id="m", path="p", defaults=Defaults(temperature=0.5, reasoning_effort="high"), context_length=10)
INFO = ModelInfo(
    context_length=1,
    vocab_size=2,
    architecture="a",
    reasoning="hint",
    chat_template=True,
    fill_in_the_middle=False,
    parameters=3,
    pid=4,
)
CHAT = ChatRequest(
    model="m",
    messages=(
        Message("user", "日本 \x00 👍", name="n"),
        Message("assistant", None, reasoning="r", tool_calls=(ToolCall("1", "f", "{}"),)),
        Message("tool", "done", tool_call_id="1"),
    ),
    sampling=Sampling(logit_bias={7: -100.0, 8: 0.5}, seed=-(2**63), stop=("a", "b"), stop_token_ids=(1,), logprobs=0),
    effort="none",
    template_kwargs={"enable_thinking": False, "level": 1.5},
    continue_final=True,
)
ENTRY = TokenLogprob("\ufffd", b"\xe2\x80", -0.25, (("a", b"a", -0.25), ("b", b"b", -math.inf)))


@pytest.mark.parametrize(
    "message",
    [
        wire.Fetch(SPEC),
        wire.Load(wire.Engine(max_batch=3, heartbeat=0.5, wired_limit=True)),
        wire.Generate(0, CHAT),
        wire.Generate(2**40, CompletionRequest(model="m", prompt=(1, 2, 3), echo=True)),
        wire.Generate(1, CompletionRequest(model="m", prompt="text", suffix="end")),
        wire.Cancel(5),
    ],
)
def test_what_the_gateway_says_arrives_as_it_is(message: wire.ToWorker) -> None:
    assert wire.decode_to_worker(wire.encode(message)[4:]) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.Ready(INFO),
        wire.Broken("FileNotFoundError: x"),
        wire.Step([]),
        wire.Step(
            [
                (1, Started(5, 3)),
                (2, Progress(512, 4000)),
                (3, Echo.of("x", [TokenLogprob("x", b"x", None), ENTRY])),
                (1, Delta(0, "text", "thought", (ENTRY,), 3, 2, "stop")),
                (4, Delta(1)),
                (5, Failed("InvalidRequest", "no", "messages")),
            ]
        ),
    ],
)
def test_what_a_worker_says_arrives_as_it_is(message: wire.FromWorker) -> None:
    assert wire.decode_from_worker(wire.encode(message)[4:]) == message


def test_neither_side_takes_the_other_sides_messages() -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_to_worker(wire.encode(wire.Step([]))[4:])
    with pytest.raises(msgspec.ValidationError):
        wire.decode_from_worker(wire.encode(wire.Cancel(1))[4:])


def sent(*pieces: bytes) -> list[bytes]:
    """The frames that come of these bytes, sent one piece after the other before the socket is closed."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with ours:
            for piece in pieces:
                ours.sendall(piece)

    with theirs:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            return list(wire.frames(theirs))
        finally:
            thread.join()


def test_frames_come_whole_however_the_bytes_arrive() -> None:
    messages: list[wire.ToWorker] = [wire.Cancel(1), wire.Generate(2, CHAT), wire.Cancel(3)]
    stream = b"".join(map(wire.encode, messages))
    for size in (1, 3, 7, len(stream)):
        frames = sent(*(stream[i : i + size] for i in range(0, len(stream), size)))
        assert [wire.decode_to_worker(frame) for frame in frames] == messages


def test_a_large_frame_comes_whole() -> None:
    message = wire.Generate(1, CompletionRequest(model="m", prompt="x" * 3_000_000))
    (frame,) = sent(wire.encode(message))
    assert wire.decode_to_worker(frame) == message


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_a_frame_that_breaks_off_is_none(cut: int) -> None:
    whole = wire.encode(wire.Cancel(1))
    assert sent(whole + whole[:cut]) == [whole[4:]]


def test_a_length_that_no_frame_has_is_an_error_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="frame of"):
        sent(wire.HEADER.pack(wire.LIMIT + 1), b"x")


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of threads")
def test_who_waits_for_frames_sleeps_while_the_other_side_takes_what_it_was_sent() -> None:
    ours, theirs = socket.socketpair()

    def wait() -> None:
        list(wire.frames(theirs))

    with theirs:
        thread = threading.Thread(target=wait)
        thread.start()
        with ours:
            ours.sendall(wire.encode(wire.Cancel(1)))
            times = _slept(thread)
            while (now := _slept(thread)) > times:  # until it waits for the next one
                times = now
            for _ in range(100):
                theirs.sendall(b"x")
                assert ours.recv(1) == b"x"
            assert _slept(thread) - times < 10
        thread.join()


def _slept(thread: threading.Thread) -> int:
    """How often it has gone to sleep, some time from now."""
    time.sleep(0.2)
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
