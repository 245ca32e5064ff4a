"""Models of many shapes for tests: random weights, a tokenizer of single bytes, and a chat template of choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|end|>", "<|turn|>")
CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 16, "rope_theta": 10000.0, "tie_word_embeddings": True}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "moe_intermediate_size": 32, "norm_topk_prob": True,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1,
    "rms_norm_eps": 1e-5, "sliding_window": 16, "rope_theta": 150000, "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    "max_position_embeddings": 512, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
QWEN3_NEXT = QWEN3_MOE | {
    "model_type": "qwen3_next", "full_attention_interval": 2, "linear_num_value_heads": 2, "linear_num_key_heads": 1,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 32, "partial_rotary_factor": 0.5,
}  # fmt: skip
FALCON_H1 = {
    "model_type": "falcon_h1", "hidden_size": 32, "head_dim": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16,
    "mamba_d_state": 16, "mamba_chunk_size": 16,
}  # fmt: skip
JAMBA = LLAMA | {
    "model_type": "jamba", "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
    "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2, "num_experts": 1,
    "num_experts_per_tok": 1, "rms_norm_eps": 1e-5,
}  # fmt: skip
RWKV7 = {
    "model_type": "rwkv7", "hidden_size": 64, "intermediate_size": 64, "norm_eps": 1e-5, "head_dim": 32,
    "num_hidden_layers": 2, "a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8,
}  # fmt: skip


def save(
    folder: Path,
    config: dict[str, Any],
    *,
    template: str | None = CHAT,
    special: tuple[str, ...] = (),
    dtype: mx.Dtype = mx.float32,
    generation: dict[str, Any] | None = None,
    quantization: dict[str, int] | None = None,
    bos: str | None = None,
) -> Path:
    """Writes a model folder as mlx-lm reads them. `special` tokens come after those of `SPECIAL`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, (*SPECIAL, *special), template, bos)
    config = {"vocab_size": vocabulary, "eos_token_id": 256, **config}
    model = build(config)
    model.set_dtype(dtype)
    if quantization is not None:
        nn.quantize(model, **quantization)
        config["quantization"] = quantization
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def build(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """A model with weights large enough that what it says depends on what it read."""
    model_class, arguments = _get_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    keys = iter(mx.random.split(mx.random.key(seed), 1000))
    model.apply(lambda weight: mx.random.normal(weight.shape, scale=weight.shape[-1] ** -0.5 * 3, key=next(keys)))
    mx.eval(model.parameters())
    return model


def write_tokenizer(folder: Path, special: tuple[str, ...], template: str | None, bos: str | None = None) -> int:
    """Writes a tokenizer whose ids 0 to 255 stand for single bytes; returns how many tokens it has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: id for id, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        settings["chat_template"] = template
    if bos is not None:
        settings["bos_token"] = bos
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(backend.get_vocab_size())
