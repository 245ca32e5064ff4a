"""Several gateway processes on one port, for machines whose processors are faster than one event loop.

Each is a whole gateway: the system hands every connection to one of them, and each loads the models that it is asked
for itself. That is worth its memory where models are small, or where most answers come from a cache; requests for one
large model are better off in one process, where they share a batch. What holds for all together, keys and limits, is in
files that all of them read.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from openai_gateway.server import ending_signals

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a process that died is replaced; twice as many each time, until one has lived for the longest."""
FAILED_START = 3
"""The exit status of a process that could not serve. The first of a place ends them all with it, as the next would fail
as well. One that replaces another does not: something has changed since they started, and the others serve."""

Work = Callable[[int, list[socket.socket]], None]
"""Serves on sockets, as number 0, 1, 2 …, until a signal ends it. It is pickled: a function of a module, or a
`functools.partial` of one."""


@dataclass(slots=True)
class Place:
    """One of the processes, or where it will be again."""

    number: int
    process: SpawnProcess | None = None
    first: bool = True
    """None of its processes has ended yet."""
    started: float = 0.0
    due: float = 0.0
    pause: float = FIRST_PAUSE

    def rest(self) -> None:
        """Nothing is started here for a while."""
        now = time.monotonic()
        self.pause = FIRST_PAUSE if now - self.started > LONGEST_PAUSE else self.pause
        self.due = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


class Processes:
    """Runs `work` in `count` processes, and replaces those that die."""

    def __init__(self, work: Work, count: int, listeners: list[socket.socket]) -> None:
        self._work = work
        self._listeners = listeners
        self._places = [Place(number) for number in range(count)]
        self._stopping = False

    def run(self) -> int:
        """Returns when a signal has ended all of them, or when one cannot serve; what it returns is an exit status."""
        for number in ending_signals():
            signal.signal(number, self._stop)
        status = 0
        while not self._stopping or any(place.process for place in self._places):
            if self._stopping:
                for listener in self._listeners:
                    listener.close()  # or the system would go on greeting those whom nobody serves any more
            else:
                self._start_due()
            sentinels = [place.process.sentinel for place in self._places if place.process]
            wait(sentinels, timeout=0.2)  # a signal does not end it
            failed = [place for place in self._places if self._bury(place)]
            if failed and not status:
                status = FAILED_START
                self._stop()
        return status

    def _stop(self, asked: int = signal.SIGTERM, _: object = None) -> None:
        """All end in order; asked again, they hurry, unless it is by a terminal that is closed, which says so twice."""
        if self._stopping and asked == signal.SIGHUP:
            return
        self._stopping = True
        for place in self._places:
            if place.process is not None:
                place.process.terminate()

    def _start_due(self) -> None:
        for place in self._places:
            if place.process is None and time.monotonic() >= place.due:
                self._start(place)

    def _start(self, place: Place) -> None:
        arguments = (self._work, place.number, self._listeners)
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments)
        place.started = time.monotonic()
        try:
            process.start()
        except OSError as error:  # the machine has no process, memory or descriptor left to give
            logger.error("gateway process %d cannot be started, and is tried again: %s", place.number, error)
            place.rest()
            return
        place.process = process
        if self._stopping:  # a signal came in between
            process.terminate()

    def _bury(self, place: Place) -> bool:
        """Whether the process of this place has ended, and another would as well."""
        if place.process is None or place.process.exitcode is None:
            return False
        status, place.process = place.process.exitcode, None
        if self._stopping or (place.first and status == FAILED_START):
            return not self._stopping
        place.first = False
        place.rest()
        logger.error("gateway process %d ended with status %d; another one takes its place", place.number, status)
        return False


def _serve(work: Work, number: int, listeners: list[socket.socket]) -> None:
    os.setsid()  # Ctrl-C is for the parent alone, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(number, listeners)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
