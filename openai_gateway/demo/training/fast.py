"""Attention and experts for training on a CPU, plugged into transformers: its results, at about twice its speed."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

NAME = "tiny_cpu"


def masks(length: int, window: int) -> dict[str, torch.Tensor]:
    """Causal masks per layer type, (1, 1, length, length + 1): the last column is the sink, which all may see.

    Rows are padded on the right, so a causal mask is enough to keep padding out.
    """
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    sink = torch.ones(length, 1, dtype=torch.bool)
    full = torch.cat([distance >= 0, sink], dim=1)
    near = torch.cat([(distance >= 0) & (distance < window), sink], dim=1)
    return {"full_attention": full[None, None], "sliding_attention": near[None, None]}


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Fused attention with sinks: one more dimension makes a zero key score exactly the sink's logit."""
    rows, heads, _, _ = query.shape
    groups = heads // key.shape[1]
    query = functional.pad(query, (0, 1), value=1.0)
    sink_key = functional.pad(module.sinks.view(1, -1, 1, 1) / scaling, (query.shape[-1] - 1, 0))
    key = torch.cat(
        [functional.pad(key.repeat_interleave(groups, 1), (0, 1)), sink_key.expand(rows, -1, -1, -1)], dim=2
    )
    value = functional.pad(value.repeat_interleave(groups, 1), (0, 1, 0, 1))
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return output[..., :-1].transpose(1, 2), None


def experts(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, **_: Any) -> torch.Tensor:
    """All experts as two large products; those not chosen weigh zero. (tokens, hidden) -> (tokens, hidden)"""
    weight = weights.new_zeros(hidden.shape[0], module.num_experts).scatter(1, chosen, weights)
    gate, up = (
        torch.addmm(
            module.gate_up_proj_bias[:, part::2].reshape(-1),
            hidden,
            module.gate_up_proj[..., part::2].permute(1, 0, 2).reshape(hidden.shape[1], -1),
        )
        for part in (0, 1)
    )
    # x * sigmoid(alpha * x) is silu(alpha * x) / alpha, which is one pass over the memory.
    swish = functional.silu(gate.clamp(max=module.limit) * module.alpha)
    gated = (up.clamp(-module.limit, module.limit) + 1) * swish
    gated = gated.view(hidden.shape[0], module.num_experts, -1) * (weight / module.alpha)[:, :, None].to(gated.dtype)
    return torch.addmm(weight @ module.down_proj_bias, gated.flatten(1), module.down_proj.reshape(-1, hidden.shape[1]))


def use_in(model: PreTrainedModel) -> None:
    """Registers both with transformers and selects them."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    model.set_attn_implementation(NAME)
    model.set_experts_implementation(NAME)
