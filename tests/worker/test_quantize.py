from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import QuantizedKVCache

from openai_gateway.types import ModelSpec
from openai_gateway.worker import quantize, wire
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.memory import weight_bytes
from tests.worker import tiny

GB = 10**9
WIDE = {**tiny.LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
TOKENS = mx.array([[1, 2, 3, 4, 5, 6, 7, 8]])


def loaded(folder: Path, engine: wire.Engine | None = None, **spec: Any) -> Loaded:
    return load(ModelSpec(id="m", path=str(folder), **spec), engine or wire.Engine())


def kinds(model: nn.Module) -> set[mx.Dtype]:
    return {value.dtype for _, value in tree_flatten(model.parameters())}


def furthest(a: mx.array, b: mx.array) -> float:
    """The largest difference of any two numbers in the same place."""
    values: Any = mx.abs(a - b).max().tolist()
    return float(values)


# Weights


@pytest.mark.parametrize(
    ("part", "machine", "expected"),
    [
        (0.5, 16 * GB, "none"),
        (0.51, 16 * GB, "q4"),
        (0.51, 32 * GB, "q8"),
        (1.3, 64 * GB, "q8"),  # 8 bits and their scales take about 0.56 times what 16 do
        (1.45, 64 * GB, "q4"),
        (9.0, 64 * GB, "q4"),
    ],
)
def test_auto_takes_fewer_bits_the_less_memory_there_is(part: float, machine: int, expected: str) -> None:
    model = tiny.build({"vocab_size": 256, **WIDE})
    model.set_dtype(mx.bfloat16)
    limit = int(weight_bytes(model) / part)
    assert quantize.choose("auto", model, limit=limit, machine=machine) == expected


def test_the_size_after_quantizing_is_known_before() -> None:
    model = tiny.build({"vocab_size": 256, **WIDE})
    foreseen = quantize._size(model, 8)
    quantize.quantize(model, "q8")
    assert weight_bytes(model) == foreseen


def test_what_was_asked_for_is_done_whatever_the_memory() -> None:
    model = tiny.build({"vocab_size": 256, **WIDE})
    assert quantize.choose("none", model, limit=1, machine=1) == "none"
    assert quantize.choose("q8", model, limit=2**60, machine=2**60) == "q8"


@pytest.mark.parametrize(("level", "tolerance"), [("q8", 0.4), ("q4", 6.0)])
def test_a_model_quantized_at_load_answers_much_like_the_whole_one(
    tmp_path: Path, level: Any, tolerance: float
) -> None:
    folder = tiny.save(tmp_path, WIDE, dtype=mx.bfloat16)
    whole, packed = loaded(folder, quantization="none"), loaded(folder, quantization=level)
    assert (whole.info.quantization, packed.info.quantization) == ("none", level)
    assert packed.info.weight_bytes == packed.budget.weights < whole.budget.weights / 3
    assert packed.info.parameters == whole.info.parameters
    assert 0 < furthest(whole.model(TOKENS), packed.model(TOKENS)) < tolerance


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices keep 16 bits")
def test_scales_made_at_load_are_float32_on_the_cpu(tmp_path: Path) -> None:
    packed = loaded(tiny.save(tmp_path, WIDE, dtype=mx.bfloat16), quantization="q4").model
    assert kinds(packed) == {mx.float32, mx.uint32}


def test_layers_of_a_width_that_no_group_divides_stay_as_they_are(tmp_path: Path) -> None:
    assert loaded(tiny.save(tmp_path, tiny.LLAMA), quantization="q4").info.quantization == "q4"
    model = tiny.build({"vocab_size": 256, **tiny.LLAMA})  # 32 wide, but for the last layer of an MLP
    quantize.quantize(model, "q4")
    assert {path.split(".")[-1] for path, m in model.named_modules() if hasattr(m, "bits")} == {"down_proj"}


def test_a_model_that_came_quantized_stays_as_it_is(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, WIDE, quantization={"group_size": 32, "bits": 6})
    assert loaded(folder, quantization="q4").info.quantization == "q6"
    assert loaded(folder, wire.Engine(quantization="q8")).info.quantization == "q6"


def test_a_model_of_which_a_part_came_quantized_stays_as_it_is() -> None:
    model = tiny.build({"vocab_size": 256, **WIDE})
    nn.quantize(model, class_predicate=lambda path, _: path.endswith("down_proj"))
    assert quantize.choose("q8", model, limit=GB, machine=GB) == "none"


def test_an_entry_is_stronger_than_the_gateways_setting(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, WIDE)
    engine = wire.Engine(quantization="q8", memory=10)
    assert loaded(folder, engine, quantization="none", memory=GB).info.quantization == "none"
    assert loaded(folder, engine, memory=GB).info.quantization == "q8"


def test_a_model_that_only_fits_with_fewer_bits_gets_them_and_is_never_whole_in_memory(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, {**WIDE, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6})
    before = loaded(folder, quantization="none").budget.weights
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    packed = loaded(folder, memory=before // 2)
    assert packed.info.quantization == "q4"
    assert mx.get_peak_memory() - held < before / 2
    assert packed.budget.room > 0


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, WIDE)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    with pytest.raises(MemoryError, match="weights take"):
        loaded(folder, memory=1000)
    assert mx.get_peak_memory() - held < 10_000


# Keys and values


def answer(model: nn.Module, caches: list[Any]) -> mx.array:
    model(TOKENS, cache=caches)
    last: mx.array = model(mx.array([[9]]), cache=caches)[0, -1]
    return last


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.5), (4, 6.0)])
def test_quantized_keys_and_values_answer_much_alike_in_less_memory(
    tmp_path: Path, bits: Any, tolerance: float
) -> None:
    folder = tiny.save(tmp_path, WIDE)
    standard, packed = loaded(folder), loaded(folder, cache_type="quantized", kv_bits=bits)
    assert all(isinstance(cache, QuantizedKVCache) for cache in packed.make_cache())
    whole, rough = (answer(one.model, one.make_cache()) for one in (standard, packed))
    assert 0 < furthest(whole, rough) < tolerance
    assert packed.footprint.batch(1, 1000) < standard.footprint.batch(1, 1000) * (bits + 2) / 32


def test_quantized_keys_and_values_are_served_one_row_at_a_time(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, WIDE)
    assert (loaded(folder).batched, loaded(folder).info.batched) == (True, True)
    packed = loaded(folder, cache_type="quantized")
    assert (packed.batched, packed.info.batched) == (False, False)


def test_every_row_gets_caches_of_its_own(tmp_path: Path) -> None:
    packed = loaded(tiny.save(tmp_path, WIDE), cache_type="quantized", kv_group_size=32)
    first = answer(packed.model, packed.make_cache())
    assert mx.array_equal(first, answer(packed.model, packed.make_cache()))
    assert {cache.group_size for cache in packed.make_cache()} == {32}


@pytest.mark.parametrize(
    ("config", "group_size", "reason"),
    [
        (tiny.GPT_OSS, 32, "RotatingKVCache layers and attention sinks"),
        (tiny.LLAMA, 32, "divisible by the quantization group size"),
        (WIDE, 128, "divisible by the quantization group size"),
    ],
)
def test_keys_and_values_that_cannot_be_quantized_are_refused_at_load(
    tmp_path: Path, config: dict[str, Any], group_size: Any, reason: str
) -> None:
    folder = tiny.save(tmp_path, config)
    with pytest.raises(ValueError, match=reason):
        loaded(folder, cache_type="quantized", kv_group_size=group_size)
