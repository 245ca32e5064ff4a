"""Who begins next, and whether there is room: for rows in the batch, and for their keys and values in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from openai_gateway.worker.batch import Decoding
from openai_gateway.worker.memory import SCORE, Footprint
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.reading import Reading
from openai_gateway.worker.rows import Row
from openai_gateway.worker.speculation import LONGEST
from openai_gateway.worker.tree import common_length

WORTH_WAITING = 128
"""Tokens that another prompt, which is being read now, must spare a request that waits for it."""
GROWTH = 256
"""Tokens that a newcomer must have room for behind its prompt: the first step by which mlx-lm's caches grow."""
FEW = 32
"""Snapshots of a prompt that is being read may always take this part of the memory."""
LEAST = 32
"""Tokens of a long prompt that are read at each step, however many short ones there are, and however long it is."""
FEW_LOGITS, MANY_LOGITS = 2**18, 2**24
"""So many are always computed, and no more (64 MB) ever, where most are not wanted."""
WASTE = 8
"""A batch of its own pays once the padding in a shared one would take more than this part of the memory …"""
LITTLE = 64 * 2**20
"""… or more bytes than the weights, and these: padding is read at each step, as the weights are for each batch."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an engine may get, in bytes: `room` for the keys and values of what runs; the model has `weights`.

    At most `prefill_step` tokens of prompts are read between two decode passes, and fewer where they would take longer
    than about `max_stall` seconds, or `max_silence` seconds when nothing decodes.
    """

    max_batch: int = 64
    prefill_step: int = 512
    max_stall: float = 0.2
    max_silence: float = math.inf
    room: int = 1 << 62
    weights: int = 1 << 62
    reserve: int = 1 << 62
    """For activations."""
    footprint: Footprint = Footprint(per_token=0)  # noqa: RUF009, a frozen value
    drafting: Footprint = Footprint(per_token=0)  # noqa: RUF009
    """Of the caches of a draft model."""

    @property
    def logits(self) -> int:
        """Most logits, and scores, to compute for the sake of the last ones of a prompt. So many take about as long as
        what they spare: a pass of its own for the last token, which reads all weights."""
        return max(FEW_LOGITS, min(MANY_LOGITS, self.weights // 256))

    def scores(self, length: int) -> int:
        """How many a layer keeps of a token that looks at so many; none where they are not kept."""
        return self.footprint.scores // SCORE * length

    def refuses(self, rows: int, length: int) -> bool:
        """Whether so many rows can never run, also with nothing beside them."""
        return self.footprint.batch(rows, length + 1) > self.room

    def size(self, batches: Iterable[Decoding], readings: Iterable[Reading] = ()) -> int:
        """Bytes that these take, or will when they are read."""
        running = sum(self.footprint.batch(len(batch.rows), batch.longest + 1) for batch in batches)
        return running + sum(self._whole(reading) + reading.snapshots_nbytes for reading in readings)

    def fitting(self, done: int) -> int:
        """Most tokens to read at a time of a prompt of which `done` are read: the scores must fit into the reserve."""
        if not self.footprint.scores:
            return self.prefill_step
        # count * (done + count) pairs of tokens
        pairs = self.reserve // self.footprint.scores
        count = (math.isqrt(done * done + 4 * pairs) - done) // 2
        return max(LEAST, min(self.prefill_step, count))

    def snapshots(self, reading: Reading) -> int:
        """Bytes that snapshots of a prompt may take while it is read: as many as its keys and values that can be cut.

        Recurrent states can be larger than these; so at the beginning it may be a small part of the memory, if it is
        there.
        """
        most = max(reading.done * self.footprint.per_token, self.room // FEW)
        return min(most, self.room - self._whole(reading))

    def _whole(self, reading: Reading) -> int:
        return self.footprint.batch(reading.width, len(reading.tokens))

    def drafts(self, batch: Decoding) -> bool:
        """Whether there is room for what a draft model reads of the only row that runs, and guesses."""
        return self.size([batch]) + self.drafting.batch(1, batch.longest + LONGEST) <= self.room

    def place(self, batches: Sequence[Decoding], rows: int, length: int) -> Decoding | None:
        """The batch that rows of so many tokens are to join; None: one of their own.

        Batches are rectangular, so short rows beside a long one take as much as it does.
        """
        apart = self.footprint.batch(rows, length)
        costs = [(self._joining(batch, rows, length), place) for place, batch in enumerate(batches)]
        if not costs or min(costs)[0] - apart > min(self.room // WASTE, max(self.weights, LITTLE)):
            return None
        return batches[min(costs)[1]]

    def _joining(self, batch: Decoding, rows: int, length: int) -> int:
        before = self.footprint.batch(len(batch.rows), batch.longest)
        return self.footprint.batch(len(batch.rows) + rows, max(batch.longest, length)) - before

    def fits(self, newcomer: Reading, batches: Sequence[Decoding], readings: Sequence[Reading]) -> bool:
        """Whether there is memory for one more; there always is where nothing runs."""
        if not batches and not readings:
            return True
        length = len(newcomer.tokens) + min(GROWTH, newcomer.job.max_tokens)
        batch = self.place(batches, newcomer.width, length)
        apart = self.footprint.batch(newcomer.width, length)
        added = apart if batch is None else max(apart, self._joining(batch, newcomer.width, length))
        return self.size(batches, readings) + added <= self.room


@dataclass(slots=True)
class Admission:
    """Requests that wait. Nobody overtakes one of the same priority whose owner has no more than his own."""

    limits: Limits
    prefixes: Prefixes
    waiting: list[Reading] = field(default_factory=list)

    def admit(self, reading: list[Reading], scoring: list[Reading], batches: list[Decoding]) -> Iterator[Reading]:
        """Takes out who is to begin now, of the lowest priority number, then of whose owner has least, then the first.

        It ends with the first that there is no room for: others do not slip in meanwhile, or a request that needs
        much room would wait for ever. Whoever is taken and to be read is to be in `reading` before the next.
        """
        running = [*reading, *scoring]
        busy = Counter(row.job.owner for batch in batches for row in batch.rows)
        for other in running:
            busy[other.job.owner] += other.width
        ready = [waiter for waiter in self.waiting if waiter.behind not in reading]
        while ready and (rows := busy.total()) < max(1, self.limits.max_batch):
            first = min(ready, key=lambda waiter: (waiter.job.priority, busy[waiter.job.owner]))
            ready.remove(first)
            # What failed a moment ago has taken the other choices of its request out of the queue with it.
            if first not in self.waiting or self._is_behind(first, reading):
                continue
            if (rows and rows + first.width > self.limits.max_batch) or not self.limits.fits(first, batches, running):
                return
            self.waiting.remove(first)
            running.append(first)
            busy[first.job.owner] += first.width
            yield first

    def refused(self) -> list[Reading]:
        """Newcomers that can never run; to be told before they are accepted."""
        news = [waiter for waiter in self.waiting if not (waiter.announced or waiter.rows)]
        return [waiter for waiter in news if self.limits.refuses(waiter.width, len(waiter.tokens))]

    def _is_behind(self, waiter: Reading, reading: list[Reading]) -> bool:
        """Whether another prompt that is being read begins alike, so that waiting for it is faster than reading."""
        if not self.prefixes.keeping:
            return False
        if waiter.behind not in reading:
            waiter.behind = next((other for other in reading if self._spares(other, waiter)), None)
        return waiter.behind is not None

    def _spares(self, other: Reading, waiter: Reading) -> bool:
        """Whether what `other` will leave is worth the wait until all of it is read."""
        if not self.prefixes.shares(other.job.owner, waiter.job.owner) or other.job.priority > waiter.job.priority:
            return False
        if other.tokens[:WORTH_WAITING] != waiter.tokens[:WORTH_WAITING]:
            return False
        alike = common_length(other.tokens, waiter.tokens)
        if self.prefixes.needs_snapshots and alike < len(other.tokens) - 1:
            alike = max(length for length in (other.fork, *other.snapshots, 0) if length <= alike)
        spared = alike - self.prefixes.covered(waiter.job.owner, waiter.tokens)
        return spared >= WORTH_WAITING and other.left <= 2 * spared


def youngest(batches: Iterable[Decoding], readings: Iterable[Reading]) -> Row | Reading:
    """Who is put off when what runs has outgrown the memory.

    One of the least urgent; among these, of the owner who has most rows; and of these, the last that came.
    """
    running: list[Row | Reading] = [row for batch in batches for row in batch.rows]
    running += readings
    rows: Counter[str] = Counter()
    for one in running:
        rows[one.job.owner] += one.width if isinstance(one, Reading) else 1
    return max(running, key=lambda one: (one.job.priority, rows[one.job.owner], one.job.id))
