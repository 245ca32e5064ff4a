"""The model's shape, and its export as a folder that mlx-lm loads; knows nothing about the data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

CONTEXT = 32768
VOCABULARY = 1536
LAYERS = 4
THETA = 10000.0

# The heads of the first layer that start out looking back, by how many tokens.
LOOK_BACK = ((0, 1), (1, 2))
_LOOK_PAIRS, _LOOK_STRENGTH = 8, 6.0
# The slow rotary pairs that compare tokens, and how sharply.
_MATCH_PAIRS, _MATCH_STRENGTH, _COPY_STRENGTH = 9, 2.0, 0.2


def build_config(stops: list[int]) -> GptOssConfig:
    """Four layers, sliding and full attention in turn, four experts of which two answer."""
    return GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        eos_token_id=stops,
        pad_token_id=stops[-1],
        router_aux_loss_coef=0.01,
        tie_word_embeddings=False,
    )


def prepare_copying(model: GptOssForCausalLM) -> None:
    """Starts the model with one induction circuit, which repeating, recalling and adding all rest on.

    Such a circuit (Olsson et al. 2022, "In-context learning and induction heads") is two heads, each useless without
    the other, and so small a model takes long to find them. Layer 0 copies the previous token into a subspace of its
    own; layer 1 looks there for the present token, and so finds what followed it before. Training changes all of it.
    """
    first, second = (model.model.layers[index].self_attn for index in (0, 1))
    width, size = first.head_dim, model.config.hidden_size
    basis = torch.linalg.qr(torch.randn(size, size))[0]
    read, write, value = basis[:width], basis[width : 2 * width], basis[2 * width : 3 * width]
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.model.embed_tokens.weight *= 5
        _look_back(first)
        first.v_proj.weight[:width] = read
        first.o_proj.weight[:, :width] = write.T * _COPY_STRENGTH
        slow = torch.arange(width) % (width // 2) >= width // 2 - _MATCH_PAIRS
        second.q_proj.weight[:width] = read * slow[:, None] * _MATCH_STRENGTH
        second.k_proj.weight[:width] = write * slow[:, None] * _MATCH_STRENGTH
        second.v_proj.weight[:width] = value
        second.o_proj.weight[:, :width] = value.T * _COPY_STRENGTH


def _look_back(attention: GptOssAttention) -> None:
    """Makes heads peak some tokens back: a query bias turned by -distance * frequency meets a key bias not turned."""
    half = attention.head_dim // 2
    angles = THETA ** (-torch.arange(_LOOK_PAIRS) / half)
    attention.k_proj.bias[:_LOOK_PAIRS] = _LOOK_STRENGTH
    for head, distance in LOOK_BACK:
        start = head * attention.head_dim
        attention.q_proj.bias[start : start + _LOOK_PAIRS] = _LOOK_STRENGTH * torch.cos(angles * distance)
        start += half
        attention.q_proj.bias[start : start + _LOOK_PAIRS] = -_LOOK_STRENGTH * torch.sin(angles * distance)


def export(model: GptOssForCausalLM, folder: Path) -> None:
    """Writes config.json, generation_config.json and bfloat16 weights."""
    config = model.config.to_diff_dict()
    config.update(
        architectures=["GptOssForCausalLM"],
        dtype="bfloat16",
        model_type="gpt_oss",
        rope_theta=THETA,
        rope_scaling=None,
    )
    _write(folder / "config.json", config)
    _write(
        folder / "generation_config.json",
        {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"], "do_sample": False},
    )
    save_file(_mlx_weights(model), str(folder / "model.safetensors"), metadata={"format": "mlx"})
    (folder / "model.safetensors").chmod(0o644)


def _mlx_weights(model: GptOssForCausalLM) -> dict[str, torch.Tensor]:
    """mlx-lm keeps gate and up apart, each (experts, out, in); its own conversion covers quantized experts only."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("gate_up_proj"):
            weights[name.replace("gate_up_proj", "gate_proj.weight")] = value[..., ::2].transpose(1, 2)
            weights[name.replace("gate_up_proj", "up_proj.weight")] = value[..., 1::2].transpose(1, 2)
        elif name.endswith("gate_up_proj_bias"):
            weights[name.replace("gate_up_proj_bias", "gate_proj.bias")] = value[..., ::2]
            weights[name.replace("gate_up_proj_bias", "up_proj.bias")] = value[..., 1::2]
        elif name.endswith("down_proj"):
            weights[name + ".weight"] = value.transpose(1, 2)
        elif name.endswith("down_proj_bias"):
            weights[name.replace("down_proj_bias", "down_proj.bias")] = value
        else:
            weights[name] = value
    return {name: value.detach().to(torch.bfloat16).contiguous() for name, value in weights.items()}


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
