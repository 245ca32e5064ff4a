from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from openai_gateway.errors import Crowded
from openai_gateway.types import Defaults, ModelSpec, Share
from openai_gateway.worker import memory, wire
from openai_gateway.worker.load import TEKKEN, Loaded, fetched, keep_wired_limit, load, read_tokenizer
from openai_gateway.worker.memory import LEAST
from tests.support import CONFIG
from tests.worker import tiny

DEMO = Path(__file__).parent.parent.parent / "openai_gateway" / "demo"

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def loaded(folder: Path, **spec: Any) -> Loaded:
    return load(ModelSpec(id="m", path=str(folder), **spec))


def weights(config: dict[str, Any]) -> int:
    """Parameters of a model as it is before anything is quantized."""
    model = tiny.build({"vocab_size": 258, **config})
    return sum(value.size for _, value in tree_flatten(model.parameters()))


def test_the_embedded_model_says_what_it_is() -> None:
    info = loaded(DEMO).info
    assert (info.architecture, info.reasoning, info.chat_template) == ("gpt_oss", "effort", True)
    assert (info.context_length, info.vocab_size) == (32768, CONFIG["vocab_size"])
    assert info.pid == os.getpid()
    stored: Any = mx.load(str(DEMO / "model.safetensors"))
    assert info.parameters == sum(value.size for value in stored.values())


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices keep 16 bits")
@pytest.mark.parametrize("quantization", [None, {"group_size": 32, "bits": 4}])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_cpu_computes_in_float32(tmp_path: Path, dtype: mx.Dtype, quantization: dict[str, int] | None) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA, dtype=dtype, quantization=quantization)
    model = loaded(folder).model
    assert {value.dtype for _, value in tree_flatten(model.parameters())} <= {mx.float32, mx.uint32}
    assert model(mx.array([[1, 2, 3]])).dtype == mx.float32


@pytest.mark.parametrize("config", [tiny.LLAMA, tiny.QWEN3, tiny.QWEN3_MOE, tiny.GPT_OSS])
def test_parameters_are_counted(tmp_path: Path, config: dict[str, Any]) -> None:
    assert loaded(tiny.save(tmp_path, config)).info.parameters == weights(config)


@pytest.mark.parametrize("config", [tiny.LLAMA, tiny.QWEN3_MOE])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_parameters_of_quantized_layers_are_counted_unpacked(tmp_path: Path, config: dict[str, Any], bits: int) -> None:
    folder = tiny.save(tmp_path, config, quantization={"group_size": 32, "bits": bits})
    assert loaded(folder).info.parameters == weights(config)


def test_a_quantized_model_answers_much_like_the_whole_one(tmp_path: Path) -> None:
    whole = loaded(tiny.save(tmp_path / "a", tiny.LLAMA)).model
    packed = loaded(tiny.save(tmp_path / "b", tiny.LLAMA, quantization={"group_size": 32, "bits": 8})).model
    tokens = mx.array([[1, 2, 3, 4]])
    assert mx.allclose(whole(tokens), packed(tokens), atol=0.3)


# How long a text may be


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({}, None, 512),
        ({}, 100, 100),
        ({}, 9999, 512),
        ({"max_position_embeddings": None, "n_positions": 64}, None, 64),
        ({"max_position_embeddings": None}, 9999, 9999),
        ({"max_position_embeddings": None}, None, 4096),
        ({"rope_scaling": YARN}, None, 2048),
        ({"rope_scaling": YARN}, 1000, 1000),
        ({"rope_scaling": YARN | {"rope_type": "linear"}}, None, 512),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, None, 4096),
    ],
)
def test_the_context_is_what_the_model_was_trained_for_or_less(
    tmp_path: Path, config: dict[str, Any], asked: int | None, expected: int
) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    stored = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))
    assert loaded(folder, context_length=asked).info.context_length == expected


# What stands beside the weights


def test_advice_of_the_models_authors_is_kept_where_it_makes_sense(tmp_path: Path) -> None:
    advice = {
        "temperature": 0.6, "top_k": -1, "top_p": "0.95", "min_p": None, "repetition_penalty": 0, "max_new_tokens": 5,
    }  # fmt: skip
    prompts = loaded(tiny.save(tmp_path, tiny.LLAMA, generation=advice)).prompts
    assert {name: value for name, value in prompts.generation.items() if value is not None} == {"temperature": 0.6}


def test_broken_advice_does_not_keep_a_model_from_loading(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    (folder / "generation_config.json").write_text("{")
    assert loaded(folder, defaults=Defaults(top_k=3)).prompts.generation == {}


@pytest.mark.parametrize(
    ("advice", "temperature"), [({"do_sample": False}, 0.0), ({"do_sample": True}, None), ({}, None)]
)
def test_a_model_that_is_not_to_be_sampled_is_greedy(
    tmp_path: Path, advice: dict[str, bool], temperature: float | None
) -> None:
    generation = loaded(tiny.save(tmp_path, tiny.LLAMA, generation=advice)).prompts.generation
    assert generation.get("temperature") == temperature


def test_end_tokens_are_those_of_the_generation_config(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA, generation={"eos_token_id": [256, 257]})
    assert loaded(folder).prompts.tokenizer.eos_token_ids == {256, 257}


def test_a_model_without_a_chat_template_is_known_as_one(tmp_path: Path) -> None:
    info = loaded(tiny.save(tmp_path, tiny.LLAMA, template=None)).info
    assert (info.chat_template, info.reasoning, info.fill_in_the_middle) == (False, "hint", False)


def test_of_several_chat_templates_the_default_one_is_read(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "default", "template": tiny.CHAT + "{{ enable_thinking }}"},
        {"name": "rag", "template": tiny.CHAT},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert loaded(folder).info.reasoning == "switch"


def test_marks_for_filling_in_the_middle_are_found(tmp_path: Path) -> None:
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert loaded(tiny.save(tmp_path, tiny.LLAMA, special=marks)).info.fill_in_the_middle


# What cannot be loaded


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        loaded(folder)


def test_weights_of_another_shape_are_an_error(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="parameters"):
        loaded(folder)


def test_an_adapter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", tiny.LLAMA)
    with pytest.raises(FileNotFoundError):
        loaded(folder, adapter=str(tmp_path / "adapter"))


def test_an_adapter_changes_what_the_model_says_also_when_it_is_quantized(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", tiny.LLAMA | {"hidden_size": 64})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    parameters = {"rank": 2, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    layers = [f"model.layers.{n}.self_attn.q_proj" for n in range(2)]
    stored = {f"{layer}.lora_a": mx.ones((64, 2)) for layer in layers}
    stored |= {f"{layer}.lora_b": mx.ones((2, 64)) for layer in layers}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), stored)
    tokens = mx.array([[1, 2, 3, 4]])
    plain, adapted = loaded(folder).model(tokens), loaded(folder, adapter=str(adapter)).model(tokens)
    assert not mx.allclose(plain, adapted, atol=1e-2)
    packed = loaded(folder, adapter=str(adapter), quantization="q8").model
    assert packed.layers[0].self_attn.q_proj.linear.bits == 8
    assert mx.allclose(packed(tokens), adapted, atol=0.3)


# What can be loaded, and not all be done with


def test_a_model_whose_caches_cannot_be_joined_answers_one_request_at_a_time_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tiny.LLAMA | {
        "model_type": "llama4_text", "vocab_size": 258, "head_dim": 16, "attention_bias": False, "rope_theta": 10000.0,
        "attention_chunk_size": 32, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 32, "rope_scaling": None,
        "num_experts_per_tok": 1, "num_local_experts": 2, "use_qk_norm": False,
    }  # fmt: skip
    folder = tiny.save(tmp_path, {"model_type": "llama4", "text_config": text | {"num_hidden_layers": 4}})
    chunked = loaded(folder)
    assert not chunked.batched
    assert "one at a time: ChunkedKVCache" in caplog.text


def test_the_wired_limit_is_left_alone_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = import_module("mlx_lm.generate")  # `mlx_lm.generate` is the function of that name
    monkeypatch.setattr(generate, "maybe_set_recommended_wired_limit", lambda: pytest.fail("the limit was set"))
    keep_wired_limit()
    generator = BatchGenerator(tiny.build({"vocab_size": 256, **tiny.LLAMA}))
    generator.close()


# Memory


def test_a_model_for_which_others_leave_too_little_is_told_from_one_that_is_too_large(tmp_path: Path) -> None:
    spec = ModelSpec(id="m", path=str(tiny.save(tmp_path, tiny.LLAMA)))
    alone = load(spec, wire.Engine())
    assert alone.info.memory_limit == alone.budget.limit == memory.limit("auto")
    most = memory.limit("auto") - alone.budget.weights
    with pytest.raises(Crowded, match="other models leave"):
        load(spec, wire.Engine(share=Share(taken=most)))
    with pytest.raises(MemoryError):
        load(spec, wire.Engine(memory=1000, share=Share(taken=most)))


def test_the_draft_model_is_fetched_with_the_model_it_drafts_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"  # where both were downloaded before, as there is no network here
    for name in ("large", "small"):
        folder = hub / f"models--somebody--{name}"
        (folder / "snapshots" / "1").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = fetched(ModelSpec(id="m", path="somebody/large", draft_model="somebody/small"))
    assert Path(spec.path) == hub / "models--somebody--large" / "snapshots" / "1"
    assert spec.draft_model == str(hub / "models--somebody--small" / "snapshots" / "1")
    assert fetched(spec) == spec


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes this a Mac with so many bytes of memory, so many of which Metal keeps resident."""

    def become(size: int, resident: int) -> None:
        info = {"memory_size": size, "max_recommended_working_set_size": resident}
        monkeypatch.setattr(mx, "device_info", lambda: info)

    return become


def test_weights_that_metal_does_not_keep_resident_are_loaded_and_warned_of_once(
    tmp_path: Path, mac: Callable[[int, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA)
    size = loaded(folder).budget.weights
    mac(2 * size, size // 2)
    assert loaded(folder, quantization="none").budget.limit == int(size * LEAST)
    assert [record.levelname for record in caplog.records if "resident on this machine" in record.message] == [
        "WARNING"
    ]
    caplog.clear()
    mac(4 * size, 2 * size)
    assert loaded(folder, quantization="none").budget.limit == 2 * size
    assert "resident" not in caplog.text


def test_buffers_are_bounded_and_memory_is_wired_before_weights_are_read(
    tmp_path: Path, mac: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(id="m", path=str(tiny.save(tmp_path, tiny.LLAMA | {"intermediate_size": 4096})))
    mac(10**9, 7 * 10**8)
    held, seen = mx.get_active_memory(), dict[str, tuple[int, int]]()
    for place, name in ((memory, "keep_buffers"), (mx, "set_wired_limit")):
        monkeypatch.setattr(
            place, name, lambda size, name=name: seen.update({name: (size, mx.get_active_memory() - held)})
        )
    budget = load(spec, wire.Engine(wired_limit=True)).budget
    sizes = {name: size for name, (size, _) in seen.items()}
    assert sizes == {"keep_buffers": budget.reserve, "set_wired_limit": budget.weights + budget.room}
    assert all(active < budget.weights / 10 for _, active in seen.values())
    seen.clear()
    load(spec, wire.Engine())
    assert seen.keys() == {"keep_buffers"}
    assert "wired" not in caplog.text


@pytest.mark.skipif(mx.metal.is_available(), reason="there it is done")
def test_a_wired_limit_without_metal_is_answered_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(ModelSpec(id="m", path=str(tiny.save(tmp_path, tiny.LLAMA))), wire.Engine(wired_limit=True))
    assert "m: `wired_limit` is for Metal" in caplog.text


@pytest.mark.parametrize(
    ("quantization", "stored", "advised"),
    [("none", None, True), ("q8", None, True), ("q4", None, False), ("auto", None, False), ("none", 8, False)],
)
def test_fewer_bits_are_advised_only_to_a_model_that_could_have_them(
    tmp_path: Path, quantization: Any, stored: int | None, advised: bool
) -> None:
    folder = tiny.save(tmp_path, tiny.LLAMA, quantization={"group_size": 32, "bits": stored} if stored else None)
    with pytest.raises(MemoryError, match="take a smaller model") as caught:
        loaded(folder, quantization=quantization, memory=1000)
    assert ("quantization: q4" in str(caught.value)) is advised


@pytest.mark.parametrize(("kind", "size", "parts"), [
    ("mistral3", TEKKEN, ["my", "Word"]),
    ("mistral3", TEKKEN + 1, ["myWord"]),  # other tokens in a model of the same kind
    ("llama", TEKKEN, ["myWord"]),
])  # fmt: skip
def test_words_are_split_where_mistrals_models_were_trained_to(
    tmp_path: Path, kind: str, size: int, parts: list[str]
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"unused {n}" for n in range(size - len(alphabet)))]
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, []))
    split = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    config = {"model_type": kind, "text_config": {"vocab_size": size}, "transformers_version": "4.52.4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    inner = read_tokenizer(tmp_path, config).backend_tokenizer
    assert [part for part, _ in inner.pre_tokenizer.pre_tokenize_str("myWord")] == parts
