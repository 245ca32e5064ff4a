"""From a models.yaml entry to a model in memory, and the facts about it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _download, load_adapters, load_model, load_tokenizer

from openai_gateway import reasoning
from openai_gateway.types import Defaults, ModelInfo, ModelSpec
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.harmony import HarmonyTokens
from openai_gateway.worker.prompt import Prompts


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what turns requests into its prompts."""

    model: Any
    prompts: Prompts
    info: ModelInfo


def fetch(spec: ModelSpec) -> Path:
    """The model's folder; a hub id is downloaded first, with a progress bar on stderr, unless it is here already."""
    return Path(_download(spec.path, revision=spec.revision))


def load(spec: ModelSpec) -> Loaded:
    """Load weights and tokenizer. Raises whatever mlx-lm does when it cannot."""
    folder = fetch(spec)
    model, config = load_model(folder)
    if spec.adapter is not None:
        model = load_adapters(model, spec.adapter)
        model.eval()
    if mx.default_device() == mx.Device(mx.cpu):
        # 16-bit floats are emulated there: 17 to 75 times slower, also where they only scale 4-bit weights.
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    if unfit := {type(c).__name__ for c in make_prompt_cache(model) if not hasattr(c, "merge")}:
        raise ValueError(f"requests to this model cannot be answered together: {', '.join(sorted(unfit))}")
    tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    prompts = _prompts(spec, folder, tokenizer, _flat(model, config))
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
    # Not `mlx_lm.generate`, which is the function of that name.
    generate: Any = import_module("mlx_lm.generate")
    generate.maybe_set_recommended_wired_limit = lambda: None


def _prompts(spec: ModelSpec, folder: Path, tokenizer: Any, config: dict[str, Any]) -> Prompts:
    vocab_size = int(config.get("vocab_size") or len(tokenizer))
    trained = next((int(config[name]) for name in CONTEXT_LENGTHS if config.get(name)), spec.context_length or 4096)
    return Prompts(
        tokenizer=tokenizer,
        table=TokenTable(tokenizer, size=vocab_size),
        context_length=min(spec.context_length or trained, trained),
        vocab_size=vocab_size,
        defaults=spec.defaults,
        generation=_generation(folder / "generation_config.json"),
        harmony=HarmonyTokens.find(tokenizer),
        template=_template(tokenizer),
    )


def _flat(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model, where config.json is silent as mlx-lm completes it."""
    args = getattr(getattr(model, "language_model", model), "args", None)
    return (vars(args) if args is not None else {}) | config | (config.get("text_config") or {})


CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""What model families call the number of tokens that they were trained for."""


def _generation(path: Path) -> dict[str, Any]:
    """The sampling that the model's authors advise; what makes no sense in their file is left out."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    advised = {}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        with suppress(msgspec.ValidationError):
            advised[name] = getattr(msgspec.convert({name: values.get(name)}, Defaults), name)
    if values.get("do_sample") is False:  # said on purpose: absent is false as well, and means nothing
        advised["temperature"] = 0.0
    return advised


def _template(tokenizer: Any) -> reasoning.Template:
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    return reasoning.read(source) if isinstance(source, str) else reasoning.Template()


def _parameters(model: nn.Module) -> int:
    """Parameters, those of quantized layers counted unpacked."""
    bits = {path: module.bits for path, module in model.named_modules() if hasattr(module, "bits")}
    total = 0
    for name, value in tree_flatten(model.parameters()):
        path, _, kind = name.rpartition(".")
        if path not in bits:
            total += value.size
        elif kind == "weight":  # 32 bits a word
            total += value.size * 32 // bits[path]
        elif kind not in ("scales", "biases"):
            total += value.size
    return total
