"""What an engine leaves for its prefix cache, put there when the tokens of the step are on their way."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import mlx.core as mx

from openai_gateway.worker.batch import Decoding
from openai_gateway.worker.fatal import raise_if_fatal
from openai_gateway.worker.model import Cache
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.reading import Reading
from openai_gateway.worker.rows import Row
from openai_gateway.worker.snapshots import Snapshot

logger = logging.getLogger(__name__)

FEW = 8
"""Fewer tokens than these are never added to a kept prefix: they are read again as fast as they are kept."""
WORK = 1024
"""Tokens to be added, times those up to their end, are the work to read them again: from here on they are added."""
LARGE = 4096
"""Tokens whose keys and values are not held twice, not even until the first token is out."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Tokens of an owner, the caches of one row that hold them, and snapshots by length."""

    owner: str
    tokens: list[int]
    cache: Cache
    snapshots: dict[int, Snapshot]


class Keeping:
    """Collects during a step, and keeps after it: to copy keys and values takes time that a first token has not."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._leaving: list[Leaving] = []

    def part(self, reading: Reading) -> None:
        """What is read of a prompt that is in a cache of its own."""
        if self._is_worth(reading.done - reading.cached, reading.done):
            # A copy that costs nothing before one of the two is written to; then it is one of everything.
            self._leave(reading, copy.deepcopy(reading.cache))
            if reading.done - reading.cached > LARGE:
                self.settle()

    def prompt(self, reading: Reading, batch: Decoding) -> None:
        """A prompt that was read together with others, and is in a batch with them now."""
        if self._is_worth(reading.done - reading.cached, reading.done):
            self._leave(reading, batch.cache_of(reading.rows[0]))

    def row(self, row: Row, batch: Decoding) -> None:
        """All that the batch holds of a row; before it is taken out of there."""
        if self._is_worth(row.stored - row.kept, row.stored):
            cache, beyond = batch.cache_of(row), row.stored - len(row.tokens)
            for layer in cache if beyond > 0 else ():  # of a guess that went on behind the end
                layer.trim(beyond)
            self._leaving.append(Leaving(row.job.owner, row.tokens[: row.stored], cache, {}))

    def snapshot(self, reading: Reading) -> None:
        """Where this prompt can be entered again, for models that cannot be entered anywhere."""
        if snapshot := self._prefixes.snapshot(reading.cache):
            reading.snapshots[reading.done] = snapshot

    def settle(self) -> None:
        """Keep what was left. Raises `DeviceFailed` alone: what cannot be kept is read again."""
        if not self._leaving:
            return
        try:
            mx.synchronize()  # what the device failed in is thrown here, before any of it is kept
            for left in self._leaving:
                self._prefixes.keep(left.owner, left.tokens, left.cache, left.snapshots | self._last(left))
        except Exception as error:
            raise_if_fatal(error)
            logger.exception("a prefix cannot be kept")
        finally:
            self._leaving.clear()

    def _last(self, left: Leaving) -> dict[int, Snapshot]:
        """A snapshot before the last token if that can be had: who asks the same again has to read that one."""
        for back in (1, 0):
            if len(left.tokens) > back and (snapshot := self._prefixes.snapshot(left.cache, back)):
                return {len(left.tokens) - back: snapshot}
        return {}

    def idle(self) -> bool:
        """Write one kept run to disk, where that is wanted; whether there was one to write.

        Raises `DeviceFailed` alone.
        """
        try:
            return self._prefixes.flush(1)
        except Exception as error:
            raise_if_fatal(error)
            logger.exception("a prefix cannot be written")
            return False

    def _is_worth(self, fresh: int, length: int) -> bool:
        """Whether to keep the last `fresh` of so many tokens."""
        return self._prefixes.keeping and fresh >= FEW and fresh * length >= WORK

    def _leave(self, reading: Reading, cache: Cache) -> None:
        self._leaving.append(Leaving(reading.job.owner, reading.tokens[: reading.done], cache, dict(reading.snapshots)))
        for row in reading.rows:
            row.kept = reading.done
