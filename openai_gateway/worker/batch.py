"""Rows that decode together: their caches, the choice of their next tokens, and one step for all of them.

Written on mlx-lm's cache classes, whose batched kinds merge, extend, filter and extract rows. mlx-lm's own
`GenerationBatch` normalises and slices log-probabilities of every row at every step, asked for or not, and calls each
sampler by itself; here rows that ask for nothing cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import BatchKVCache, KVCache

from openai_gateway.worker.guide import Allowed
from openai_gateway.worker.model import Cache, Model
from openai_gateway.worker.rows import Row
from openai_gateway.worker.sampling import Likeliest, draw, greedy, keys_at, likeliest, listed

Scored = tuple[float, Likeliest]
"""The log-probability of a token, and the likeliest in its place."""
SETTLED = 256
"""Steps after which what the caches count is computed, read by anybody or not."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Log-probabilities of the rows that asked for them, not read from the device yet."""

    rows: list[Row]
    arrays: tuple[mx.array, mx.array, mx.array]

    def read(self) -> dict[Row, Scored]:
        """Waits for them."""
        return dict(zip(self.rows, listed(*self.arrays), strict=True))


class Decoding:
    """Rows in one batch. The tokens of a step are read from the device while the next step is computed.

    A row alone keeps the caches that its prompt was read with: they need no padding and hence no mask.
    """

    def __init__(self, model: Model, rows: list[Row], cache: Cache, logits: mx.array, *, merged: bool) -> None:
        """`cache` holds the prompts of `rows`, whose last logits are `logits` [B, V]."""
        self.rows = rows
        self._model = model
        self._cache = cache
        self._merged = merged
        self._steps = 0
        self._pending, self._entries = choose(logits, rows, None)
        self._first = True
        """Whether tokens are pending that are their rows' first."""
        self._told = False
        """Whether what is pending has been reported, and what is behind it is to be computed."""
        self._launch()

    @property
    def longest(self) -> int:
        """Positions of the longest row, and so of each row: the caches are rectangular."""
        return max((row.stored for row in self.rows), default=0)

    @property
    def nbytes(self) -> int:
        """Of the caches."""
        return sum(cache.nbytes for cache in self._cache)

    def step(self) -> list[tuple[Row, int, Scored | None]]:
        """The newest token of each row. Those behind them are being computed when this returns.

        Not yet behind first tokens, where `launching_waits`: nobody is to wait for two passes.
        """
        self._catch_up()
        pending, entries = self._pending, self._entries
        tokens: list[int] | None = None
        self._told, self._first = self._first and launching_waits(), False
        if not (self._told or all(row.complete for row in self.rows)):
            tokens = self._advance()
        if tokens is None:
            tokens = self._tell(pending)
        scored = {row: entry for some in entries for row, entry in some.read().items()}
        return [(row, token, scored.get(row)) for row, token in zip(self.rows, tokens, strict=True)]

    def _catch_up(self) -> None:
        if self._told:
            self._advance()
            self._told = False

    def _advance(self) -> list[int] | None:
        """Has the tokens behind the pending ones computed; returns these if guides had to know them before that."""
        pending = self._pending
        tokens: list[int] | None = None
        logits = self._model(pending[:, None], cache=self._cache)[:, -1]
        for row in self.rows:
            row.stored += 1
        if not self._told and any(row.guided for row in self.rows):
            # What they may say next depends on what they said last, not on the logits: both are found at once.
            mx.async_eval(logits)
            tokens = self._tell(pending)
        self._pending, self._entries = choose(logits, self.rows, pending)
        self._launch()
        self._steps += 1
        if self._merged and self._steps % SETTLED == 0:
            mx.async_eval(counts(self._cache))
        return tokens

    def _launch(self) -> None:
        """Have what is pending computed."""
        mx.async_eval(self._pending, [entries.arrays for entries in self._entries])

    def _tell(self, pending: mx.array) -> list[int]:
        """Tokens, read from the device, of which the rows' guides know now."""
        tokens: Any = pending.tolist()
        for row, token in zip(self.rows, tokens, strict=True):
            row.tell(token)
        return list(tokens)

    def leap(self, drafted: Sequence[int]) -> list[int]:
        """For a row alone: its newest tokens, more than one where `drafted` foretold what follows the first.

        All drafted tokens are read in one pass. They are accepted up to the first that is not what the model itself
        chooses there, so the row gets the tokens that single steps give it; and up to one that ends the row, for its
        guide is told all of them before the first is read.
        """
        self._catch_up()
        (row,) = self.rows
        first: Any = self._pending.tolist()
        logits = self._model(mx.array([[*first, *drafted]]), cache=self._cache)[0]
        chosen = choose_ahead(logits, row)
        ids: Any = chosen.tolist()
        accepted = 0
        while accepted < len(drafted) and ids[accepted] == drafted[accepted] and ids[accepted] not in row.stops:
            accepted += 1
        for cache in self._cache:
            cache.trim(len(drafted) - accepted)
        row.stored += 1 + accepted
        row.sampled += 1 + accepted
        self._pending, self._entries = chosen[accepted : accepted + 1], []
        self._first = False
        tokens = [*first, *drafted[:accepted]]
        for token in tokens:
            row.tell(token)
        return tokens

    @property
    def pending(self) -> int:
        """The token of a row alone that is reported next; waits for it."""
        self._catch_up()
        token: Any = self._pending.tolist()
        return int(token[0])

    def extend(self, other: Decoding) -> None:
        """Takes in the rows of `other`, which is of no use any more."""
        for batch in (self, other):
            batch._catch_up()
            batch._merge()
        for mine, theirs in zip(self._cache, other._cache, strict=True):
            mine.extend(theirs)
        self.rows += other.rows
        self._pending = mx.concatenate([self._pending, other._pending])
        self._entries += other._entries
        self._first |= other._first

    def _merge(self) -> None:
        if not self._merged:
            self._cache, self._merged = merge([self._cache]), True

    def remove(self, rows: set[Row]) -> None:
        """Takes rows out, and frees what only they needed."""
        keep = [place for place, row in enumerate(self.rows) if row not in rows]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in keep]
        if not keep:
            self._cache, self._entries = [], []
            return
        for cache in self._cache:
            cache.filter(keep)
        self._pending = self._pending[mx.array(keep)]

    def cache_of(self, row: Row) -> Cache:
        """The caches of one row, which hold the first `row.stored` of its tokens; only what is used of it is copied."""
        if not self._merged:
            return self._cache
        place = self.rows.index(row)
        return [extracted(cache, place) for cache in self._cache]


def launching_waits() -> bool:
    """Whether `async_eval` returns when nearly all is computed: on a CPU, mlx lets some hundred operations wait."""
    return mx.default_device() == mx.Device(mx.cpu)


def choose(logits: mx.array, rows: Sequence[Row], newest: mx.array | None) -> tuple[mx.array, list[Entries]]:
    """The next token of each row [B], from logits [B, V]; `newest` [B] are the tokens before them. Lazy."""
    if any(row.penalties is not None for row in rows):
        logits = _penalised(logits, rows, newest)
    allowed = _allowed(logits, rows)
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[row.shape, place in allowed].append(place)
    parts = []
    for places in groups.values():
        group = logits if len(groups) == 1 else logits[mx.array(places)]
        if places[0] in allowed:
            group = mx.where(mx.array(np.stack([allowed[place] for place in places])), group, -mx.inf)
        parts.append(_drawn(group, [rows[place] for place in places]))
    order = [place for places in groups.values() for place in places]
    tokens = parts[0] if len(parts) == 1 else mx.concatenate(parts)[mx.argsort(mx.array(order))]
    for row in rows:
        row.sampled += 1
    asked = [place for place, row in enumerate(rows) if row.job.sampling.logprobs is not None]
    return tokens, [_entries(logits, tokens, rows, asked)] if asked else []


def _penalised(logits: mx.array, rows: Sequence[Row], newest: mx.array | None) -> mx.array:
    """Put together once: written into its place, each row would copy those of all others."""
    places = [slice(place, place + 1) for place in range(len(rows))]
    return mx.concatenate(
        [
            row.penalised(None if newest is None else newest[place], logits[place])
            for row, place in zip(rows, places, strict=True)
        ]
    )


def _allowed(logits: mx.array, rows: Sequence[Row]) -> dict[int, Allowed]:
    """The places of rows that are not free in what comes next, and what each may choose."""
    guided = [place for place, row in enumerate(rows) if row.guided]
    if not guided:
        return {}
    mx.async_eval(logits)  # meanwhile
    found = {place: rows[place].allowed(logits.shape[-1]) for place in guided}
    return {place: allowed for place, allowed in found.items() if allowed is not None}


def _drawn(logits: mx.array, rows: Sequence[Row]) -> mx.array:
    """For rows of one shape."""
    shape = rows[0].shape
    if shape is None:
        return greedy(logits)
    return draw(logits, shape, keys_at([row.key for row in rows], [row.sampled for row in rows]))


def _entries(logits: mx.array, tokens: mx.array, rows: Sequence[Row], asked: list[int]) -> Entries:
    top = max(rows[place].job.sampling.logprobs or 0 for place in asked)
    places = mx.array(asked)
    return Entries([rows[place] for place in asked], likeliest(logits[places], tokens[places], top))


def choose_ahead(logits: mx.array, row: Row) -> mx.array:
    """What a row chooses at each of the next positions [T], from their logits [T, V]."""
    if row.shape is None:
        return greedy(logits)
    count = logits.shape[0]
    return draw(logits, row.shape, keys_at([row.key] * count, range(row.sampled, row.sampled + count)))


def counts(cache: Cache) -> list[mx.array]:
    """What the caches of a batch count: where rows begin and end.

    Each step adds to it, and layers without positions (linear ones, and those of SmolLM3 that have no rotation) never
    look: the sums that nobody computed keep a buffer each, until Metal has no more of them.
    """
    values = (value for layer in cache for _, value in tree_flatten(layer.state))
    return [value for value in values if isinstance(value, mx.array) and value.ndim <= 1]


def merge(caches: Sequence[Cache]) -> Cache:
    """One batch of the caches of single rows."""
    return [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]


def extracted(cache: Any, place: int) -> Any:
    """One row of a batched cache. mlx-lm copies all of a `BatchKVCache` row; a view is enough to copy a part of it."""
    if not isinstance(cache, BatchKVCache):
        return cache.extract(place)
    row = KVCache()
    padding: Any = cache.left_padding.tolist()
    part = (slice(place, place + 1), slice(None), slice(padding[place], cache._idx))
    row.keys, row.values, row.offset = cache.keys[part], cache.values[part], cache._idx - padding[place]
    return row
