"""The worker process: `python -m openai_gateway.worker FD MODEL LOGS` serves one model over the socket FD.

One thread reads frames, others turn requests into jobs, and the main one owns the model and runs the loop: drain the
inbox, take one step for all rows, send one frame. When the gateway goes away, so does the worker.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from openai_gateway import logs
from openai_gateway.errors import Crowded
from openai_gateway.types import ModelSpec
from openai_gateway.worker import wire
from openai_gateway.worker.arrivals import Arrivals, Item, Refused
from openai_gateway.worker.engine import Engine, Out
from openai_gateway.worker.fatal import STATUS, DeviceFailed, advised
from openai_gateway.worker.prompt import Job

if TYPE_CHECKING:
    from openai_gateway.worker.load import Loaded

logger = logging.getLogger("openai_gateway.worker")

STATS_EVERY = 0.5
"""Seconds between two reports of how a busy engine is doing; an idle one says so with its heartbeat."""


def main(fd: int) -> None:
    """Load what the first frame names, then serve until the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which drains first
    # The loop computes without a pause: at Python's own 5 ms, a newcomer waits that long for each thread it passes.
    sys.setswitchinterval(0.0005)
    sock = socket.socket(fileno=fd)
    incoming = wire.frames(sock)
    wanted = next(map(wire.decode_to_worker, incoming), None)
    if wanted is None:
        return  # the gateway is gone already
    if not isinstance(wanted, wire.Fetch):
        raise SystemExit("the first frame must say what to fetch")
    arrivals, orders = Arrivals(), queue.SimpleQueue[wire.Engine]()
    # From now on: a gateway that goes away takes with it a worker that is still loading, or downloading.
    threading.Thread(target=_read, args=(incoming, arrivals, orders), daemon=True).start()

    loaded, engine, heartbeat = _load(wanted.spec, orders, sock)
    # What imports and loading made stays: looking through it again and again holds a step up for tens of milliseconds.
    gc.collect()
    gc.freeze()
    arrivals.prepare(loaded.prompts)
    _tell(sock, wire.Ready(loaded.info))
    try:
        _serve(engine, arrivals.inbox, sock, heartbeat)
    except ConnectionError:
        pass
    except DeviceFailed as failure:
        logger.critical("the model cannot go on; this process ends, so that another takes over: %s", failure)
        os._exit(STATUS)  # at once: to free what is on a device that has failed may take for ever


def _load(spec: ModelSpec, orders: queue.SimpleQueue[wire.Engine], sock: socket.socket) -> tuple[Loaded, Engine, float]:
    """The model, its engine, and seconds between heartbeats; says why, and ends the process, where it cannot be."""
    # Imports that take seconds, spent after the handshake.
    from openai_gateway.worker.build import build
    from openai_gateway.worker.load import fetched, keep_wired_limit, load

    try:
        spec = fetched(spec)
        _tell(sock, wire.Fetched())
        order = orders.get()
        keep_wired_limit()
        loaded = load(spec, order)
        engine = build(loaded, spec, order)
    except Crowded as error:
        logger.info("cannot load %s: %s", spec.id, error)
        _tell(sock, wire.Broken(error.message, crowded=True))
        raise SystemExit(1) from None
    except Exception as error:
        # Where a file is missing, which one says it all.
        logger.error("cannot load %s: %s", spec.id, error, exc_info=not isinstance(error, FileNotFoundError))
        _tell(sock, wire.Broken(f"{type(error).__name__}: {advised(error)}"))
        raise SystemExit(1) from None
    return loaded, engine, order.heartbeat


def _tell(sock: socket.socket, message: wire.FromWorker) -> None:
    # Where the gateway is gone, the reading thread notices as well, and ends this process.
    with suppress(ConnectionError):
        sock.sendall(wire.encode(message))


def _read(incoming: Iterator[bytes], arrivals: Arrivals, orders: queue.SimpleQueue[wire.Engine]) -> None:
    try:
        for frame in incoming:
            match wire.decode_to_worker(frame):
                case wire.Load() as load:
                    orders.put(load.engine)
                case wire.Generate() as request:
                    arrivals.add(request)
                case wire.Cancel() as cancel:
                    arrivals.cancel(cancel)
    except ConnectionError as error:
        logger.warning("the gateway is gone: %s", error)
    except (ValueError, msgspec.MsgspecError):
        logger.exception("the gateway cannot be heard any more")
    finally:
        os._exit(0)  # whatever the main thread is in the middle of: nobody can ask for it or use it


def _serve(engine: Engine, inbox: queue.SimpleQueue[Item], sock: socket.socket, heartbeat: float) -> None:
    """The loop. It looks into the inbox before every step, so a newcomer waits for one step at the most."""
    reported, more = 0.0, False
    while True:
        out: list[Out] = []
        try:
            item = inbox.get(block=not (engine.busy or more), timeout=heartbeat)
            while True:
                out += _take(engine, item)
                item = inbox.get_nowait()
        except queue.Empty:
            pass
        if engine.busy:
            out += engine.step()
        stats = None
        if (now := time.monotonic()) - reported >= STATS_EVERY or not engine.busy:
            reported, stats = now, engine.stats
        sock.sendall(wire.encode(wire.Step(out, stats)))
        engine.settle()
        more = engine.idle()


def _take(engine: Engine, item: Item) -> list[Out]:
    match item:
        case wire.Cancel():
            engine.cancel(item.id)
        case Refused():
            return [(item.id, item.reason)]
        case Job():
            engine.submit(item)
    return []


if __name__ == "__main__":
    logs.configure(logs.Logs.read(sys.argv[3]), f"worker-{sys.argv[2]}")
    main(int(sys.argv[1]))
