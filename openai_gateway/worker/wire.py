"""The frames between the gateway and a worker: typed messages in MessagePack behind a length, no pickle.

A frame is a 4-byte big-endian length followed by that many bytes. The gateway opens with `Fetch`, which the
worker answers with `Fetched`, and goes on with `Load`, answered with `Ready` (or at any point `Broken`, and the end).
From then on the worker takes `Generate` and `Cancel`, and sends one `Step` for each pass of its loop; a `Step` without
events is a heartbeat.
"""

from __future__ import annotations

import io
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from openai_gateway.types import Event, ModelInfo, ModelSpec, Quantization, Request, Share, Stats

HEADER = struct.Struct(">I")
LIMIT = 256 * 1024 * 1024
"""Largest frame, in bytes; a longer length means the stream is out of step."""


class Engine(Struct, frozen=True, kw_only=True):
    """How the worker's loop is sized; see the settings of the same names."""

    max_batch: int = 64
    prefill_step: int | None = None
    max_stall: float = 0.2
    max_silence: float = 1.0
    """Seconds, about, that a pass of the loop may read prompts: until it ends nothing is heard of the worker, which
    takes no newcomer and lets nobody go."""
    heartbeat: float = 1.0
    """Seconds between heartbeats of an idle worker."""
    wired_limit: bool = False
    memory: int | Literal["auto"] = "auto"
    quantization: Quantization = "auto"
    share: Share = Share()
    prefix_cache: int | Literal["auto"] = "auto"
    share_prefixes: bool = False
    prefix_disk: int = 0
    prefix_folder: str = ""


class Fetch(Struct, frozen=True, tag="fetch"):
    """Which model it is. Its files may have to be downloaded."""

    spec: ModelSpec


class Load(Struct, frozen=True, tag="load"):
    """Load it into memory now: nobody else does."""

    engine: Engine


class Generate(Struct, frozen=True, tag="generate"):
    id: int
    request: Request


class Cancel(Struct, frozen=True, tag="cancel"):
    id: int


class Fetched(Struct, frozen=True, tag="fetched"):
    """The model's files are on this machine: what takes as long as the network does is over."""


class Ready(Struct, frozen=True, tag="ready"):
    info: ModelInfo


class Broken(Struct, frozen=True, tag="broken"):
    """The model cannot be loaded."""

    message: str
    crowded: bool = False
    """It can be with fewer models beside it."""


class Step(Struct, frozen=True, tag="step"):
    """What one pass of the loop brought, for all rows: (request id, event) in order; `stats` now and then."""

    events: list[tuple[int, Event]]
    stats: Stats | None = None


ToWorker = Fetch | Load | Generate | Cancel
FromWorker = Fetched | Ready | Broken | Step

_encoder = msgspec.msgpack.Encoder()
decode_to_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker: Callable[[bytes], FromWorker] = msgspec.msgpack.Decoder(FromWorker).decode


def encode(message: ToWorker | FromWorker) -> bytes:
    """The whole frame, length included."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


class _Arriving(io.RawIOBase):
    """What arrives on a blocking socket.

    Whoever waits in `recv` is woken by Linux also when the other side has read what was sent there: at every step.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._poll.poll()
        return self._sock.recv_into(buffer)


def frames(sock: socket.socket) -> Iterator[bytes]:
    """The bodies of the frames that arrive on a blocking socket, until the other side closes it.

    A frame that breaks off is none. Raises ValueError for one that is longer than `LIMIT`.
    """
    with io.BufferedReader(_Arriving(sock), 1 << 16) as stream:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            (length,) = HEADER.unpack(header)
            if length > LIMIT:
                raise ValueError(f"a frame of {length} bytes")
            if len(body := stream.read(length)) < length:
                return
            yield body
