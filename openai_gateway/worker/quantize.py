"""Fewer bits for weights, chosen at load by the memory there is, and for keys and values where a model's entry asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from openai_gateway.types import ModelSpec, Quantization
from openai_gateway.worker.memory import weight_bytes

GROUP = 64
"""Weights that share a scale."""
BITS = {"q8": 8, "q4": 4}
ROOMY = 32 * 10**9
"""Bytes of memory from which on a model that is too large gets 8 bits, below it gets 4."""


def packed(model: nn.Module) -> bool:
    """Whether the model came quantized."""
    return any(value.dtype in (mx.uint8, mx.uint32) for _, value in tree_flatten(model.parameters()))


def choose(wanted: Quantization, model: nn.Module, *, limit: int, machine: int) -> Literal["none", "q8", "q4"]:
    """What to do with the weights of a model that may use `limit` bytes on a machine that has `machine`.

    A quantized model stays as it is. With `auto`, so does one that takes at most half of the limit; a larger one gets
    8 bits if the machine has 32 GB and that takes at most three quarters of the limit, and else 4.
    """
    if packed(model):
        return "none"
    if wanted != "auto":
        return wanted
    if weight_bytes(model) <= limit // 2:
        return "none"
    return "q8" if machine >= ROOMY and _size(model, 8) <= limit * 3 // 4 else "q4"


def quantize(model: nn.Module, level: Literal["q8", "q4"]) -> None:
    """Replace the layers whose widths allow it; nothing is computed before the new weights are asked for."""
    nn.quantize(model, group_size=GROUP, bits=BITS[level], class_predicate=partial(_quantizable, model))


def _quantizable(model: nn.Module, path: str, module: Any) -> bool | dict[str, Any]:
    if not hasattr(module, "to_quantized") or module.weight.shape[-1] % GROUP:
        return False
    # What the architecture itself exempts, or wants finer: routers of mixtures, mostly.
    predicate: Callable[[str, nn.Module], bool | dict[str, Any]] | None = getattr(model, "quant_predicate", None)
    return True if predicate is None else predicate(path, module)


def _size(model: nn.Module, bits: int) -> int:
    """About what the weights take when they are quantized."""
    size = weight_bytes(model)
    for path, module in model.named_modules():
        if _quantizable(model, path, module):
            weight: mx.array = module.weight
            scales = 2 * weight.itemsize * weight.size // GROUP
            size -= weight.nbytes - weight.size * bits // 8 - scales
    return size


def name(model: nn.Module) -> str:
    """How the weights are held: `none`, `q4`, `q8`, `mxfp4`, or several of them joined by `+`."""
    kinds = {
        f"q{module.bits}" if (mode := getattr(module, "mode", "affine")) == "affine" else str(mode)
        for module in model.modules()
        if hasattr(module, "bits")
    }
    return "+".join(sorted(kinds)) or "none"


def caches(model: nn.Module, spec: ModelSpec) -> Callable[[], list[Any]]:
    """What makes the empty caches of one row, a list of one for each layer.

    Raises ValueError where mlx-lm cannot quantize the keys and values of this model.
    """
    if spec.cache_type == "standard":
        return partial(make_prompt_cache, model)
    bits, group_size = spec.kv_bits or 8, spec.kv_group_size or 64
    plain = make_prompt_cache(model)
    others = {type(cache).__name__ for cache in plain if type(cache) is not KVCache}
    reasons = [f"{kind} layers" for kind in sorted(others)]
    if any("sinks" in module for module in model.modules()):
        reasons.append("attention sinks")
    if reasons:
        raise ValueError(f"`cache_type: quantized` cannot be had with {' and '.join(reasons)}")

    def make() -> list[Any]:
        return [QuantizedKVCache(group_size=group_size, bits=bits) for _ in plain]

    try:  # only shapes are computed
        model(mx.zeros((1, 2), dtype=mx.int32), cache=make())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"`cache_type: quantized`, `kv_group_size: {group_size}` cannot be had: {error}") from error
    return make
