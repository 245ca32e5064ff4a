"""From a models.yaml entry to a model in memory, and the facts about it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.utils import _download, load_adapters, load_model, load_tokenizer
from msgspec.structs import replace

from openai_gateway import reasoning
from openai_gateway.types import Defaults, ModelInfo, ModelSpec
from openai_gateway.worker import attention, memory, quantize, wire
from openai_gateway.worker.answers import Endings, Forms
from openai_gateway.worker.calls import formats
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.grammar import Grammars
from openai_gateway.worker.harmony import HarmonyTokens
from openai_gateway.worker.memory import Budget, Footprint
from openai_gateway.worker.prompt import Prompts
from openai_gateway.worker.revision import revision
from openai_gateway.worker.segments import Segments
from openai_gateway.worker.templates import traits
from openai_gateway.worker.thinking import Thinking, tried

logger = logging.getLogger(__name__)

TEKKEN = 131_072
"""Tokens of the tokenizer that Mistral's models have since Nemo."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what turns requests into its prompts."""

    model: Any
    prompts: Prompts
    info: ModelInfo
    budget: Budget
    footprint: Footprint
    make_cache: Callable[[], list[Any]]
    """Makes the empty caches of one row, one for each layer."""
    batched: bool
    """Whether the caches of several rows can be joined; if not, rows are to be answered one at a time."""


def fetched(spec: ModelSpec) -> ModelSpec:
    """The entry with folders for hub ids, which are downloaded first, with a progress bar on stderr, unless they are
    here already. Raises FileNotFoundError where one is neither a folder nor to be had."""
    draft = None if spec.draft_model is None else _folder(spec.draft_model)
    return replace(spec, path=_folder(spec.path, spec.revision), draft_model=draft)


def _folder(path: str, version: str | None = None) -> str:
    try:
        return str(_download(path, revision=version))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"there is no folder {path}, and it cannot be had from the hub: {reason}") from error


def load(spec: ModelSpec, engine: wire.Engine = wire.Engine()) -> Loaded:  # noqa: B008, a frozen value
    """Load weights and tokenizer.

    Raises MemoryError when the weights do not fit, `Crowded` when that is because of other models, both before they are
    read; ValueError when the model cannot do what its entry asks; else whatever mlx-lm does when it cannot load it.
    """
    formats.check(spec.tool_format)
    folder = Path(fetched(spec).path)
    version = revision(folder, Path(spec.adapter) if spec.adapter else None)
    # Lazily: of what is too large, only the shapes are known and no byte is read until each weight is quantized.
    model, config = load_model(folder, lazy=True)
    if spec.adapter is not None:
        model = load_adapters(model, spec.adapter)
        model.eval()
    computable(model)
    budget = _fit(spec, engine, model)
    make_cache = quantize.caches(model, spec)
    language = _flat(model, config)
    footprint = _footprint(spec, model, language, make_cache)
    memory.keep_buffers(budget.reserve)
    if engine.wired_limit and (reason := memory.keep_resident(budget)):
        logger.warning("%s: %s", spec.id, reason)
    for _, value in tree_flatten(model.parameters()):
        mx.eval(value)  # one by one: what it was quantized from is gone before the next is read
    tokenizer = read_tokenizer(folder, config)
    room = budget.room - budget.kept(engine.prefix_cache)
    prompts = _prompts(spec, folder, tokenizer, language, lambda most: footprint.longest(room, most))
    apart = memory.apart(make_cache())
    info = ModelInfo(
        context_length=prompts.context_length,
        vocab_size=prompts.vocab_size,
        architecture=str(config.get("model_type", "unknown")),
        reasoning=prompts.template.kind,
        chat_template=bool(tokenizer.has_chat_template),
        fill_in_the_middle=prompts.fill_in_the_middle,
        parameters=_parameters(model),
        pid=os.getpid(),
        weight_bytes=budget.weights,
        memory_limit=budget.limit,
        quantization=quantize.name(model),
        batched=not apart,
        revision=version,
        tools=prompts.format.name if prompts.format is not None else None,
    )
    _report(spec, info, budget, footprint, apart)
    return Loaded(model, prompts, info, budget, footprint, make_cache, info.batched)


def _footprint(
    spec: ModelSpec, model: nn.Module, language: dict[str, Any], make_cache: Callable[[], list[Any]]
) -> Footprint:
    attends = spec.cache_type != "quantized" and not memory.is_latent(model) and attention.attends(model, make_cache)
    scores = memory.scores(language, put_together=not attends)
    return dataclasses.replace(memory.footprint(model, make_cache), scores=scores)


def read_tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    """mlx-lm's wrapper of the tokenizer; `config` is config.json.

    The files of Mistral's models up to Small 3.2 and Devstral split words where the models were not trained to;
    transformers knows, and mends it when it is told to.
    """
    size = (config.get("text_config") or config).get("vocab_size")
    wrong = size == TEKKEN and config.get("model_type") in ("mistral", "mistral3", "ministral", "pixtral", "voxtral")
    extra = {"fix_mistral_regex": True} if wrong else None
    return load_tokenizer(folder, extra, eos_token_ids=config.get("eos_token_id"))


def computable(model: nn.Module) -> None:
    """On a CPU, floats of 32 bits: those of 16 are emulated there, 17 to 75 times slower, also as 4-bit scales."""
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)


def _fit(spec: ModelSpec, engine: wire.Engine, model: nn.Module) -> Budget:
    """Quantize the model if it is to be, and find out what it leaves for keys and values."""
    # Text is what stands in models.yaml, and has been made a number of by now.
    allowed = engine.memory if spec.memory is None else cast("int | Literal['auto']", spec.memory)
    wanted = spec.quantization or engine.quantization
    before, packed = memory.weight_bytes(model), quantize.packed(model)
    limit = memory.limit(allowed, engine.share.processes)
    level = quantize.choose(wanted, model, limit=limit, machine=memory.machine())
    if level != "none":
        quantize.quantize(model, level)
        now = memory.gigabytes(memory.weight_bytes(model))
        logger.info("quantizing %s: %s, %s instead of %s", spec.id, level, now, memory.gigabytes(before))
    elif wanted in ("q4", "q8"):
        logger.info("%s is quantized already (%s), and stays as it is", spec.id, quantize.name(model))
    advice = "" if packed or level == "q4" else "set `quantization: q4`, "
    budget = memory.budget(allowed, memory.weight_bytes(model), engine.share, advice=advice)
    if slow := memory.paged(budget, engine.share.processes):
        logger.warning("%s: %s", spec.id, slow)
    return budget


def _report(spec: ModelSpec, info: ModelInfo, budget: Budget, footprint: Footprint, apart: list[str]) -> None:
    weights, room = memory.gigabytes(budget.weights), memory.gigabytes(budget.room)
    each = memory.gigabytes(footprint.batch(1, info.context_length))
    logger.info(
        "%s: %s of weights (%s), %s for keys and values; %d tokens take %s",
        spec.id, weights, info.quantization, room, info.context_length, each,
    )  # fmt: skip
    if apart:
        logger.warning("requests to %s are answered one at a time: %s cannot be joined", spec.id, ", ".join(apart))


def keep_wired_limit() -> None:
    """Stop mlx-lm from raising Metal's wired memory limit to the most there may be.

    Under load that has panicked the kernel (mlx #3186); what is wired is for `memory.keep_resident`.
    """
    # Not `mlx_lm.generate`, which is the function of that name.
    generate: Any = import_module("mlx_lm.generate")
    generate.maybe_set_recommended_wired_limit = lambda: None


def _prompts(
    spec: ModelSpec, folder: Path, tokenizer: Any, config: dict[str, Any], bounded: Callable[[int], int]
) -> Prompts:
    vocab_size = int(config.get("vocab_size") or len(tokenizer))
    trained = _trained_for(config) or spec.context_length or 4096
    wanted = min(spec.context_length or trained, trained)
    if (context_length := bounded(wanted)) < wanted:
        logger.warning("%s: there is memory for %d tokens of context, not %d", spec.id, context_length, wanted)
    table, harmony = TokenTable(tokenizer, size=vocab_size), HarmonyTokens.find(tokenizer)
    template = _template(tokenizer)
    thinking = Thinking.of(tokenizer, template, harmony=harmony is not None)
    return Prompts(
        tokenizer=tokenizer,
        segments=Segments(tokenizer),
        table=table,
        context_length=context_length,
        vocab_size=vocab_size,
        defaults=spec.defaults,
        generation=_generation(folder / "generation_config.json"),
        harmony=harmony,
        template=template,
        format=formats.choose(spec.tool_format, tokenizer),
        traits=traits(tokenizer),
        forms=Forms(
            grammars=Grammars(table, tokenizer.eos_token_ids),
            table=table,
            endings=Endings.of(
                partial(tokenizer.encode, add_special_tokens=False), thinking.tags, harmony=harmony is not None
            ),
            tags=thinking.tags,
            ids=harmony,
        ),
    )


def _flat(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model, where config.json is silent as mlx-lm completes it."""
    args = getattr(getattr(model, "language_model", model), "args", None)
    return (vars(args) if args is not None else {}) | config | (config.get("text_config") or {})


def _trained_for(config: Mapping[str, Any]) -> int:
    """Tokens of context; with YaRN as many times more as it stretches them, also where only that was added (Qwen3)."""
    trained = next((int(config[name]) for name in CONTEXT_LENGTHS if config.get(name)), 0)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type")) != "yarn":
        return trained
    return max(trained, int(rope.get("factor", 1) * rope.get("original_max_position_embeddings", 0)))


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
    if (function := getattr(tokenizer, "_chat_template", None)) is not None:
        return reasoning.SHIPPED.get(function.__module__.rpartition(".")[2], reasoning.Template())
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    return tried(tokenizer, reasoning.read(source)) if isinstance(source, str) else reasoning.Template()


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
