"""The model's shape, and its export as a folder that mlx-lm loads; knows nothing about the data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

CONTEXT = 32768
LAYERS = 4
THETA = 10000.0
SPREAD, SCALE = 0.02, 5.0
"""Of the rows of the head at first, and of the embeddings over these."""

# Head h of the first layer starts out looking h + 1 tokens back: how sharply.
_LOOK_PAIRS, _LOOK_STRENGTH = 8, 6.0
# The slow rotary pairs that compare tokens, and how sharply.
_MATCH_PAIRS, _MATCH_STRENGTH, _COPY_STRENGTH = 12, 2.0, 0.2


def build_config(vocabulary: int, stops: list[int]) -> GptOssConfig:
    """Four layers, sliding and full attention in turn, four experts of which two answer."""
    return GptOssConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
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


class Words(torch.nn.Module):
    """A head whose rows are sums: that of the word, that of a blank before it, that of a capital letter.

    What is learned of a word is known of it in every spelling, also in those that it is never written in. With the
    embedding made of the same rows, tokens that are seldom seen are copied like any other.
    """

    def __init__(self, spelled: list[tuple[str, bool, bool]], size: int) -> None:
        super().__init__()
        places = {word: place for place, word in enumerate(dict.fromkeys(word for word, *_ in spelled))}
        self.words = torch.nn.Parameter(torch.randn(len(places), size) * SPREAD)
        self.marks = torch.nn.Parameter(torch.randn(2, size) * SPREAD / 2)
        self.register_buffer("place", torch.tensor([places[word] for word, *_ in spelled]))
        self.register_buffer("marked", torch.tensor([marks for _, *marks in spelled], dtype=torch.float32))

    @property
    def weight(self) -> torch.Tensor:
        """[V, hidden]"""
        return self.words[self.place] + self.marked @ self.marks

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self.weight)


class Embedding(torch.nn.Module):
    """Embeds with the rows of the head."""

    def __init__(self, head: Words) -> None:
        super().__init__()
        # Not as a submodule: the weights are the head's.
        object.__setattr__(self, "_head", head)

    @property
    def weight(self) -> torch.Tensor:
        return self._head.weight * SCALE

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids, self.weight)


def share_words(model: GptOssForCausalLM, spelled: list[tuple[str, bool, bool]]) -> None:
    """Makes head and embedding of the same words. What is exported has a table for each, as mlx-lm knows gpt-oss."""
    model.lm_head = Words(spelled, model.config.hidden_size)
    model.model.embed_tokens = Embedding(model.lm_head)


def prepare_copying(model: GptOssForCausalLM) -> None:
    """Starts the model with heads that copy, which repeating, recalling, adding and calling all rest on.

    An induction circuit (Olsson et al. 2022, "In-context learning and induction heads") is heads of two layers, each
    useless without the other, and so small a model takes long to find them. Head h of layer 0 copies the token h + 1
    back into a subspace of its own. In layer 1, head 0 looks for the present token in the subspace of lag 1, and so
    finds what followed it before; head 2 looks for the two tokens before the present one in those of lags 2 and 3,
    which decides when the present token occurred more than once. Heads 1 and 3 look for the token before the present
    one in those of lag 1, and of lags 2 and 3: behind `"size":` they find what followed `size ` and `size = `. Training
    changes all of it.
    """
    first, second = (model.model.layers[index].self_attn for index in (0, 1))
    width, size = first.head_dim, model.config.hidden_size
    basis = torch.linalg.qr(torch.randn(size, size))[0]
    value, basis = basis[:width], basis[width:]
    # Rotary positions hardly turn the slow pairs, so only these compare tokens at any distance.
    slow = [row for row in range(width) if row % (width // 2) >= width // 2 - _MATCH_PAIRS]
    lags = [torch.zeros(width, size) for _ in range(model.config.num_attention_heads + 1)]
    for lag, subspace in enumerate(lags):
        subspace[slow] = basis[lag * len(slow) : (lag + 1) * len(slow)]
    with torch.no_grad():
        _look_back(first)
        for group in range(model.config.num_key_value_heads):
            first.v_proj.weight[group * width : (group + 1) * width] = lags[0]
        for head, subspace in enumerate(lags[1:]):
            first.o_proj.weight[:, head * width : (head + 1) * width] = subspace.T * _COPY_STRENGTH
        mixed = [subspace[_shifted(slow, width)] for subspace in lags]
        _match(second, 0, lags[0], lags[1], value)
        _match(second, 1, lags[1], lags[1], value)
        _match(second, 2, lags[1] + mixed[2], lags[2] + mixed[3], value)
        _match(second, 3, lags[1] + mixed[1], lags[2] + mixed[3], value)


def _shifted(slow: list[int], width: int) -> list[int]:
    """Rows of a head with the slow ones rotated, so that two subspaces share a head and stay apart."""
    rows = list(range(width))
    for row, other in zip(slow, slow[5:] + slow[:5], strict=True):
        rows[row] = other
    return rows


def _match(attention: GptOssAttention, head: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Makes a head look where `key` holds now what `query` holds at present, and copy `value` from there."""
    width = attention.head_dim
    own = slice(head * width, (head + 1) * width)
    group = head // attention.num_key_value_groups
    shared = slice(group * width, (group + 1) * width)
    attention.q_proj.weight[own] = query * _MATCH_STRENGTH
    attention.k_proj.weight[shared] = key * _MATCH_STRENGTH
    attention.v_proj.weight[shared] = value
    attention.o_proj.weight[:, own] = value.T * _COPY_STRENGTH


def _look_back(attention: GptOssAttention) -> None:
    """Makes heads peak some tokens back: a query bias turned by -distance * frequency meets a key bias not turned."""
    half = attention.head_dim // 2
    angles = THETA ** (-torch.arange(_LOOK_PAIRS) / half)
    attention.k_proj.bias.view(-1, attention.head_dim)[:, :_LOOK_PAIRS] = _LOOK_STRENGTH
    for head, bias in enumerate(attention.q_proj.bias.view(-1, attention.head_dim)):
        bias[:_LOOK_PAIRS] = _LOOK_STRENGTH * torch.cos(angles * (head + 1))
        bias[half : half + _LOOK_PAIRS] = -_LOOK_STRENGTH * torch.sin(angles * (head + 1))


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
    weights = {"model.embed_tokens.weight": model.model.embed_tokens.weight, "lm_head.weight": model.lm_head.weight}
    for name, value in model.model.state_dict(prefix="model.").items():
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
