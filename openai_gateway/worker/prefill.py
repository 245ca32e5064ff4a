"""The prompts that are being read, a bounded part of them at each step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from openai_gateway.worker import reading as prompts
from openai_gateway.worker.admission import LEAST, Limits
from openai_gateway.worker.batch import Decoding
from openai_gateway.worker.keeping import Keeping
from openai_gateway.worker.model import Model
from openai_gateway.worker.reading import Reading


class Prefill:
    """Reads `readings`, and keeps what can be kept. `vocabulary` counts tokens; `totals` are the engine's."""

    def __init__(self, model: Model, limits: Limits, keeping: Keeping, vocabulary: int, totals: Counter[str]) -> None:
        self.readings: list[Reading] = []
        self._model = model
        self._limits = limits
        self._keeping = keeping
        self._vocabulary = vocabulary
        self._totals = totals
        self._pace = 0.0
        """Tokens read in a second, when many were read last."""
        self._begun = 0.0
        self._arrived = 0.0
        """When what was read last had been waited for, and what decoded beside it."""
        self._reading = 0
        """Tokens that are read since `_begun`, and not waited for yet."""
        self._alone = False
        """Whether the last step was for those that end, though there was a long prompt to read a part of."""
        self._oldest = True
        """Whether the next part is for the prompt that came first."""

    @property
    def nbytes(self) -> int:
        """Of the caches, and of snapshots."""
        caches = sum(layer.nbytes for reading in self.readings for layer in reading.cache)
        return caches + sum(reading.snapshots_nbytes for reading in self.readings)

    def room(self, *, waited_for: bool) -> int:
        """Most tokens to read in a step; `waited_for`: about as many as running answers may be held up for.

        Few while it is not known how long they take.
        """
        limits = self._limits
        seconds = min(limits.max_stall, limits.max_silence) if waited_for else limits.max_silence
        if seconds == math.inf:
            return limits.prefill_step
        # Attention makes tokens of long prompts ever slower.
        return int(min(limits.prefill_step, max(LEAST, self._pace * seconds)))

    def due(self, rows: int) -> tuple[list[list[Reading]], Reading | None, int]:
        """Groups to read to their ends now, and of which other one to read a part, of how many tokens; so many `rows`
        that decode will wait for it.

        Those that end go first and alone: who came while a part was read does not wait for the next one as well. In the
        step behind that, a long prompt gets at least half of the room. Every second part is for the one that came
        first, which would wait for ever if shorter ones always went before it.
        """
        room = self.room(waited_for=rows > 0)
        ending, long = self._next(room)
        if both := bool(ending) and long is not None and self._alone:
            ending, long = self._next(max(1, room // 2))
        self._alone = bool(ending) and long is not None and not both
        # A prompt with several choices becomes several rows, and so is alone.
        singles = [reading for reading in ending if len(reading.rows) == 1]
        together = prompts.groups(singles, one_pass=self._in_one_pass(singles))
        groups = [[reading] for reading in ending if len(reading.rows) > 1] + together
        if self._alone:
            return groups, None, 0
        if long is None:
            return [] if len(ending) < rows and self._rests() else groups, None, 0
        self._oldest = not self._oldest
        room -= sum(reading.left for reading in ending)
        room = max(room, min(LEAST, self._limits.prefill_step))
        return groups, long, long.part(min(room, self._limits.fitting(long.done)))

    def _next(self, room: int) -> tuple[list[Reading], Reading | None]:
        entered = [reading for reading in self.readings if reading.entered]
        return prompts.next_to_read(entered, room, self._limits.fitting, oldest=self._oldest)

    def _in_one_pass(self, group: list[Reading]) -> bool:
        """Whether one pass for all that is left of these prompts is faster than one more for their last tokens, which
        spares the others their logits, and scores that are kept in the last layer."""
        longest = max((reading.left for reading in group), default=0)
        end = max((len(reading.tokens) for reading in group), default=0)
        return len(group) * longest * (self._vocabulary + self._limits.scores(end)) <= self._limits.logits

    def _rests(self) -> bool:
        """Whether those who wait, fewer than those who decode, are to wait for more, as small packets do by Nagle's
        algorithm: no longer than the last pass took. A storm of arrivals is read in fewer passes by that, and running
        answers keep half of their pace."""
        rest = min(self._arrived - self._begun, self._limits.max_stall)
        return self._limits.max_stall < math.inf and monotonic() - self._arrived < rest

    @contextmanager
    def timed(self, count: int) -> Iterator[None]:
        """While a part of `count` tokens is read, and waited for."""
        self._begin(count)
        yield
        self.arrived()

    def _begin(self, count: int) -> None:
        if not self._reading:
            self._begun = monotonic()
        self._reading += count
        self._totals["read_tokens"] += count

    def arrived(self) -> None:
        """All that is read has been waited for."""
        if self._reading:
            self._arrived = monotonic()
        if self._reading >= LEAST:  # fewer say more of what a pass costs by itself
            self._pace = self._reading / (self._arrived - self._begun)
        self._reading = 0

    def part(self, reading: Reading, count: int) -> None:
        """Reads `count` tokens of a long prompt."""
        with self.timed(count):
            prompts.read_part(self._model, reading, count)
        self._keeping.snapshot(reading)
        reading.thin(self._limits.snapshots(reading))

    def finish(self, group: list[Reading]) -> Decoding:
        """Reads all that is left of these prompts, and makes a batch of their rows, who will wait for it."""
        self._begin(sum(reading.left for reading in group))
        if len(group) > 1:
            return self._together(group)
        (reading,) = group
        logits = prompts.read_rest(self._model, reading, one_pass=self._in_one_pass(group))
        self._keeping.part(reading)
        self.readings.remove(reading)
        cache, reading.cache = reading.cache, []
        return prompts.begin(self._model, group, cache, logits)

    def _together(self, group: list[Reading]) -> Decoding:
        cache, logits = prompts.read_together(self._model, group, one_pass=self._in_one_pass(group))
        self.readings[:] = [reading for reading in self.readings if reading not in group]
        newcomers = prompts.begin(self._model, group, cache, logits)
        for reading in group:
            self._keeping.prompt(reading, newcomers)
        return newcomers

    def drop(self, id: int) -> None:
        """Forgets the prompt of a request."""
        self.readings[:] = [reading for reading in self.readings if reading.job.id != id]
