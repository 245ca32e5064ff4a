"""From log-probabilities to a token: temperature, top-k, top-p, min-p, penalties and bias, for a row or a batch.

Nothing here waits for the device: every function builds on lazy arrays, so that the next step is being computed while
the last one is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler

from openai_gateway.types import Sampling

Sampler = Callable[[mx.array], mx.array]
"""Log-probabilities [B, V] → token ids [B]."""

COLDEST = 1e-5
"""Below this temperature a row is greedy: divided by less, logits leave the range of a float."""


def make_sampler(sampling: Sampling, index: int) -> Sampler:
    """The sampler for choice `index`. Unseeded rows with equal parameters share one object, hence one batched call."""
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    if temperature < COLDEST:
        return greedy_sampler
    shape = (temperature, sampling.top_k or 0, 1.0 if sampling.top_p is None else sampling.top_p, sampling.min_p or 0.0)
    return _shared(*shape) if sampling.seed is None else _seeded(sampling.seed, index, *shape)


@lru_cache(maxsize=1024)
def _shared(temperature: float, top_k: int, top_p: float, min_p: float) -> Sampler:
    return lambda logprobs: mx.random.categorical(keep(logprobs / temperature, top_k, top_p, min_p))


def _seeded(seed: int, index: int, temperature: float, top_k: int, top_p: float, min_p: float) -> Sampler:
    # The row carries its own key, so what else is in the batch cannot change it. The odd constant (2^64 divided by
    # the golden ratio) keeps the keys of the choices of one request apart from those of neighbouring seeds.
    key = mx.random.key((seed + index * 0x9E3779B97F4A7C15) % 2**64)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(keep(logprobs / temperature, top_k, top_p, min_p), key=now)

    return sample


def keep(logits: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Logits [B, V] with every token outside top-k, then top-p (of what is left), then min-p at -inf.

    Ties at an edge are all kept; the likeliest token always is.
    """
    if 0 < top_k < logits.shape[-1]:
        edge = mx.min(mx.topk(logits, top_k, axis=-1), axis=-1, keepdims=True)
        logits = mx.where(logits < edge, -mx.inf, logits)
    if top_p < 1:
        ordered = mx.sort(logits, axis=-1)
        mass = mx.cumsum(mx.softmax(ordered, axis=-1, precise=True), axis=-1, reverse=True, inclusive=False)
        # `mass` is what lies above each token; the smallest set that reaches top_p ends where that is still below it.
        dropped = mx.minimum((mass >= top_p).sum(axis=-1, keepdims=True), logits.shape[-1] - 1)
        logits = mx.where(logits < mx.take_along_axis(ordered, dropped, axis=-1), -mx.inf, logits)
    if min_p > 0:
        logits = mx.where(logits < mx.max(logits, axis=-1, keepdims=True) + math.log(min_p), -mx.inf, logits)
    return logits


class Penalties:
    """Bias and penalties of one row, over the tokens that it generated and not over its prompt.

    Frequency and presence as in OpenAI's API reference: `logit -= count * frequency + (count > 0) * presence`;
    repetition as in arXiv 1909.05858: positive logits are divided, negative ones multiplied. Counts are kept on the
    device, one token added a step.
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

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Called once a step: `tokens` [T] ends with the newest token, at the first call with the prompt's last."""
        if self._counting:
            if self._counts is None:
                self._counts = mx.zeros((logits.shape[-1],))
            else:
                self._counts = self._counts.at[tokens[-1:]].add(1.0)
                logits = self._penalise(logits, self._counts)
        if self._bias.size:
            logits = logits.at[:, self._biased].add(self._bias.astype(logits.dtype))
        return logits

    def _penalise(self, logits: mx.array, counts: mx.array) -> mx.array:
        seen = counts > 0
        if self._repetition != 1.0:
            r = self._repetition
            logits = mx.where(seen, mx.where(logits > 0, logits / r, logits * r), logits)
        if self._frequency or self._presence:
            logits = logits - (self._frequency * counts + self._presence * seen)
        return logits


Likeliest = list[tuple[int, float]]
"""(id, log-probability), the likeliest first."""


def top_logprobs(logprobs: mx.array, tokens: list[int], k: int) -> list[tuple[float, Likeliest]]:
    """For each row of log-probabilities [N, V]: that of its token, and the `k` likeliest."""
    k = min(k, logprobs.shape[-1])
    chosen = mx.take_along_axis(logprobs, mx.array(tokens)[:, None], axis=-1)[:, 0]
    if k == 0:
        return [(value, []) for value in _listed(chosen)]
    ids = mx.argpartition(-logprobs, k - 1, axis=-1)[:, :k]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    mx.eval(chosen, ids, values)
    return [
        (own, sorted(zip(row_ids, row_values, strict=True), key=lambda pair: -pair[1]))
        for own, row_ids, row_values in zip(_listed(chosen), _listed(ids), _listed(values), strict=True)
    ]


def _listed(array: mx.array) -> list[Any]:
    return cast(list[Any], array.tolist())
