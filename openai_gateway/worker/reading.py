"""Prompts on their way into caches: a long one a part at a time, short ones together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from openai_gateway.worker.batch import Decoding, merge
from openai_gateway.worker.model import Cache, Model
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.rows import Row
from openai_gateway.worker.snapshots import Snapshot, takes_padding

LONG = 512
"""Cached tokens from which on a prompt is read alone."""
SHARED = 32
"""Tokens that prompts have in common from which on a pass of their own pays for them."""


@dataclass(slots=True, eq=False)
class Reading:
    """Tokens that must be in a cache before `rows` can decode: their prompt, or all they had when they were put off."""

    job: Job
    tokens: list[int]
    choices: range
    """Which choices of the job its rows are."""
    rows: list[Row] = field(default_factory=list)
    cache: Cache = field(default_factory=list)
    """Of one row; holds the first `done` tokens. Empty until what is kept of them is in memory."""
    done: int = 0
    fetched: int = 0
    """How many of the first tokens were brought from disk for that."""
    cached: int = 0
    """How many of the first tokens came from the prefix cache."""
    fork: int = 0
    """Where it leaves what others began with as well, and a part of it ends, so that the next one can be entered there;
    0 for nowhere."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    announced: bool = False
    behind: Reading | None = None
    """Another one that is reading what this one begins with."""

    @property
    def entered(self) -> bool:
        """Whether it can be read on."""
        return bool(self.cache)

    @property
    def is_first(self) -> bool:
        """Whether nothing of its request has begun before."""
        return self.choices.start == 0 and not self.rows

    @property
    def left(self) -> int:
        """Tokens that are not read yet."""
        return len(self.tokens) - self.done

    @property
    def forks(self) -> bool:
        """Whether it has not come to its fork yet."""
        return self.done < self.fork

    def part(self, room: int) -> int:
        """How many tokens to read next: at most `room`, not the last one, and up to where a message begins if it can.

        Prompts mostly diverge there, and can only be entered again where a part has ended if the model has windows.
        """
        end = self.done + min(room, self.left - 1)
        if self.forks and self.fork <= end:
            return self.fork - self.done
        place = bisect_right(self.job.turns, end)
        turn = self.job.turns[place - 1] if place else 0
        return (turn if turn >= self.done + max(1, room // 2) else end) - self.done

    @property
    def width(self) -> int:
        """Rows that it has or is going to have."""
        return len(self.choices)

    @property
    def snapshots_nbytes(self) -> int:
        """Bytes that its snapshots take."""
        return sum(snapshot.nbytes for snapshot in self.snapshots.values())

    def leave(self) -> None:
        """Forget all that is read; it is entered anew."""
        self.cache, self.done, self.fetched, self.fork, self.snapshots = [], 0, 0, 0, {}

    def thin(self, most: int) -> None:
        """Drop snapshots until they take no more than `most` bytes, but never the newest one.

        The one closest to its neighbours goes first, and those where a message begins go last.
        """
        while len(self.snapshots) > 1 and self.snapshots_nbytes > most:
            ends = [self.cached, *self.snapshots]
            spans = zip(ends, ends[1:], ends[2:], strict=False)
            _, _, end = min((end in self.job.turns, after - before, end) for before, end, after in spans)
            del self.snapshots[end]


def fork(length: int, cached: int, common: int, turns: Sequence[int]) -> int:
    """Where a prompt of so many tokens forks, of which the `cached` first ones need not be read, and the `common` ones
    began another prompt as well: where a message begins (`turns`), if one does shortly before."""
    place = bisect_right(turns, common)
    turn = turns[place - 1] if place else 0
    at = turn if common - turn < SHARED else common
    return at if at - cached >= SHARED and at < length else 0


def next_to_read(
    readings: Sequence[Reading], room: int, fitting: Callable[[int], int], *, oldest: bool
) -> tuple[list[Reading], Reading | None]:
    """Which prompts, the oldest first, to read to their end now, and of which other one to read a part.

    `fitting` says how many tokens one pass may read of a prompt of which so many are read. The part is for the most
    urgent, and of those for the `oldest` or else for the one that has the least left.

    Those that end are as many short ones as `room` tokens hold, padded to the longest. One whose beginning is long and
    cached is read alone when it is the oldest. Together they are no faster, as attention to what is cached is most of
    the work, and all of them would wait until the last is read.
    """

    def ends(reading: Reading) -> bool:
        return reading.left <= min(room, fitting(reading.done)) and not reading.forks

    near = [reading for reading in readings if ends(reading)]
    ending: list[Reading] = []
    if near and near[0].done > LONG:
        ending = near[:1]
    else:
        for reading in sorted(near, key=lambda reading: reading.left):
            if reading.done <= LONG and reading.left * (len(ending) + 1) <= room:
                ending.append(reading)
    # Nothing of the others that are read alone: their turn comes when they are the oldest.
    others = [one for one in readings if one not in ending and (not ends(one) or (one.left > 1 and one.done <= LONG))]
    part = min(others, key=lambda one: (one.job.priority, 0 if oldest else one.left), default=None)
    return ending, part


def groups(readings: Sequence[Reading], *, one_pass: bool) -> list[list[Reading]]:
    """Those to read to their end together. `one_pass`, here and below, is to compute all logits for the sake of the
    last of each row; else there is a pass that computes none, and one for last tokens. Rows of a last token only would
    sit out the first."""
    if any(takes_padding(reading.cache) for reading in readings):
        by_length: dict[int, list[Reading]] = {}
        for reading in readings:
            by_length.setdefault(reading.left, []).append(reading)
        return list(by_length.values())
    ones = [reading for reading in readings if reading.left == 1]
    others = [reading for reading in readings if reading.left > 1]
    if one_pass:
        ones, others = [*ones, *others], []
    return [group for group in (ones, others) if group]


def read_part(model: Model, reading: Reading, count: int) -> None:
    """Reads `count` more tokens, not all that are left, and waits for it: passes that pile up hold others up longer."""
    part = reading.tokens[reading.done : reading.done + count]
    model(mx.array([part]), cache=reading.cache, filling=True)
    mx.eval([cache.state for cache in reading.cache])
    reading.done += count


def read_rest(model: Model, reading: Reading, *, one_pass: bool) -> mx.array:
    """Reads all that is left; the logits [1, V] after the last token."""
    logits = _last_logits(model, [reading.tokens[reading.done :]], reading.cache, one_pass=one_pass)
    reading.done = len(reading.tokens)
    return logits


def read_together(model: Model, readings: Sequence[Reading], *, one_pass: bool) -> tuple[Cache, mx.array]:
    """Reads all that is left of several prompts, one row each; their batch, and logits [B, V] after the last tokens."""
    cache = merge([reading.cache for reading in readings])
    logits = _last_logits(model, [reading.tokens[reading.done :] for reading in readings], cache, one_pass=one_pass)
    for reading in readings:
        reading.done, reading.cache = len(reading.tokens), []
    return cache, logits


def begin(model: Model, readings: Sequence[Reading], cache: Cache, logits: mx.array) -> Decoding:
    """The rows of prompts that are read: of several with a row each, or of one that each of its rows gets a copy of."""
    rows = [row for reading in readings for row in reading.rows]
    for reading in readings:
        for row in reading.rows:
            row.stored = len(reading.tokens)
    if len(rows) > len(readings):
        cache, logits = merge([cache] * len(rows)), mx.repeat(logits, len(rows), axis=0)
    return Decoding(model, rows, cache, logits, merged=len(rows) > 1)


def _last_logits(model: Model, rest: list[list[int]], cache: Cache, *, one_pass: bool) -> mx.array:
    if one_pass or all(len(tokens) == 1 for tokens in rest):
        logits = _forward(model, rest, cache)
        return logits[mx.arange(len(rest)), mx.array([len(tokens) - 1 for tokens in rest])]
    _forward(model, [tokens[:-1] for tokens in rest], cache, filling=True)
    mx.async_eval([layer.state for layer in cache])
    return model(mx.array([tokens[-1:] for tokens in rest]), cache=cache)[:, -1]


def _forward(model: Model, rows: list[list[int]], cache: Cache, *, filling: bool = False) -> mx.array:
    lengths = [len(tokens) for tokens in rows]
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    if any(padding):
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
    padded = mx.array([tokens + [0] * (longest - len(tokens)) for tokens in rows])
    logits = model(padded, cache=cache, filling=filling)
    if any(padding):
        for layer in cache:
            layer.finalize()
    return logits
