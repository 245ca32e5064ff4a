"""What is preloaded into processes that compute on a Linux CPU: a fast BLAS, and jemalloc.

mlx takes memory for hundreds of small arrays a token on one thread there, and gives it back on another. With glibc's
malloc that is a quarter of what the engine's thread does.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from openai_gateway import blas
from openai_gateway.blas import Choice, offers

ADVICE = "jemalloc is up to a fifth faster: `apt install libjemalloc2`"


@cache
def choose(wanted: str, allocator: Literal["auto", "none"]) -> Choice | None:
    """By the settings `blas` and `allocator`; None where there is nothing to choose. Takes a moment the first time: ask
    in a thread.

    Raises ValueError as `blas.choose` does.
    """
    multiplies = blas.choose(wanted)
    if multiplies is None:
        return None
    allocates = _malloc(allocator, (os.environ | multiplies.environment).get("LD_PRELOAD", ""))
    return Choice(
        multiplies.environment | allocates.environment,
        f"multiplies matrices with {multiplies.summary}, and takes memory from {allocates.summary}",
    )


def _malloc(wanted: Literal["auto", "none"], preloaded: str) -> Choice:
    """For a process with that LD_PRELOAD."""
    if "malloc" in preloaded:  # the operator's choice
        return Choice({}, "what LD_PRELOAD names")
    if wanted == "none":
        return Choice({}, "the system's malloc, as `allocator: none` asks")
    for path in _candidates():
        environment = {"LD_PRELOAD": ":".join(filter(None, [preloaded, str(path)]))}
        if offers("mallctl", environment):
            return Choice(environment, str(path))
    return Choice({}, f"the system's malloc; {ADVICE}")


def _candidates() -> Iterator[Path]:
    """Most specific first: this environment's (conda's), the system's."""
    yield from (path for path in Path(sys.prefix, "lib").glob("libjemalloc.so*") if path.is_file())
    if (found := ctypes.util.find_library("jemalloc")) is not None:
        yield Path(found)
