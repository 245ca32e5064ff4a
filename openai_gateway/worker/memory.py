"""How much memory a model may use, and how much of it the keys and values of a batch take.

Sizes only: whether a request is let in is the engine's to decide. MLX's own memory limit is left alone. It refuses
nothing; above it, MLX waits for the device after every operation, which is slower and saves little.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList

from openai_gateway.errors import Crowded
from openai_gateway.types import Share

SHARED = 0.75
"""Of memory that the system and its other programs live in as well: unified memory, or a CPU's."""
OWN = 0.9
"""Of a graphics card's memory."""
RESERVE = 1 << 30
"""Bytes kept free for what a step computes with, and at most a quarter of what the weights leave."""
BESIDE = 1.25
"""Times its weights are what a model needs, keys and values included; alone it is loaded with less as well."""
LEAST = 1.1
"""Times its weights are what a model gets even where Metal keeps less than that resident."""
SMALL_TIMES, SMALL_ROOM = 5, 10**9
"""Times its weights, and bytes besides, are what a small model beside large ones may use."""
SPARED = 4
"""Of the bytes that a large model's weights leave, at most one part in so many is set aside for small ones."""
WIRED = 0.65
"""Of the machine's memory: larger weights are not wired, for Macs with 16 GB have frozen."""
LEFT = 8
"""Of the machine's memory, one part in so many is not to be had by raising what Metal keeps resident."""
FUSED = frozenset({64, 80, 128})
"""Numbers a head has, for which MLX reads prompts without keeping scores."""
SCORE = 4
"""Bytes of one score."""
PREFIXES = 4
"""Of the bytes for keys and values, one part in so many is for kept prefixes; the rest is for what runs."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The bytes that one model may use."""

    limit: int
    weights: int

    @property
    def reserve(self) -> int:
        """For activations: what is neither weights nor keys and values."""
        return min(RESERVE, max(0, self.limit - self.weights) // 4)

    @property
    def room(self) -> int:
        """For keys and values, those of kept prefixes included."""
        return max(0, self.limit - self.weights - self.reserve)

    def kept(self, wanted: int | Literal["auto"]) -> int:
        """The part of `room` that kept prefixes may take; never more than half, for without the rest nothing runs."""
        return self.room // PREFIXES if wanted == "auto" else min(wanted, self.room // 2)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the caches of a model cost, in bytes; `windows` are (positions, bytes of each) of sliding layers."""

    per_token: int
    per_row: int = 0
    step: int = 1
    """A cache grows by this many positions at once."""
    windows: tuple[tuple[int, int], ...] = ()
    scores: int = 0
    """Besides, while a prompt is read: for each of its tokens and each that this one looks at; 0 where attention is one
    kernel, which keeps none."""

    def batch(self, rows: int, longest: int) -> int:
        """At most what `rows` rows take together, the longest of which will have `longest` tokens.

        Caches of a batch are rectangular: each row takes as much as the longest one. While its prompt is read, a
        row's sliding layers hold a chunk more than their window, which comes out of the reserve.
        """
        positions = longest + self.step - 1 if longest else 0
        sliding = sum(min(positions, size) * each for size, each in self.windows)
        return rows * (self.per_row + positions * self.per_token + sliding)

    def longest(self, room: int, most: int) -> int:
        """The length of the longest row that `room` bytes hold, up to `most` tokens."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.batch(1, middle) <= room else (low, middle - 1)
        return low


def is_latent(model: nn.Module) -> bool:
    """Whether its attention is latent, as DeepSeek's."""
    return any(hasattr(module, "kv_lora_rank") for module in model.modules())


def scores(config: Mapping[str, Any], *, put_together: bool) -> int:
    """Bytes of attention's scores for one token that is read and one that it looks at; 0 where they are not kept.

    `config` is the language model's. mlx-lm may put them together itself: those of latent attention, of quantized keys
    and of some models (Gemma 2). Of others, a CPU computes a block at a time (`attention`), and MLX has kernels for
    heads of some sizes (not of 256: Qwen3.5, Gemma).
    """
    heads = int(config.get("num_attention_heads") or 0)
    if put_together:
        return heads * SCORE
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // max(heads, 1))
    fused = {size, int(config.get("global_head_dim") or size)} <= FUSED
    return 0 if fused or mx.default_device() == mx.Device(mx.cpu) else heads * SCORE


def footprint(model: nn.Module, make_cache: Callable[[], list[Any]]) -> Footprint:
    """Found by reading a short and a longer prompt, of which nothing but the shapes is computed.

    What does not grow from the one to the other (the state of a recurrent layer) belongs to the row.
    """
    short, long = (list(_leaves(_read(model, make_cache(), length))) for length in (1, 1 + PROBE))
    sliding = [cache for cache in short if hasattr(cache, "max_size")]
    growing = [pair for pair in zip(short, long, strict=True) if not hasattr(pair[0], "max_size")]
    growth = sum(int(b.nbytes - a.nbytes) for a, b in growing)
    return Footprint(
        per_token=growth // PROBE,
        per_row=sum(int(a.nbytes) for a, b in growing if a.nbytes == b.nbytes),
        step=max((int(getattr(a, "step", 1)) for a, _ in growing), default=1),
        windows=tuple((int(c.max_size), int(c.nbytes) // int(c.keys.shape[2])) for c in sliding),
    )


PROBE = 256
"""Tokens between the two prompts: by so many positions mlx-lm's caches grow."""


def _read(model: nn.Module, caches: list[Any], length: int) -> list[Any]:
    model(mx.zeros((1, length), dtype=mx.int32), cache=caches)
    return caches


def _leaves(caches: Iterable[Any]) -> Iterator[Any]:
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _leaves(cache.caches)
        else:
            yield cache


def apart(caches: Iterable[Any]) -> list[str]:
    """The classes of caches that mlx-lm cannot join to those of other rows."""
    return sorted({type(cache).__name__ for cache in _leaves(caches) if not hasattr(cache, "merge")})


def weight_bytes(model: nn.Module) -> int:
    """What the weights take once they are computed; nothing has to be, for that."""
    return sum(int(value.nbytes) for _, value in tree_flatten(model.parameters()))


def machine() -> int:
    """Memory of the device in bytes; on a CPU what the machine has, or what the container may use of it."""
    info = mx.device_info()
    if known := info.get("memory_size") or info.get("total_memory"):
        return int(known)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(CONTAINER.read_text()))
    return total


CONTAINER = Path("/sys/fs/cgroup/memory.max")


def resident() -> int | None:
    """Bytes that Metal keeps resident for the whole machine, where there is Metal; the rest is paged in as it is used.

    2/3 of the memory of smaller Macs, 3/4 of that of larger ones, or what `sysctl iogpu.wired_limit_mb` was set to.
    """
    size = mx.device_info().get("max_recommended_working_set_size")
    return int(size) if size else None


def _part() -> int:
    """Bytes of the device's memory that may be for models at all."""
    return int(machine() * (OWN if mx.cuda.is_available() else SHARED))


def limit(wanted: int | Literal["auto"], processes: int = 1, weights: int = 0) -> int:
    """The bytes that models may use: those asked for, or a part of the device's, divided among so many gateways.

    That part is no more than Metal keeps resident, unless `weights` (in bytes) do not fit into that, or only just:
    then the model is slow, but there.
    """
    if wanted != "auto":
        return wanted
    part = _part()
    kept = resident() or part
    return min(part // processes, max(kept // processes, int(weights * LEAST)))


def budget(wanted: int | Literal["auto"], weights: int, share: Share, *, advice: str = "") -> Budget:
    """What one model with so many bytes of weights may use, which is given to no other as long as it is loaded.

    With `auto` that is, of what other models leave,
    - for a small model beside large ones, `SMALL_TIMES` its weights and `SMALL_ROOM`, up to half of the memory for
      models. Should that be taken it comes out of the rest of the machine's, so that none is unloaded for it;
    - for any other, an equal part for each place, or what its weights need if that is more. What small models beside
      it will take is set aside before.
    A size that somebody wrote is not divided, and may be more than the part of the machine that is for models.
    Raises MemoryError, with `advice` of what else to do, when the weights do not fit; `Crowded` when that is because
    of others.
    """
    most = limit(wanted, share.processes, weights)
    if weights >= most:
        raise MemoryError(_too_large(wanted, weights, most, advice))
    needed = int(weights * BESIDE) if wanted == "auto" else most
    free = (most if wanted == "auto" and not share.small else machine() // share.processes) - share.taken
    if share.taken and needed > free:
        raise Crowded(f"it needs {gigabytes(needed)}, and other models leave {gigabytes(max(0, free))}")
    if wanted != "auto":
        return Budget(most, weights)
    free -= min(sum(map(_slice, share.beside)), max(0, free - weights) // SPARED)
    part = min(_slice(share.small), most // 2) if share.small else free // share.places
    return Budget(min(most, free, max(part, needed)), weights)


def _slice(weights: int) -> int:
    return weights * SMALL_TIMES + SMALL_ROOM


def _too_large(wanted: int | Literal["auto"], weights: int, most: int, advice: str) -> str:
    whose = "the share of this machine's memory that models may use" if wanted == "auto" else "its `memory`"
    command = raising(weights + RESERVE)
    return (
        f"the weights take {gigabytes(weights)}, and {whose} is {gigabytes(most)}; {advice}take a smaller model, "
        f"or set `memory` higher{f' and run {command}' if command else ''}"
    )


def paged(budget: Budget, processes: int = 1) -> str | None:
    """Why a model with this budget is slow on Metal, and what to do; None where all of it can stay resident."""
    kept, used = resident(), budget.limit * processes
    if kept is None or used <= kept:
        return None
    command = raising(used)
    cure = f"run {command}, which holds until the next restart" if command else "set `memory` lower"
    return (
        f"Metal keeps {gigabytes(kept)} resident on this machine; the weights take {gigabytes(budget.weights)}, with "
        f"keys and values up to {gigabytes(used)}. What is beyond is read in again for each token, which is slow: "
        f"{cure}, or take a smaller model"
    )


def raising(size: int) -> str | None:
    """The command after which Metal keeps `size` bytes resident, and all that `auto` allows; None where it is of no
    use: without Metal, where as much is kept already, and where too little would be left for the system."""
    kept, wanted = resident(), max(size, _part())
    if kept is None or size <= kept or wanted > machine() - machine() // LEFT:
        return None
    return f"`sudo sysctl iogpu.wired_limit_mb={-(-wanted // 2**20)}`"


def keep_resident(budget: Budget) -> str | None:
    """Have Metal keep the weights and their room resident as long as this process lives; says why, where it does not.

    Weights that take more than `WIRED` of the machine are left alone.
    """
    if (kept := resident()) is None:
        return "`wired_limit` is for Metal, and nothing is wired on this machine"
    if budget.weights > machine() * WIRED:
        size, whole = gigabytes(budget.weights), gigabytes(machine())
        return f"nothing is wired: a machine with {whole} may freeze when {size} of weights are"
    mx.set_wired_limit(min(budget.weights + budget.room, kept))
    return None


def gigabytes(size: int) -> str:
    """For people: `12.1 GB`, and what is smaller in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def keep_buffers(size: int) -> None:
    """Let MLX keep at most so many bytes of freed buffers for the next step; by default it keeps all it ever freed."""
    if mx.default_device() != mx.Device(mx.cpu):  # there it keeps next to nothing
        mx.set_cache_limit(size)
