from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from openai_gateway.worker import prefixes as module
from openai_gateway.worker.filed import Filed
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.snapshots import Slices, Snapshot
from openai_gateway.worker.spill import Spill
from openai_gateway.worker.tree import Node
from tests.worker.test_prefixes import PLENTY, contents, fill, keep, prompt, sliced, windowed

TOKENS = prompt(1, 100)
STOPS = range(10, 101, 10)


@pytest.fixture(params=[sliced, windowed])
def make_cache(request: pytest.FixtureRequest) -> Callable[[], list[Any]]:
    made: Callable[[], list[Any]] = request.param
    return made


@pytest.fixture
def spill(tmp_path: Path, make_cache: Callable[[], list[Any]]) -> Spill:
    """Where a hundred tokens are kept, in runs of ten."""
    spill = Spill(tmp_path, PLENTY, "this model")
    prefixes = Prefixes(make_cache, capacity=PLENTY, spill=spill)
    with patch.object(module, "RUN", 10):
        keep(prefixes, make_cache, "me", TOKENS, *STOPS)
    prefixes.shrink(0)
    spill.close()
    return Spill(tmp_path, PLENTY, "this model")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes in memory whenever a file is read."""
    held: list[int] = []
    read = Filed.read

    def counted(filed: Filed, node: Node) -> tuple[Slices, Snapshot | None]:
        held.append(sum(other.nbytes for other in node.partition.root.down()))
        return read(filed, node)

    monkeypatch.setattr(Filed, "read", counted)
    return held


def test_a_hit_brings_no_more_from_disk_than_memory_has_room_for(
    spill: Spill, make_cache: Callable[[], list[Any]], held: list[int]
) -> None:
    prefixes = Prefixes(make_cache, capacity=1000, spill=spill)
    for _ in range(2):
        found = prefixes.find("me", [*TOKENS, 1])
        assert found.cache is not None
        assert contents(found.cache) == contents(fill(make_cache(), TOKENS[: found.length]))
        assert prefixes.nbytes <= 1000
        assert (found.length, found.diverged_at) == (80 if make_cache is sliced else 40, 100)
    assert max(held) <= 1000


def test_what_follows_a_prefix_that_memory_has_no_room_for_is_not_kept(
    spill: Spill, make_cache: Callable[[], list[Any]], held: list[int]
) -> None:
    prefixes = Prefixes(make_cache, capacity=1000, spill=spill)
    keep(prefixes, make_cache, "me", TOKENS + TOKENS, 200)
    assert 0 < prefixes.nbytes <= 1000
    assert max(held) <= 1000
    assert prefixes.covered("me", TOKENS + TOKENS) == 100


def test_another_conversation_makes_room_for_the_one_that_comes_back(
    spill: Spill, make_cache: Callable[[], list[Any]]
) -> None:
    prefixes = Prefixes(make_cache, capacity=1000, spill=spill)
    length = prefixes.find("me", TOKENS).length
    keep(prefixes, make_cache, "me", prompt(2, 30), 30)
    assert prefixes.find("me", TOKENS).length == length
