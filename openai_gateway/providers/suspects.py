"""Which request it is that ends one worker after the other; knows nothing of workers.

Clients send what failed again by themselves, and each time all that runs beside it fails as well.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

import msgspec

from openai_gateway.errors import ModelFailed
from openai_gateway.types import Request

TERM = 600.0
"""Seconds for which a death is remembered: to load a model and read a prompt may take minutes."""


class Suspects:
    """Tells the client of the request that was there each time that a worker died, if it was the only such one.

    Whoever runs beside what ends them is never the only one, for that is always there as well. Of requests that always
    come together none is blamed: one client may have sent them all, or an innocent one may try again each time as well.
    `clock` is in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._common: set[bytes] = set()
        """What ran at each of the last deaths."""
        self._until = 0.0
        self._blamed: set[bytes] = set()
        """For the last one; one request, or none."""

    def died(self, running: Iterable[Request]) -> None:
        """A worker died while it was answering these."""
        now = self._clock()
        requests = {_digest(request) for request in running}
        again = requests & self._common if now < self._until else set()
        self._blamed = again if len(again) == 1 else set()
        self._common, self._until = again or requests, now + TERM

    def check(self, request: Request) -> None:
        """Raises ModelFailed, which no client tries again by itself, for one that the last death is blamed on.

        Who sends it again all the same may have it: it may have been somebody at a terminal who ended the workers.
        """
        if self._blamed and self._clock() < self._until and _digest(request) in self._blamed:
            raise ModelFailed(
                "The model's worker ended each of the last times that this request was being answered. The server's "
                "log says how; a shorter prompt may pass."
            )


def _digest(request: Request) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(request)).digest()
