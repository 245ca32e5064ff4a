"""Attention to many tokens on a CPU: by numpy, a block of scores at a time.

On x86 mlx computes one exponential after the other, 12 to 18 ns for each score, which is more than all else that a long
prompt costs, and it keeps the scores of all heads at once. numpy computes many at a time, and its wheels multiply with
OpenBLAS whatever mlx has. The price: queries, keys and values must be computed where it is called, in the middle of a
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BLOCK = 2**19
"""Scores computed at a time, of the queries to one head of keys: 2 MB, about what a core's cache holds."""
FEWEST = 64
"""Queries in a block, however many keys there are, for which these are laid out anew: 32 MB with 128k keys."""
WORTH = 10_000
"""Scores of a row and a head of keys from which on this is faster than mlx."""
HIDDEN = np.finfo(np.float32).min
"""Added to scores that do not count. Finite, as in mlx: where nothing is seen, something is computed, and not NaN."""
MLX = mx.fast.scaled_dot_product_attention


@contextmanager
def instead(function: Any) -> Iterator[None]:
    """mlx-lm's models look mlx's function up at each call; for as long as the block runs they find this one."""
    mx.fast.scaled_dot_product_attention = function
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = MLX


@contextmanager
def by_numpy(last: Any = None) -> Iterator[None]:
    """During one pass of a model.

    `last` is the cache of the last layer, if nothing but caches is wanted of the pass: once that has its keys, what is
    attended to is left to mlx, which computes only what is needed.
    """

    def update(*arrays: mx.array) -> Any:
        mx.fast.scaled_dot_product_attention = MLX
        return type(last).update_and_fetch(last, *arrays)

    if last is not None:
        last.update_and_fetch = update
    try:
        with instead(attention):
            yield
    finally:
        if last is not None:
            del last.update_and_fetch


def attends(model: Any, make_cache: Callable[[], list[Any]]) -> bool:
    """Whether a model calls mlx's function; one that does not puts its scores together itself, and keeps them."""
    called = False

    def notice(*arrays: mx.array, **more: Any) -> mx.array:
        nonlocal called
        called = True
        return MLX(*arrays, **more)

    with instead(notice):
        model(mx.zeros((1, 2), dtype=mx.int32), cache=make_cache())
    return called


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **others: Any,
) -> mx.array:
    """As `mx.fast.scaled_dot_product_attention`: queries [B, H, L, D], keys [B, G, S, D] and values [B, G, S, E] →
    [B, H, L, E]; H is a multiple of G.

    `mask` is "causal", or broadcasts to [B, H, L, S]: true for keys that are seen, or floats to be added to the scores.
    `sinks` [H] are the scores of one more key, which has no value. What `others` ask for is mlx's to do.
    """
    _, heads, length, _ = queries.shape
    _, groups, width, _ = keys.shape
    small = heads // groups * length * width < WORTH
    if small or others or (isinstance(mask, str) and length > width):
        return MLX(queries, keys, values, scale=scale, mask=mask, sinks=sinks, **others)
    seen = mask if mask is None or isinstance(mask, str) else np.array(*computed(mask), ndmin=4, copy=None)
    (ends,) = [np.full(heads, -np.inf, np.float32)] if sinks is None else computed(sinks)
    q, k, v = computed(queries * scale, keys, values)
    return mx.array(by_blocks(q, k, v, seen, ends)).astype(queries.dtype)


@np.errstate(over="ignore", invalid="ignore")
def by_blocks(
    queries: Floats, keys: Floats, values: Floats, mask: npt.NDArray[Any] | str | None, ends: Floats
) -> Floats:
    """The same of arrays that are computed; `ends` [H] are the sinks."""
    rows, heads, length, _ = queries.shape
    _, groups, width, _ = keys.shape
    each = heads // groups
    out = np.empty((rows, heads, length, values.shape[-1]), np.float32)
    size = max(BLOCK // width, FEWEST) // each or 1
    for row in range(rows):
        for begin in range(0, length, size):
            part = slice(begin, min(begin + size, length))
            columns, bias = visible(mask, row, part, length, width)
            bias = np.broadcast_to(bias, (heads, *bias.shape[1:]))
            for group in range(groups):
                of, at = slice(group * each, (group + 1) * each), (row, group, columns)
                out[row, of, part] = mean(queries[row, of, part], keys[at], values[at], bias[of], ends[of, None, None])
    return out


def computed(*arrays: mx.array) -> list[Any]:
    """Now, in 32 bits, unless they are bools; nothing else is copied."""
    ready = [array if array.dtype == mx.bool_ else array.astype(mx.float32) for array in arrays]
    mx.eval(ready)
    return [np.asarray(array) for array in ready]


def visible(
    mask: npt.NDArray[Any] | str | None, row: int, part: slice, length: int, width: int
) -> tuple[slice, Floats]:
    """Which of the `width` keys are seen by any query in a part of `length`, and what is to be added to the scores of
    these or the last ones of them, [1 or H, queries, keys]. `mask` [1 or B, 1 or H, 1 or L, 1 or S]."""
    count = part.stop - part.start
    if mask is None:
        return slice(width), np.zeros((1, count, 0), np.float32)
    if isinstance(mask, str):
        return slice(width - length + part.stop), np.triu(np.full((1, count, count), HIDDEN), 1)
    own = mask[row % len(mask)]
    own = np.broadcast_to(own, (len(own), length, width))[:, part]
    if own.dtype != np.bool_:
        return slice(width), own
    seen = np.flatnonzero(own.any((0, 1)))
    columns = slice(seen[0], seen[-1] + 1) if len(seen) else slice(width)
    return columns, np.where(own[..., columns], np.float32(0), HIDDEN)


def mean(queries: Floats, keys: Floats, values: Floats, bias: Floats, ends: Floats) -> Floats:
    """Of `values` [S, E] for `queries` [R, L, D], by what their products with `keys` [S, D] come to."""
    heads, length, size = queries.shape
    scores = (queries.reshape(-1, size) @ keys.T).reshape(heads, length, -1)
    scores[..., scores.shape[-1] - bias.shape[-1] :] += bias
    most = np.maximum(scores.max(-1, keepdims=True), ends)
    scores -= most
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True) + np.exp(ends - most)
    mixed = scores.reshape(heads * length, -1) @ values
    return mixed.reshape(heads, length, -1) / total
