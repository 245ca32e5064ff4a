"""How a model of the list is doing, as the registry keeps it and as an administrator sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from openai_gateway.settings import Settings
from openai_gateway.types import ModelInfo, ModelSpec, Provider, Share

SMALL = 10**9
"""Bytes of weights from which on a model is large: memory is divided among large models."""


@dataclass(slots=True, eq=False)
class Slot:
    """One model of the list, loaded or not."""

    spec: ModelSpec
    provider: Provider | None = None
    """Loaded, and able to answer."""
    known: ModelInfo | None = None
    """What it said of itself the last time that it was loaded."""
    loading: asyncio.Task[None] | None = None
    unloading: asyncio.Task[None] | None = None
    resident: bool = False
    """Has one of the `max_loaded_models` places, from before it is loaded until after it is unloaded."""
    limit: int = 0
    """Bytes that it may use, from when it is loaded until it is unloaded."""
    leases: int = 0
    used: float = 0.0
    expiry: asyncio.TimerHandle | None = None
    awaited: bool = False
    """Is to be loaded at the start, and was not yet."""
    failed: bool = False
    """Could not be loaded the last time."""
    pinned: bool = False
    """Is not unloaded to make room, nor for being idle."""
    dropped: bool = False
    """Is no longer in the list, and goes when its last lease ends."""

    @property
    def small(self) -> int:
        """Bytes of its weight files where they are few; 0 where they are many, and for a hub id: nobody knows."""
        files = Path(self.spec.path).glob("model*.safetensors")
        size = sum(file.stat().st_size for file in files if file.is_file())
        return size if size < SMALL else 0

    def share(self, listed: Collection[Slot], others: Collection[Slot], settings: Settings) -> Share:
        """What there is for it, among those that are listed and the `others` that hold memory.

        Small models are no places among which memory is divided, where large ones may be loaded beside them.
        """
        most, loaded = settings.max_loaded_models, [other for other in others if other.limit]
        small = {each: each.small for each in listed if each.small}
        if most == 1 or len(small) == len(listed):
            small = {}
        places = min(most, len(listed) - len(small)) - sum(other not in small for other in loaded)
        sizes = sorted((size for each, size in small.items() if each not in (self, *loaded)), reverse=True)
        return Share(
            processes=settings.workers,
            taken=sum(other.limit for other in loaded),
            places=max(1, places),
            small=small.get(self, 0),
            beside=() if self in small else tuple(sizes[: max(0, most - 1 - len(loaded))]),
        )


class State(NamedTuple):
    """What an administrator sees of a model."""

    loaded: bool
    loading: bool
    requests: int
    """That use it, or wait for it."""
    pinned: bool
