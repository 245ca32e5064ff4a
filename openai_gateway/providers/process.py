"""The process of a worker, as its parent sees it: how it starts, how it is told what to do, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys

from openai_gateway.logs import Logs
from openai_gateway.settings import Settings
from openai_gateway.types import ModelSpec, Share
from openai_gateway.worker import wire

logger = logging.getLogger(__name__)

BUFFER = 1 << 20
"""Bytes that wait in the socket, either way; macOS gives 8 KiB, less than one step of a full batch may bring."""

LONGEST_PASS = 1.0
"""Seconds of reading prompts at a time: macOS ends work on the GPU that holds up the display for longer."""

PARTING = 1.0
"""Seconds that a process gets to end after it has hung up: a status says why only where nobody hurried it."""

PATIENCE = 10.0
"""Seconds that a process gets to end after it was killed."""

CAUSES = {
    -signal.SIGKILL: "the system ended it, most likely for lack of memory: lower `memory`",
    -signal.SIGABRT: "it aborted, most likely for lack of memory or because the GPU failed: if there is no reason in "
    "the log above, lower `memory`",
    -signal.SIGBUS: "it crashed: a model file changed or was cut short while in use, or MLX or a driver has a fault",
    -signal.SIGSEGV: "it crashed: MLX or a driver has a fault",
}
"""What the status of a process that ended by itself most likely means."""


def start(spec: ModelSpec, logs: Logs, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A new process that logs like this, with these variables besides our own, and our end of its socket."""
    ours, theirs = connected()
    try:
        with theirs:
            command = [sys.executable, "-m", "openai_gateway.worker", str(theirs.fileno()), spec.id, logs.text]
            # A session of its own: a terminal's Ctrl-C is for the gateway alone.
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | environment,
            )
    except OSError:
        ours.close()
        raise
    return process, ours


def connected() -> tuple[socket.socket, socket.socket]:
    """Two sockets, each of which takes `BUFFER` bytes (or what the system allows) that the other has not read."""
    pair = socket.socketpair()
    for end in pair:
        for direction in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, direction, BUFFER)
    return pair


def order(settings: Settings, share: Share) -> wire.Engine:
    """What a worker is told about its loop."""
    return wire.Engine(
        max_batch=settings.max_batch,
        prefill_step=settings.prefill_step,
        max_stall=settings.max_stall,
        max_silence=min(LONGEST_PASS, settings.heartbeat_timeout / 4),
        heartbeat=min(1.0, settings.heartbeat_timeout / 4),
        wired_limit=settings.wired_limit,
        memory=settings.memory,
        quantization=settings.quantization,
        share=share,
        prefix_cache=settings.prefix_cache,
        share_prefixes=settings.share_prefixes,
        prefix_disk=settings.prefix_disk,
        prefix_folder=str(settings.prefix_folder),
    )


async def receive(reader: asyncio.StreamReader) -> wire.FromWorker:
    """The next frame of a worker. Raises EOFError when there is none."""
    (length,) = wire.HEADER.unpack(await reader.readexactly(wire.HEADER.size))
    return wire.decode_from_worker(await reader.readexactly(length))


async def explain(process: subprocess.Popen[bytes]) -> None:
    """Log why a process has hung up, as far as its end tells."""
    if await _ends(process, PARTING):
        status = process.returncode
        cause = CAUSES.get(status, "if it said why, it did so in the log above")
        logger.error("worker process %d ended by itself with status %d: %s", process.pid, status, cause)
    else:
        logger.error("worker process %d cannot be talked to any more and is ended", process.pid)


async def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process; returns when its memory is given back, or never will be."""
    process.kill()
    if not await _ends(process, PATIENCE):
        logger.error(
            "worker process %d cannot be ended: the system holds it, most likely because the GPU's driver is stuck. "
            "Its memory stays taken until this machine is restarted.",
            process.pid,
        )


async def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends in this time."""
    # It is looked at again and again: a thread that waited for it would keep the gateway from ending.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while process.poll() is None:
                await asyncio.sleep(0.01)
    return process.returncode is not None
