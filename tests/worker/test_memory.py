from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from openai_gateway.errors import Crowded
from openai_gateway.types import Share
from openai_gateway.worker import memory
from openai_gateway.worker.memory import Budget, Footprint
from tests.worker import tiny

MAMBA = {
    "model_type": "mamba", "hidden_size": 32, "intermediate_size": 64, "state_size": 8, "num_hidden_layers": 2,
    "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4,
}  # fmt: skip
GB = 10**9


def built(config: dict[str, Any]) -> nn.Module:
    return tiny.build({"vocab_size": 258, **config})


def footprint(model: nn.Module) -> Footprint:
    return memory.footprint(model, partial(make_prompt_cache, model))


def batch_bytes(model: nn.Module, lengths: list[int], more: int) -> int:
    """What the joined caches of rows of these lengths hold when `more` tokens have been decoded."""
    rows = []
    for length in lengths:
        row = make_prompt_cache(model)
        for _ in range(length):
            model(mx.zeros((1, 1), dtype=mx.int32), cache=row)
        rows.append(row)
    joined = [layer[0].merge(layer) for layer in zip(*rows, strict=True)]
    for _ in range(more):
        model(mx.zeros((len(lengths), 1), dtype=mx.int32), cache=joined)
    return sum(cache.nbytes for cache in joined)


@pytest.mark.parametrize("config", [tiny.LLAMA, tiny.GPT_OSS, MAMBA])
@pytest.mark.parametrize(("lengths", "more"), [([3], 1), ([5, 40, 12], 30), ([20, 250], 10), ([255, 1, 1, 1], 2)])
def test_a_batch_takes_what_was_foreseen_and_little_less(config: dict[str, Any], lengths: list[int], more: int) -> None:
    model = built(config)
    found = footprint(model)
    rows, longest = len(lengths), max(lengths) + more
    real = batch_bytes(model, lengths, more)
    assert real <= found.batch(rows, longest)
    windows = rows * sum(size * each for size, each in found.windows)
    assert found.batch(rows, longest) - real < rows * found.step * found.per_token + windows + 1


def test_a_long_row_multiplies_by_the_rows_beside_it() -> None:
    found = footprint(built(tiny.LLAMA))
    assert found.batch(8, 3000) == 8 * found.batch(1, 3000)
    assert found.per_token == 2 * 2 * 16 * 4  # keys and values of two layers, one head of 16 floats


def test_sliding_layers_stop_growing() -> None:
    found = footprint(built(tiny.GPT_OSS))
    assert found.windows == ((16, 2 * 16 * 4),)
    assert found.batch(1, 2000) - found.batch(1, 1000) == 1000 * found.per_token


def test_a_recurrent_state_costs_the_same_at_any_length() -> None:
    found = footprint(built(MAMBA))
    assert (found.per_token, found.windows) == (0, ())
    assert found.batch(3, 10) == found.batch(3, 10_000) == 3 * found.per_row > 0


def test_finding_the_footprint_computes_nothing() -> None:
    model = built(tiny.LLAMA)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    footprint(model)
    assert mx.get_peak_memory() <= before + 8192


def test_caches_that_cannot_be_joined_are_named_also_where_they_are_nested() -> None:
    lone: Any = KVCache()
    assert memory.apart([lone, CacheList(KVCache())]) == []
    assert memory.apart([lone, CacheList(KVCache(), Lone())]) == ["Lone"]


class Lone:
    """A cache that knows nothing of batches."""


# How much there is


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GB, 48 of which are for models."""
    monkeypatch.setattr(memory, "machine", lambda: 64 * GB)
    monkeypatch.setattr(memory, "OWN", memory.SHARED)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("weights", [1, 12, 37, 40, 47])
def test_a_model_alone_may_use_all_of_the_memory_for_models(weights: int) -> None:
    assert memory.budget("auto", weights * GB, Share()) == Budget(48 * GB, weights * GB)
    assert memory.budget("auto", weights * GB // 4, Share(processes=4)).limit == 12 * GB


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("weights", "limits"), [((1, 1), (24, 24)), ((12, 18), (24, 24)), ((24, 14), (30, 18)), ((40, 1), (48, None)),
                            ((12, 24), (24, None)), ((4, 12, 12), (16, 16, 16)), ((24, 6, 6), (30, 9, 9))],
)  # fmt: skip
def test_models_beside_each_other_never_get_more_than_there_is(
    weights: tuple[int, ...], limits: tuple[int | None, ...]
) -> None:
    taken = 0
    for place, (each, limit) in enumerate(zip(weights, limits, strict=True)):
        share = Share(taken=taken * GB, places=len(weights) - place)
        if limit is None:
            with pytest.raises(Crowded):
                memory.budget("auto", each * GB, share)
        else:
            assert memory.budget("auto", each * GB, share) == Budget(limit * GB, each * GB)
            taken += limit
    assert taken <= 48


@pytest.mark.usefixtures("machine")
def test_a_size_that_somebody_wrote_is_not_divided_but_others_keep_theirs() -> None:
    assert memory.budget(12 * GB, 3 * GB, Share(places=2)) == Budget(12 * GB, 3 * GB)
    assert memory.budget(16 * GB, 3 * GB, Share(taken=48 * GB)).limit == 16 * GB
    with pytest.raises(Crowded, match=r"it needs 17\.0 GB, and other models leave 16\.0 GB"):
        memory.budget(17 * GB, 3 * GB, Share(taken=48 * GB))
    with pytest.raises(Crowded, match=r"leave 0\.0 MB"):
        memory.budget("auto", 3 * GB, Share(taken=60 * GB))


def test_the_room_is_what_weights_and_a_reserve_leave() -> None:
    wide, narrow = Budget(64 * GB, 12 * GB), Budget(12 * GB, 11 * GB)
    assert wide.room == 52 * GB - 2**30
    assert narrow.room == 3 * GB // 4


@pytest.mark.parametrize(("wanted", "whose"), [(GB, "`memory`"), ("auto", "share")])
def test_weights_that_do_not_fit_are_refused_with_what_to_do(wanted: Any, whose: str) -> None:
    with pytest.raises(MemoryError, match=whose) as caught:
        memory.budget(wanted, 10**15, Share(taken=1))
    assert "1000000.0 GB" in str(caught.value)
    assert "quantization: q4" in str(caught.value)


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices know their memory")
def test_a_container_has_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    whole = memory.machine()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.machine() == whole
    (tmp_path / "memory.max").write_text("4000000\n")
    assert memory.machine() == 4_000_000
    assert memory.limit("auto") == 3_000_000
