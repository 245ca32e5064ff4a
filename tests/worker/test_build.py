from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from msgspec.structs import replace

from openai_gateway.types import Delta, ModelSpec, Sampling
from openai_gateway.worker import wire
from openai_gateway.worker.build import _prefill_step, build, fingerprint
from openai_gateway.worker.engine import Engine
from openai_gateway.worker.load import load
from openai_gateway.worker.memory import Budget
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.speculation import PATIENCE, DraftModel, Lookup
from openai_gateway.worker.spill import Spill
from tests.worker import tiny
from tests.worker.session import Calls, prompt

ORDER = wire.Engine(memory=1 << 28)


def engine(path: Path, order: wire.Engine = ORDER, **entry: Any) -> Engine:
    spec = ModelSpec(id="m", path=str(path), **entry)
    return build(load(spec, order), spec, order)


def said(engine: Engine, tokens: list[int], max_tokens: int = 30) -> str:
    engine.submit(Job(0, tokens, Sampling(temperature=0.0, ignore_eos=True), max_tokens, chat=False))
    events = []
    while engine.busy:
        events += engine.step()
        engine.settle()
    return "".join(event.content for _, event in events if isinstance(event, Delta))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "llama", tiny.LLAMA)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "other", tiny.QWEN3)


def test_a_model_is_tried_out_before_it_is_served(llama: Path) -> None:
    spec = ModelSpec(id="m", path=str(llama))
    loaded = load(spec, ORDER)
    model = Calls(loaded.model)
    loaded = dataclasses.replace(loaded, model=model)
    order = replace(ORDER, prefill_step=64)
    build(loaded, spec, order)
    assert model.shapes == [(1, 33), (1, 1)]
    model.failures = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        build(loaded, spec, order)


# Guesses


def test_guesses_are_looked_up_unless_the_entry_says_otherwise(llama: Path) -> None:
    assert engine(llama)._running._drafter is Lookup
    assert engine(llama, speculation="none")._running._drafter is None


def test_a_draft_model_drafts_and_changes_no_word(llama: Path, other: Path) -> None:
    drafting = engine(llama, draft_model=str(other))
    assert drafting._running._drafter is not None
    assert isinstance(drafting._running._drafter(), DraftModel)
    assert drafting._limits.drafting.per_token > 0
    assert said(drafting, prompt(20)) == said(engine(llama, speculation="none"), prompt(20))
    assert drafting.stats.drafted_tokens > 0


def test_a_model_that_drafts_for_itself_is_nearly_always_right(llama: Path) -> None:
    drafting = engine(llama, draft_model=str(llama))
    said(drafting, prompt(20), 60)
    # Whether that pays is a matter of time; so often it is tried in any case.
    assert drafting.stats.accepted_tokens == drafting.stats.drafted_tokens >= PATIENCE


def test_each_row_has_a_drafter_of_its_own(llama: Path, other: Path) -> None:
    drafter = engine(llama, draft_model=str(other))._running._drafter
    assert drafter is not None
    assert drafter() is not drafter()


def test_a_draft_model_with_other_tokens_is_refused(llama: Path, tmp_path: Path) -> None:
    more = tiny.save(tmp_path / "more", tiny.LLAMA, special=("<|more|>",))
    with pytest.raises(ValueError, match="has other tokens than the model that it drafts for"):
        engine(llama, draft_model=str(more))


@pytest.mark.parametrize("config", [tiny.GPT_OSS, tiny.QWEN3_NEXT])
def test_a_draft_model_for_a_model_that_cannot_take_guesses_back_is_refused(
    llama: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = tiny.save(tmp_path / "model", config)
    with pytest.raises(ValueError, match=r"guesses cannot be taken back out of .*(Rotating|Arrays)"):
        engine(folder, draft_model=str(llama))
    assert engine(folder)._running._drafter is None


def test_a_draft_model_whose_caches_cannot_be_trimmed_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot take a guess back"):
        engine(llama, draft_model=str(tiny.save(tmp_path / "windows", tiny.GPT_OSS)))


# Memory


def test_kept_prefixes_and_what_runs_share_what_the_weights_leave(llama: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_cache=1 << 20)
    spec = ModelSpec(id="m", path=str(llama))
    loaded = load(spec, order)
    built = build(loaded, spec, order)
    assert built._prefixes._capacity == 1 << 20
    assert built._limits.room == loaded.budget.room - (1 << 20)
    assert built.stats.memory_limit == loaded.budget.limit == 1 << 28


def test_no_bytes_for_prefixes_leaves_all_of_it_to_what_runs(llama: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_cache=0)
    spec = ModelSpec(id="m", path=str(llama))
    loaded = load(spec, order)
    built = build(loaded, spec, order)
    assert not built._prefixes.keeping
    assert built._limits.room == loaded.budget.room


def test_the_engine_is_sized_as_it_was_ordered(llama: Path) -> None:
    built = engine(llama, wire.Engine(memory=1 << 28, max_batch=3, prefill_step=17, max_silence=5, share_prefixes=True))
    assert (built._limits.max_batch, built._limits.max_silence) == (3, 5)
    assert built._limits.prefill_step == 17
    assert built._prefixes.shares("one", "other")


@pytest.mark.parametrize(
    ("device", "limit", "snapshots", "step"),
    [
        ("cpu", 40, False, 2048), ("cpu", 40, True, 256), ("cpu", 13, False, 512),
        ("gpu", 40, False, 2048), ("gpu", 40, True, 1024), ("gpu", 13, True, 512),
    ],
)  # fmt: skip
def test_what_has_the_memory_reads_prompts_in_larger_parts(
    monkeypatch: pytest.MonkeyPatch, device: str, limit: int, snapshots: bool, step: int
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(getattr(mx, device)))
    budget, model = Budget(limit * 10**9, 12 * 10**9), nn.Module()
    assert _prefill_step(budget, model, snapshots=snapshots) == step
    model.attention = nn.Module()
    model.attention.kv_lora_rank = 512  # keeps every score
    assert _prefill_step(budget, model, snapshots=snapshots) == 512


def test_quantized_keys_and_values_are_answered_one_row_at_a_time(tmp_path: Path) -> None:
    wide = tiny.save(tmp_path / "wide", tiny.LLAMA | {"hidden_size": 64})
    built = engine(wide, cache_type="quantized", kv_group_size=32)
    assert built._limits.max_batch == 1
    assert built._running._drafter is Lookup


# Disk


def spill(engine: Engine) -> Spill:
    assert engine._prefixes._filed._spill is not None
    return engine._prefixes._filed._spill


def end(engine: Engine) -> None:
    """As if its process had ended when all was written."""
    while engine.idle():
        pass
    spill(engine).close()


def test_prefixes_on_disk_are_found_by_the_next_engine(llama: Path, tmp_path: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_disk=1 << 24, prefix_folder=str(tmp_path / "kept"))
    first = engine(llama, order)
    answer = said(first, prompt(100))
    end(first)
    second = engine(llama, order)
    assert said(second, prompt(100)) == answer
    assert second.stats.read_tokens == 1
    assert second.stats.cached_tokens == 99


def test_two_engines_of_one_model_at_a_time_have_different_folders(llama: Path, tmp_path: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_disk=1 << 24, prefix_folder=str(tmp_path / "kept"))
    engines = [engine(llama, order, speculation=speculation) for speculation in ("lookup", "none")]
    assert len({spill(built).folder for built in engines}) == 2


def test_prefixes_of_other_weights_are_not_found(llama: Path, other: Path, tmp_path: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_disk=1 << 24, prefix_folder=str(tmp_path / "kept"))
    first = engine(llama, order)
    said(first, prompt(100))
    while first.idle():
        pass
    second = engine(other, order)
    said(second, prompt(100))
    assert second.stats.cached_tokens == 0


def adapter(folder: Path, value: float) -> str:
    """One for a model of 64 floats a token, as `mlx_lm.lora` leaves it."""
    folder.mkdir(exist_ok=True)
    parameters = {"rank": 2, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.k_proj"]}
    settings = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    layer = "model.layers.1.self_attn.k_proj"
    stored = {f"{layer}.lora_a": mx.ones((64, 2)), f"{layer}.lora_b": mx.full((2, 32), value)}
    mx.save_safetensors(str(folder / "adapters.safetensors"), stored)
    return str(folder)


def test_prefixes_of_an_adapter_that_was_trained_again_in_place_are_not_found(tmp_path: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_disk=1 << 24, prefix_folder=str(tmp_path / "kept"))
    model = tiny.save(tmp_path / "model", tiny.LLAMA | {"hidden_size": 64})
    for value, cached in ((1.0, 0), (1.0, 99), (2.0, 0)):
        if not cached:
            adapter(tmp_path / "adapter", value)
        built = engine(model, order, adapter=str(tmp_path / "adapter"))
        said(built, prompt(100))
        assert built.stats.cached_tokens == cached
        end(built)


def test_entries_of_one_folder_keep_their_files_beside_each_other(tmp_path: Path) -> None:
    order = wire.Engine(memory=1 << 28, prefix_disk=1 << 24, prefix_folder=str(tmp_path / "kept"))
    model = tiny.save(tmp_path / "model", tiny.LLAMA | {"hidden_size": 64})
    entries: list[dict[str, Any]] = [
        {},
        {"adapter": adapter(tmp_path / "adapter", 1.0)},
        {"quantization": "q8"},
        {"cache_type": "quantized", "kv_group_size": 32},
        {"cache_type": "quantized", "kv_group_size": 32, "kv_bits": 4},
    ]
    for cached in (0, 99):
        for entry in entries:
            built = engine(model, order, **entry)
            said(built, prompt(100), 5)
            assert built.stats.cached_tokens == cached
            end(built)


def test_a_fingerprint_tells_whatever_keys_and_values_depend_on(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(id="m", path=str(llama))
    info = load(spec, ORDER).info
    plain = fingerprint(info, spec)
    assert plain == fingerprint(info, replace(spec, id="n"))
    assert plain != fingerprint(replace(info, revision="of other files"), spec)
    assert plain != fingerprint(replace(info, quantization="q4"), spec)
    changes: list[dict[str, Any]] = [{"cache_type": "quantized"}, {"kv_bits": 4}, {"kv_group_size": 32}]
    for change in changes:
        assert plain != fingerprint(info, replace(spec, **change))
    monkeypatch.setattr(mx, "default_device", lambda: "another one")
    assert plain != fingerprint(info, spec)


def test_caches_that_cannot_be_kept_are_named_at_the_start(
    llama: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai_gateway.worker.snapshots.SLICED", ())
    with caplog.at_level(logging.WARNING, "openai_gateway.worker.build"):
        built = engine(llama)
    assert "no prefixes of m are kept: KVCache" in caplog.text
    assert not built._prefixes.keeping
