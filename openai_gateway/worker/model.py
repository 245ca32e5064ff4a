"""A model as the engine calls it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import mlx.core as mx

from openai_gateway.worker.attention import by_numpy

Cache = list[Any]
"""mlx-lm's cache objects, one for each layer."""
Model = Callable[..., mx.array]
"""Tokens [B, T] and a cache → logits [B, T, V], in float32; as `Forward`."""


class Forward:
    """Passes of a model, with logits in float32: 16 bits leave log-probabilities two or three digits. On a CPU,
    attention to many tokens is numpy's."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._on_cpu = mx.default_device() == mx.Device(mx.cpu)

    def __call__(self, tokens: mx.array, cache: Cache, *, filling: bool = False) -> mx.array:
        """`filling`: nobody will look at the logits, and only the caches be computed."""
        # Caches of other kinds, of recurrent states, have no such method.
        last = cache[-1] if filling and hasattr(cache[-1], "update_and_fetch") else None
        with by_numpy(last) if self._on_cpu else nullcontext():
            logits: mx.array = self._model(tokens, cache=cache)
        return logits.astype(mx.float32)
