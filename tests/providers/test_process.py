"""How worker processes are told what to do, and what is said of their ends."""

from __future__ import annotations

import socket
import subprocess

import pytest

from openai_gateway.providers.process import connected, explain, kill, order
from openai_gateway.settings import Settings
from openai_gateway.types import Share


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("kill -KILL $$", "status -9: the system ended it, most likely for lack of memory: lower `memory`"),
        (
            "ulimit -c 0; kill -ABRT $$",
            "status -6: it aborted, most likely for lack of memory",
        ),
        ("ulimit -c 0; kill -SEGV $$", "status -11: it crashed: MLX or a driver has a fault"),
        ("sleep 0.2; exit 70", "status 70: if it said why, it did so in the log above"),
    ],
)
async def test_why_a_process_ended_by_itself_is_said_in_plain_words(
    command: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    await explain(subprocess.Popen(["sh", "-c", command]))
    assert f"ended by itself with {said}" in caplog.text


@pytest.mark.anyio
async def test_a_process_that_we_end_is_gone_and_is_not_said_to_have_ended_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = subprocess.Popen(["sleep", "60"])
    await kill(process)
    assert process.returncode == -9
    assert caplog.text == ""


def test_much_waits_in_the_sockets_of_a_worker_either_way() -> None:
    usual, ours_and_theirs = socket.socketpair(), connected()
    for end in (0, 1):
        assert room(ours_and_theirs, end) > room(usual, end)
    for each in (*usual, *ours_and_theirs):
        each.close()


def room(pair: tuple[socket.socket, socket.socket], end: int) -> int:
    """Bytes that can be sent from one end before the other reads."""
    pair[end].setblocking(False)
    sent = 0
    try:
        while True:
            sent += pair[end].send(bytes(1024))
    except BlockingIOError:
        return sent


@pytest.mark.parametrize(("timeout", "seconds"), [(30, 1.0), (1, 0.25)])
def test_prompts_are_read_for_a_second_at_a_time_and_much_shorter_than_a_worker_may_be_silent(
    timeout: float, seconds: float
) -> None:
    assert order(Settings(heartbeat_timeout=timeout), Share()).max_silence == seconds
