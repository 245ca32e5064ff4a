"""A model's caches taken apart and put together again: for one row, in mlx-lm's own cache classes.

Some layers hold one entry per token and can be cut anywhere: `Slices`. Others, sliding windows and recurrent states,
cannot go back to an earlier token and are copied as a whole: `Snapshot`. Knows nothing of trees, owners or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache, RotatingKVCache

Arrays = tuple[mx.array, ...]
Slices = tuple[Arrays, ...]
"""For each layer that can be cut its arrays [1, heads, tokens, width] of some run; () where the model writes none."""

SLICED: Final = (KVCache, QuantizedKVCache)
WHOLE: Final = (RotatingKVCache, ArraysCache)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The layers that cannot be cut, as they were after `length` tokens (None: no layer of this model counts them)."""

    layers: tuple[tuple[mx.array | None, ...], ...]
    length: int | None

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for layer in self.layers for x in layer if x is not None)


class Layout:
    """Which layers of a model can be cut and which not, read off a fresh cache.

    `reason` says why this cannot be done with the model at all; then no other method may be called. `whole`: the
    model has layers that need snapshots.
    """

    def __init__(self, make_cache: Callable[[], list[Any]]) -> None:
        self._make_cache = make_cache
        layers = list(_layers(make_cache()))
        self._types = [type(layer) for layer in layers]
        self._widths = [_width(layer) for layer in layers]
        self.reason = next(filter(None, map(_unfit, layers)), None if layers else "the model has no cache")
        self.whole = any(kind in WHOLE for kind in self._types)

    def check(self, cache: list[Any], length: int, snapshots: Mapping[int, Snapshot]) -> None:
        """ValueError unless every layer that can be cut holds `length` tokens, or none, and snapshots are within."""
        for layer in self._of(SLICED, cache):
            if layer.offset not in (0, length):
                raise ValueError(f"a layer's cache holds {layer.offset} tokens, not {length}")
        for position, snapshot in snapshots.items():
            if not 0 < position <= length or snapshot.length not in (None, position):
                raise ValueError(f"a snapshot of {snapshot.length} tokens cannot stand at {position} of {length}")

    def cut(self, cache: list[Any], start: int, end: int) -> Slices:
        """Copies of the tokens from `start` to `end`, evaluated: nothing of `cache` is kept alive."""
        return _copies((_arrays(layer) for layer in self._of(SLICED, cache)), start, end)

    def snapshot(self, cache: list[Any], back: int = 0) -> Snapshot | None:
        """A copy, evaluated, of the layers that cannot be cut; as they were `back` tokens ago.

        None if there are none, or if one of them does not go back: a window does for the tokens that it read together.
        """
        if not self.whole:
            return None
        layers = list(self._of(WHOLE, cache))
        if any(back > _reach_back(layer) for layer in layers):
            return None
        copies = tuple(tuple(None if x is None else mx.contiguous(x) for x in _state(layer, back)) for layer in layers)
        mx.eval(copies)
        lengths = (layer.offset - back for layer in layers if isinstance(layer, RotatingKVCache))
        return Snapshot(copies, next(lengths, None))

    def compose(self, pieces: Sequence[Slices], length: int, snapshot: Snapshot | None) -> list[Any]:
        """A fresh cache of `length` tokens: the pieces one after the other, the last cut off where it is too long.

        Nothing is copied before mlx evaluates it; writing to the cache changes neither pieces nor snapshot.
        """
        cache = self._make_cache()
        for layer, *parts in zip(self._of(SLICED, cache), *pieces, strict=True):
            if parts and parts[0]:
                _fill(layer, parts, length)
        if snapshot is not None:
            for layer, arrays in zip(self._of(WHOLE, cache), snapshot.layers, strict=True):
                _restore(layer, arrays, length)
        return cache

    def named(self, slices: Slices, snapshot: Snapshot | None) -> dict[str, mx.array]:
        """The arrays under the names that `parse` expects."""
        layers = {"run": slices, "state": snapshot.layers if snapshot else ()}
        return {
            f"{kind}.{n}.{m}": x
            for kind, arrays in layers.items()
            for n, layer in enumerate(arrays)
            for m, x in enumerate(layer)
            if x is not None
        }

    def parse(self, arrays: dict[str, mx.array], tokens: int, length: int | None) -> tuple[Slices, Snapshot | None]:
        """What `named` was given, for a run of so many tokens; `length`: that of its snapshot, if it has one.

        ValueError if the arrays are not those of this model.
        """
        left = dict(arrays)

        def take(kind: str, types: tuple[type, ...]) -> Iterator[tuple[mx.array | None, ...]]:
            widths = [width for type_, width in zip(self._types, self._widths, strict=True) if type_ in types]
            return (tuple(left.pop(f"{kind}.{n}.{m}", None) for m in range(w)) for n, w in enumerate(widths))

        slices = tuple(tuple(x for x in layer if x is not None) for layer in take("run", SLICED))
        snapshot = None if length is None else Snapshot(tuple(take("state", WHOLE)), length)
        if left or any(x.ndim != 4 or x.shape[2] != tokens for layer in slices for x in layer):
            raise ValueError("the arrays belong to another model")
        return slices, snapshot

    def _of(self, types: tuple[type, ...], cache: list[Any]) -> Iterator[Any]:
        layers = list(_layers(cache))
        if [type(layer) for layer in layers] != self._types:
            raise ValueError(f"these are not the caches of this model: {[type(layer).__name__ for layer in layers]}")
        return (layer for layer in layers if type(layer) in types)


def takes_padding(cache: Iterable[Any]) -> bool:
    """Whether padding behind a prompt may go into a state: not every recurrent layer of mlx-lm keeps it out."""
    return any(isinstance(layer, ArraysCache) for layer in _layers(cache))


def divide(slices: Slices, at: int) -> tuple[Slices, Slices]:
    """Both parts of a run, copied, so that each can be freed without the other."""
    return _copies(slices, 0, at), _copies(slices, at, None)


def nbytes(slices: Slices) -> int:
    return sum(x.nbytes for layer in slices for x in layer)


def _layers(cache: Iterable[Any]) -> Iterator[Any]:
    for layer in cache:
        if type(layer) is CacheList:
            yield from _layers(layer.caches)
        else:
            yield layer


def _unfit(layer: Any) -> str | None:
    # Not isinstance: a subclass may hold more than is copied here.
    if type(layer) not in (*SLICED, *WHOLE):
        return f"{type(layer).__name__} can be neither cut nor copied"
    if type(layer) is RotatingKVCache and layer.keep:
        return f"RotatingKVCache keeps the first {layer.keep} tokens in front of its window"
    return None


def _width(layer: Any) -> int:
    if type(layer) is ArraysCache:
        return len(layer.cache)
    return 6 if type(layer) is QuantizedKVCache else 2


def _arrays(layer: Any) -> Arrays:
    if not layer.offset:
        return ()
    return (*layer.keys, *layer.values) if type(layer) is QuantizedKVCache else (layer.keys, layer.values)


def _copies(layers: Iterable[Arrays], start: int, end: int | None) -> Slices:
    copies = tuple(tuple(mx.contiguous(x[..., start:end, :]) for x in layer) for layer in layers)
    mx.eval(copies)
    return copies


def _reach_back(layer: Any) -> int:
    """How many tokens back its state is known: a recurrent layer's not at all."""
    if type(layer) is ArraysCache or layer.keys is None:
        return 0
    # Reading several tokens at once leaves those before the window that the first of them looked at.
    held = int(layer._temporal_order(layer.keys).shape[2])
    return held if held == layer.offset else max(0, held - int(layer.max_size))


def _state(layer: Any, back: int) -> Sequence[mx.array | None]:
    if type(layer) is ArraysCache:
        return layer.cache
    if layer.keys is None:
        return None, None
    # Reading in chunks leaves more than the window, decoding leaves it turned round in its buffer.
    ordered = (layer._temporal_order(layer.keys), layer._temporal_order(layer.values))
    end = ordered[0].shape[2] - back
    return [x[..., max(0, end - layer.max_size) : end, :] for x in ordered]


def _restore(layer: Any, arrays: tuple[mx.array | None, ...], length: int) -> None:
    # mlx-lm assigns into its arrays in place: never into the objects that are kept.
    fresh = [None if x is None else mx.array(x) for x in arrays]
    if type(layer) is ArraysCache:
        layer.cache = fresh
    elif fresh[0] is not None:
        layer.keys, layer.values = fresh
        layer.offset, layer._idx = length, fresh[0].shape[2]


def _fill(layer: Any, parts: list[Arrays], length: int) -> None:
    # Room to the next full step, as mlx-lm leaves it: what is read next goes there without copying all once more.
    room = -length % layer.step or layer.step
    arrays = []
    for column in zip(*parts, strict=True):
        *first, last = column
        last = last[..., : length - sum(x.shape[2] for x in first), :]
        blank = mx.zeros((*last.shape[:2], room, last.shape[3]), last.dtype)
        arrays.append(mx.concatenate([*first, last, blank], axis=2))
    half = len(arrays) // 2
    layer.keys, layer.values = arrays if half == 1 else (arrays[:half], arrays[half:])
    layer.offset = length
