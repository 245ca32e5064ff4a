from __future__ import annotations

from collections.abc import Callable
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
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": 64 * GB})
    monkeypatch.setattr(memory, "OWN", memory.SHARED)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a Mac that was sold with so many GB."""

    def become(size: int, resident: int | None = None) -> None:
        kept = resident or KEPT[size]
        info = {"memory_size": size * 2**30, "max_recommended_working_set_size": kept, "resource_limit": 499_000}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        monkeypatch.setattr(memory, "OWN", memory.SHARED)

    return become


KEPT = {16: 11_453_251_584, 24: 17_179_869_184, 32: 22_906_503_168, 64: 51_539_607_552}
"""Bytes that Metal keeps resident on Macs with so many GB, as it comes."""
GPT_OSS = 12_080_000_000
DEMO = 3_573_264
THEN = 1_017_866_320
"""Bytes for that one beside a large model."""


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
def test_a_small_model_gets_its_slice_also_where_large_ones_have_all_and_at_most_half() -> None:
    assert memory.budget("auto", GB // 2, Share(taken=48 * GB, small=GB // 2)).limit == 3_500_000_000
    assert memory.budget("auto", GB // 2, Share(processes=16, small=GB // 2)).limit == 1_500_000_000
    assert memory.budget("auto", 6 * GB, Share(small=GB)).limit == 7_500_000_000  # files that grow as they are loaded
    with pytest.raises(Crowded):
        memory.budget("auto", GB // 2, Share(taken=64 * GB, small=GB // 2))


@pytest.mark.usefixtures("machine")
def test_what_is_set_aside_for_small_models_leaves_large_ones_their_weights() -> None:
    beside = (GB // 2, GB // 5)
    assert memory.budget("auto", 12 * GB, Share(beside=beside)).limit == 48 * GB - 5_500_000_000
    assert memory.budget("auto", 12 * GB, Share(beside=beside, places=2)).limit == (48 * GB - 5_500_000_000) // 2
    assert memory.budget("auto", 46 * GB, Share(beside=beside)).limit == 47_500_000_000


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
        memory.budget(wanted, 10**15, Share(taken=1), advice="set `quantization: q4`, ")
    assert "1000000.0 GB" in str(caught.value)
    assert "set `quantization: q4`, take a smaller model, or set `memory` higher" in str(caught.value)
    assert "sysctl" not in str(caught.value)


# What Metal keeps resident


@pytest.mark.parametrize(
    ("size", "resident", "first", "then"),
    [
        (16, None, 12_683_676_416, THEN),  # over what is kept; a quarter of what its weights leave is spared
        (16, 12_884_901_888, 12_683_676_416, THEN),  # after `sysctl iogpu.wired_limit_mb=12288`
        (24, None, KEPT[24] - THEN, THEN),
        (32, None, KEPT[32] - THEN, THEN),
        (64, None, KEPT[64] - THEN, THEN),
    ],
)
def test_a_large_model_gets_all_but_what_a_small_one_takes(
    mac: Callable[..., None], size: int, resident: int | None, first: int, then: int
) -> None:
    mac(size, resident)
    large = memory.budget("auto", GPT_OSS, Share(beside=(DEMO,)))
    assert large.limit == first
    small = memory.budget("auto", DEMO, Share(taken=first, small=DEMO))  # and the large one stays
    assert small.limit == then
    if size > 16:
        assert first + then == KEPT[size]
        assert memory.paged(large) is None


@pytest.mark.parametrize(("size", "expected"), [(16, 12), (24, 16), (32, 64 // 3), (64, 48)])
def test_models_may_use_what_metal_keeps_resident_up_to_three_quarters(
    mac: Callable[..., None], size: int, expected: int
) -> None:
    mac(size)
    assert memory.budget("auto", GPT_OSS, Share()).limit // 2**30 == expected
    assert memory.limit("auto") == KEPT[size]
    assert memory.limit("auto", 2) == KEPT[size] // 2
    mac(size, size * 2**30)
    assert memory.limit("auto") == size * 2**30 * 3 // 4


@pytest.mark.parametrize("size", KEPT)
def test_a_model_gets_some_room_beside_its_weights_also_where_metal_keeps_only_just_those(
    mac: Callable[..., None], size: int
) -> None:
    mac(size)
    for weights in range(GB, size * 2**30 * 2 // 3, GB // 10):
        assert memory.budget("auto", weights, Share()).room >= weights // 20


def test_weights_that_metal_does_not_keep_resident_are_loaded_with_a_warning_that_says_the_cure(
    mac: Callable[..., None],
) -> None:
    mac(16)
    tight = memory.budget("auto", GPT_OSS, Share())
    assert tight.limit == 12 * 2**30
    said = str(memory.paged(tight))
    for part in ("11.5 GB resident", "weights take 12.1 GB", "slow", "`sudo sysctl iogpu.wired_limit_mb=12288`"):
        assert part in said
    mac(16, 12 * 2**30)  # that was done
    assert memory.budget("auto", GPT_OSS, Share()) == tight
    assert memory.paged(tight) is None
    with pytest.raises(MemoryError):
        memory.budget("auto", 13 * GB, Share())


@pytest.mark.parametrize(
    ("wanted", "said"), [(11 * GB, None), (14 * GB, "iogpu.wired_limit_mb=13352`"), (16 * GB, "set `memory` lower")]
)
def test_a_written_size_above_what_metal_keeps_resident_is_warned_of(
    mac: Callable[..., None], wanted: int, said: str | None
) -> None:
    mac(16)
    warning = memory.paged(memory.budget(wanted, GB, Share()))
    assert (said is None and warning is None) or (said or "") in str(warning)


@pytest.mark.parametrize(
    ("weights", "command"), [(13 * GB, "and run `sudo sysctl iogpu.wired_limit_mb=13422`"), (15 * GB, None)]
)
def test_what_is_too_large_names_the_command_where_it_would_help(
    mac: Callable[..., None], weights: int, command: str | None
) -> None:
    mac(16)
    with pytest.raises(MemoryError) as caught:
        memory.budget("auto", weights, Share())
    assert "q4" not in str(caught.value)
    assert str(caught.value).endswith(f"set `memory` higher{' ' + command if command else ''}")


def test_without_metal_nothing_is_said_of_what_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    for info in ({"device_name": "EPYC"}, {"total_memory": 80 * GB, "free_memory": 79 * GB}):
        monkeypatch.setattr(mx, "device_info", lambda info=info: info)
        assert memory.resident() is None
        assert memory.paged(Budget(10**15, GB)) is None


# What is wired


def wired(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], str | None]:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    return limits, memory.keep_resident(budget)


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        (64, Budget(40 * GB, GPT_OSS), 40 * GB - 2**30),  # weights and room, and not what is for activations
        (64, Budget(60 * GB, GPT_OSS), KEPT[64]),
        (24, Budget(16 * GB, GPT_OSS), 16 * GB - (16 * GB - GPT_OSS) // 4),
    ],
)
def test_weights_and_their_room_are_wired(
    mac: Callable[..., None], monkeypatch: pytest.MonkeyPatch, size: int, budget: Budget, expected: int
) -> None:
    mac(size)
    assert wired(budget, monkeypatch) == ([expected], None)


def test_weights_that_are_most_of_the_machine_are_not_wired(
    mac: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mac(16, 12 * 2**30)
    limits, reason = wired(Budget(12 * 2**30, GPT_OSS), monkeypatch)
    assert limits == []
    assert "17.2 GB may freeze when 12.1 GB" in str(reason)


@pytest.mark.usefixtures("machine")
def test_nothing_is_wired_without_metal_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, reason = wired(Budget(12 * GB, GB), monkeypatch)
    assert limits == []
    assert "is for Metal" in str(reason)


# The device


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices know their memory")
def test_a_container_has_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    whole = memory.machine()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.machine() == whole
    (tmp_path / "memory.max").write_text("4000000\n")
    assert memory.machine() == 4_000_000
    assert memory.limit("auto") == 3_000_000


HEADS = {"num_attention_heads": 16, "hidden_size": 1024}


@pytest.mark.parametrize(
    ("config", "put_together", "kept"),
    [
        (HEADS, False, 0),
        (HEADS | {"head_dim": 128}, False, 0),
        (HEADS | {"head_dim": 256}, False, 64),  # Qwen3.5, Gemma 3
        (HEADS | {"head_dim": 128, "global_head_dim": 512}, False, 64),
        (HEADS, True, 64),
        ({}, False, 0),  # no attention
    ],
)
def test_scores_are_kept_where_mlx_lm_puts_them_together_and_on_a_gpu_that_has_no_kernel(
    config: dict[str, Any], put_together: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.scores(config, put_together=put_together) == (64 if put_together else 0)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert memory.scores(config, put_together=put_together) == kept
