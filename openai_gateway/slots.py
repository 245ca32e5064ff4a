"""How a model of the list is doing, as the registry keeps it and as an administrator sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from openai_gateway.types import ModelInfo, ModelSpec, Provider


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


class State(NamedTuple):
    """What an administrator sees of a model."""

    loaded: bool
    loading: bool
    requests: int
    """That use it, or wait for it."""
    pinned: bool
