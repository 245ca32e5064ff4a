"""From a models.yaml entry to a model in memory, and the facts about it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.generate
from mlx.utils import tree_flatten
from mlx_lm.utils import _download, load_adapters, load_model, load_tokenizer

from openai_gateway import reasoning
from openai_gateway.types import ModelInfo, ModelSpec
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.harmony import HarmonyTokens
from openai_gateway.worker.prompt import Prompts


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what turns requests into its prompts."""

    model: Any
    prompts: Prompts
    info: ModelInfo


def load(spec: ModelSpec) -> Loaded:
    """Load weights and tokenizer, downloading a hub id first. Raises whatever mlx-lm does when it cannot."""
    folder = Path(_download(spec.path, revision=spec.revision))
    model, config = load_model(folder)
    if spec.adapter is not None:
        model = load_adapters(model, spec.adapter)
        model.eval()
    if mx.default_device() == mx.Device(mx.cpu):
        # 16-bit floats are emulated there: 17 to 75 times slower, also where they only scale 4-bit weights.
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    prompts = _prompts(spec, folder, tokenizer, config)
    info = ModelInfo(
        context_length=prompts.context_length,
        vocab_size=prompts.vocab_size,
        architecture=str(config.get("model_type", "unknown")),
        reasoning=prompts.template.kind,
        chat_template=bool(tokenizer.has_chat_template),
        fill_in_the_middle=prompts.fill_in_the_middle is not None,
        parameters=_parameters(model),
        pid=os.getpid(),
    )
    return Loaded(model, prompts, info)


def keep_wired_limit() -> None:
    """Stop mlx-lm from raising Metal's wired memory limit: under load that has panicked the kernel (mlx #3186)."""
    mlx_lm.generate.maybe_set_recommended_wired_limit = lambda: None


def _prompts(spec: ModelSpec, folder: Path, tokenizer: Any, config: dict[str, Any]) -> Prompts:
    text = config.get("text_config") or config
    generation = folder / "generation_config.json"
    source = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    vocab_size = int(text.get("vocab_size") or len(tokenizer))
    trained = int(text.get("max_position_embeddings") or 4096)
    return Prompts(
        tokenizer=tokenizer,
        table=TokenTable(tokenizer, size=vocab_size),
        context_length=min(spec.context_length or trained, trained),
        vocab_size=vocab_size,
        defaults=spec.defaults,
        generation=json.loads(generation.read_text()) if generation.exists() else {},
        harmony=HarmonyTokens.find(tokenizer),
        template=reasoning.read(source),
    )


def _parameters(model: nn.Module) -> int:
    """Parameters, those of quantized layers counted unpacked."""
    total = 0
    for _, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        for name, value in module.parameters().items():
            if isinstance(value, mx.array) and name not in ("scales", "biases"):
                total += value.size * (32 // module.bits if hasattr(module, "bits") and name == "weight" else 1)
    return total
