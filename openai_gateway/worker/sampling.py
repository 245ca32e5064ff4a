"""From logits to tokens: temperature, top-k, top-p, min-p, penalties and bias, and how likely tokens are.

Nothing here waits for the device: every function but `listed` builds on lazy arrays, so that the next step is being
computed while the last one is read. No row sees another one: what a row draws depends on its logits and its key.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from openai_gateway.types import Sampling

COLDEST = 1e-5
"""Below this temperature a row is greedy: divided by less, logits leave the range of a float."""

BLOCK = 128
"""Tokens that are looked at together; nearly every model pads its vocabulary to a multiple of this."""

SMALL = 2048
"""A vocabulary up to this is sorted for top-p."""

NARROW = 0.2
"""So is any for a top-p below this, which would take too many draws."""


class Shape(NamedTuple):
    """What is done to the distribution before a token is drawn. Rows of equal shape share one call of `draw`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


def shape_of(sampling: Sampling) -> Shape | None:
    """The shape that a request asks for; None is greedy."""
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    if temperature < COLDEST:
        return None
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    return Shape(temperature, sampling.top_k or 0, top_p, sampling.min_p or 0.0)


# Keys: a row's token number n is drawn with a key made of (seed, choice, n) alone, so it comes out the same in any
# batch, after a row was taken out and put back, and where several positions are computed at once.

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def base_key(seed: int | None, index: int) -> int:
    """64 bits for choice `index` of a request; without a seed, from the system's randomness."""
    if seed is None:
        return secrets.randbits(64)
    mixed = _mix(np.array([seed & MASK], np.uint64))
    return int(_mix(mixed ^ np.uint64(index))[0])


def keys_at(bases: Sequence[int], positions: Sequence[int]) -> mx.array:
    """Keys [B, 2] uint32 for each row's token number `position`, made on the host."""
    keys = _mix(np.array(bases, np.uint64) + np.array(positions, np.uint64) * np.uint64(GOLDEN))
    return mx.array(keys.view(np.uint32).reshape(-1, 2))


def _mix(states: np.ndarray) -> np.ndarray:
    """splitmix64's step (Steele, Lea, Flood 2014): neighbouring numbers become unrelated ones."""
    z = states + np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = z ^ (z >> np.uint64(31))
    return result


# Drawing


def greedy(logits: mx.array) -> mx.array:
    """Logits [B, V] → ids [B] of the likeliest tokens."""
    return mx.argmax(logits, axis=-1)


def draw(logits: mx.array, shape: Shape, keys: mx.array) -> mx.array:
    """One token id [B] uint32 a row, from float32 logits [B, V] and keys [B, 2].

    Kept are the `top_k` likeliest, of these the fewest that reach `top_p`, of these the ones at least `min_p` times
    as likely as the likeliest. Exactly `top_k` are kept, though the next may tie with the last; ties at the other two
    edges are all kept. The likeliest token always is.
    """
    if shape.temperature != 1:
        logits = logits / shape.temperature
    vocabulary = logits.shape[-1]
    k = shape.top_k if 0 < shape.top_k < vocabulary else vocabulary
    if k == vocabulary > SMALL and NARROW <= shape.top_p < 1:
        return _first_in_nucleus(logits, shape, keys)
    ids = None
    if k < vocabulary or shape.top_p < 1:
        ids, logits = best(logits, k)
    picked = mx.argmax(cut(logits, shape.top_p, shape.min_p) + _noise(keys, k), axis=-1)
    return picked if ids is None else mx.take_along_axis(ids, picked[:, None], axis=-1)[:, 0]


def _noise(keys: mx.array, *shape: int) -> mx.array:
    """Gumbel noise [B, *shape]: the index of the largest sum of a logit and its noise is a draw from the softmax.

    Not `mx.random.categorical`, which draws in another way if there is but one row.
    """
    noise: mx.array = mx.vmap(lambda key: mx.random.gumbel(shape, key=key))(keys)
    return noise


def best(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The ids [B, k] uint32 of the `k` likeliest tokens of logits [B, V], and their logits; the likeliest first."""
    rows, vocabulary = logits.shape
    if vocabulary % BLOCK or 2 * k * BLOCK > vocabulary:
        return _largest(logits, k)
    # The k blocks with the largest maxima hold the k largest values, and to find them takes one cheap pass.
    blocks = logits.reshape(rows, -1, BLOCK)
    chosen = _largest(blocks.max(axis=-1), k)[0][..., None]
    places, values = _largest(mx.take_along_axis(blocks, chosen, axis=1).reshape(rows, -1), k)
    ids = (chosen * BLOCK + mx.arange(BLOCK, dtype=mx.uint32)).reshape(rows, -1)
    return mx.take_along_axis(ids, places, axis=-1), values


def _largest(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Where the `k` largest of values [B, N] are, and these: both [B, k], the largest first."""
    size = values.shape[-1]
    if k == 0 or k == size:
        places = mx.argsort(-values, axis=-1)[:, :k]
    else:
        places = mx.argpartition(values, size - k, axis=-1)[:, size - k :]
        order = mx.argsort(-mx.take_along_axis(values, places, axis=-1), axis=-1)
        places = mx.take_along_axis(places, order, axis=-1)
    return places, mx.take_along_axis(values, places, axis=-1)


def cut(values: mx.array, top_p: float, min_p: float) -> mx.array:
    """Logits [B, k] with what top-p and then min-p leave out at -inf; for top-p, the largest must come first."""
    if top_p < 1:
        above = mx.cumsum(mx.softmax(values, axis=-1), axis=-1, inclusive=False)
        reaching = mx.maximum((above < top_p).sum(axis=-1, keepdims=True), 1)
        edge = mx.take_along_axis(values, reaching - 1, axis=-1)
        values = mx.where(values < edge, -mx.inf, values)
    if min_p > 0:
        values = mx.where(values < values.max(axis=-1, keepdims=True) + math.log(min_p), -mx.inf, values)
    return values


def _first_in_nucleus(logits: mx.array, shape: Shape, keys: mx.array) -> mx.array:
    """Ids [B] drawn from logits [B, V], again and again until the token is in the nucleus; top-k must be off.

    This needs no sorting: a token is in the nucleus if all that is likelier has less than `top_p` of the mass. The
    draws are made at once, so many that they all miss less than once in 2^30 (the likeliest token stands in then),
    and a binary search finds the least likely of them that is inside.
    """
    p = mx.softmax(logits, axis=-1)
    weights = p * (p >= shape.min_p * p.max(axis=-1, keepdims=True)) if shape.min_p > 0 else p
    steps = math.ceil(math.log2(1 + 30 * math.log(2) / -math.log1p(-shape.top_p)))
    ids = _draws(weights, keys, 2**steps - 1)
    drawn = mx.take_along_axis(p, ids, axis=-1)
    falling = -mx.sort(-drawn, axis=-1)
    inside = mx.zeros((p.shape[0], 1), dtype=mx.uint32)
    edge = mx.full((p.shape[0], 1), mx.inf)
    for step in (2**n for n in reversed(range(steps))):
        probe = mx.take_along_axis(falling, inside + (step - 1), axis=-1)
        found = (p * (p > probe)).sum(axis=-1, keepdims=True) < shape.top_p
        inside = mx.where(found, inside + step, inside)
        edge = mx.where(found, probe, edge)
    first = mx.argmax(drawn >= edge, axis=-1, keepdims=True)
    hit = mx.take_along_axis(ids, first, axis=-1)[:, 0]
    return mx.where(inside[:, 0] > 0, hit, mx.argmax(p, axis=-1))


def _draws(weights: mx.array, keys: mx.array, count: int) -> mx.array:
    """Ids [B, count] drawn independently by weights [B, V]: first a block by its sum, then a token of it.

    So noise is needed for each block and not for each token.
    """
    rows, vocabulary = weights.shape
    if vocabulary % BLOCK:
        weights = mx.pad(weights, [(0, 0), (0, -vocabulary % BLOCK)])
    blocks = weights.reshape(rows, -1, BLOCK)
    noise = _noise(keys, count, BLOCK + blocks.shape[1])
    chosen = mx.argmax(mx.log(blocks.sum(axis=-1))[:, None] + noise[..., BLOCK:], axis=-1, keepdims=True)
    within = mx.argmax(mx.log(mx.take_along_axis(blocks, chosen, axis=1)) + noise[..., :BLOCK], axis=-1)
    return chosen[..., 0] * BLOCK + within


class Penalties:
    """Bias and penalties of one row, over the tokens that it generated and not over its prompt.

    Frequency and presence as in OpenAI's API reference: `logit -= count * frequency + (count > 0) * presence`;
    repetition as in arXiv 1909.05858: positive logits are divided, negative ones multiplied. Counts are kept on the
    device.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        self._repetition = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
        self._counting = bool(self._frequency or self._presence or self._repetition != 1.0)
        self._biased = mx.array(list(sampling.logit_bias), dtype=mx.uint32)
        self._bias = mx.array(list(sampling.logit_bias.values()), dtype=mx.float32)
        self._counts: mx.array | None = None

    @classmethod
    def wanted(cls, sampling: Sampling) -> bool:
        """Whether a request asks for any of this; rows that do not are spared the call."""
        return bool(
            sampling.logit_bias
            or sampling.frequency_penalty
            or sampling.presence_penalty
            or sampling.repetition_penalty not in (None, 1.0)
        )

    def __call__(self, newest: mx.array | None, logits: mx.array) -> mx.array:
        """Logits [1, V] for the next token; `newest` [n] came since the last call, None where nothing did."""
        if self._counting and newest is not None:
            counts = mx.zeros((logits.shape[-1],)) if self._counts is None else self._counts
            self._counts = counts.at[newest].add(1.0)
        if self._counts is not None:
            logits = self._penalise(logits, self._counts)
        if self._bias.size:
            logits = logits.at[:, self._biased].add(self._bias)
        return logits

    def _penalise(self, logits: mx.array, counts: mx.array) -> mx.array:
        seen = counts > 0
        if self._repetition != 1.0:
            r = self._repetition
            logits = mx.where(seen, mx.where(logits > 0, logits / r, logits * r), logits)
        if self._frequency or self._presence:
            logits = logits - (self._frequency * counts + self._presence * seen)
        return logits


# Log-probabilities

Likeliest = list[tuple[int, float]]
"""(id, log-probability), the likeliest first."""


def likeliest(logits: mx.array, chosen: mx.array, k: int) -> tuple[mx.array, mx.array, mx.array]:
    """Log-probabilities from logits [N, V]: those of tokens `chosen` [N]; ids and those of the likeliest, each [N, k].

    All lazy, for `listed` to read; `k` beyond the vocabulary is the vocabulary.
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(logits, chosen[:, None], axis=-1) - total
    ids, values = best(logits, min(k, logits.shape[-1]))
    return own[:, 0], ids, values - total


def listed(own: mx.array, ids: mx.array, values: mx.array) -> list[tuple[float, Likeliest]]:
    """What `likeliest` found, read: for each row the log-probability of its token, and the likeliest."""
    mx.eval(own, ids, values)
    return [
        (value, list(zip(row_ids, row_values, strict=True)))
        for value, row_ids, row_values in zip(_list(own), _list(ids), _list(values), strict=True)
    ]


def _list(array: mx.array) -> list[Any]:
    return cast(list[Any], array.tolist())
