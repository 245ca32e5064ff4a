"""From a loaded model to an engine: how memory is divided, what is kept on disk, where guesses come from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from openai_gateway.types import ModelInfo, ModelSpec
from openai_gateway.worker import wire
from openai_gateway.worker.admission import Limits
from openai_gateway.worker.engine import Engine
from openai_gateway.worker.load import Loaded, computable, read_tokenizer
from openai_gateway.worker.memory import RESERVE, Budget, Footprint, footprint, gigabytes, is_latent, weight_bytes
from openai_gateway.worker.model import Forward
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.sampling import Shape, draw, keys_at
from openai_gateway.worker.speculation import Drafter, DraftModel, Lookup, trimmable
from openai_gateway.worker.spill import Spill

logger = logging.getLogger(__name__)

PROBE = 'The quick brown fox, 12 lazy dogs: naïve café? {"a": [1, 2]}\n\tEnd.'
"""Text in which two tokenizers with equally many tokens would differ."""

SOME = 33
"""Tokens of the prompt that is tried: too many for the kernels that read one or a few."""


def build(loaded: Loaded, spec: ModelSpec, order: wire.Engine) -> Engine:
    """The engine for a model, whose entry names folders by now.

    Raises ValueError when the entry asks for what this model cannot do, RuntimeError when a pass fails.
    """
    _try_out(loaded)
    guessing = _guessing(loaded, spec)
    budget = replace(loaded.budget, weights=loaded.budget.weights + guessing.weights)
    kept = budget.kept(order.prefix_cache)
    prefixes = Prefixes(
        loaded.make_cache, capacity=kept, shared=order.share_prefixes, spill=_spill(loaded, spec, order)
    )
    if kept and not prefixes.supported:
        logger.warning("no prefixes of %s are kept: %s", spec.id, prefixes.reason)
    return Engine(
        loaded.model,
        loaded.prompts.table,
        loaded.prompts.tokenizer.eos_token_ids,
        loaded.prompts.open_text,
        prefixes=prefixes,
        limits=Limits(
            max_batch=order.max_batch,
            prefill_step=order.prefill_step or _prefill_step(budget, loaded.model, snapshots=prefixes.needs_snapshots),
            max_stall=order.max_stall,
            max_silence=order.max_silence,
            room=budget.room - kept,
            weights=budget.weights,
            reserve=budget.reserve,
            footprint=loaded.footprint,
            drafting=guessing.footprint,
        ),
        memory_limit=loaded.budget.limit,
        batched=loaded.batched,
        make_cache=loaded.make_cache,
        drafter=guessing.drafter,
    )


def _prefill_step(budget: Budget, model: nn.Module, *, snapshots: bool) -> int:
    """Most tokens of a prompt to read at a time; where others wait, or a pass takes long, fewer are read anyway.

    Large parts are read faster, if there is memory, but not with latent attention (DeepSeek's), whose scores mlx-lm
    puts together itself. Where prompts are entered at `snapshots` alone, small parts leave more of these; a CPU
    loses nothing by them.
    """
    if is_latent(model) or budget.reserve < RESERVE:
        return 512
    if snapshots:
        return 256 if mx.default_device() == mx.Device(mx.cpu) else 1024
    return 2048


def _try_out(loaded: Loaded) -> None:
    """Compute a little of all that answers need.

    Metal compiles its kernels when they are needed first, and only computing tells whether memory really suffices.
    """
    model, cache = Forward(loaded.model), loaded.make_cache()
    shape = Shape(temperature=1.0, top_k=0, top_p=0.95, min_p=0.0)
    for count in (SOME, 1):
        logits = model(mx.array([[0] * count]), cache)[:, -1]
        mx.eval(draw(logits, shape, keys_at([0], [0])))
    mx.clear_cache()


def _spill(loaded: Loaded, spec: ModelSpec, order: wire.Engine) -> Spill | None:
    if not order.prefix_disk:
        return None
    # One for each way to load a model, whatever became of its files: those of older ones are found there, and deleted.
    way = repr((spec.path, spec.adapter, *_caches(spec), loaded.info.quantization))
    folder = Path(order.prefix_folder) / hashlib.sha256(way.encode()).hexdigest()[:16]
    spill = Spill(folder, order.prefix_disk, fingerprint(loaded.info, spec))
    logger.info("prefixes of %s go on to %s (%s)", spec.id, spill.folder, gigabytes(order.prefix_disk))
    return spill


def fingerprint(info: ModelInfo, spec: ModelSpec) -> str:
    """Differs whenever keys and values of the same tokens may: for other files, bits, caches, devices or libraries."""
    parts = (info.revision, info.quantization, *_caches(spec), mx.default_device())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _caches(spec: ModelSpec) -> tuple[object, ...]:
    return spec.cache_type, spec.kv_bits, spec.kv_group_size


@dataclass(frozen=True, slots=True)
class Guessing:
    """What makes a drafter for a row, and what a draft model takes: bytes of weights, and of caches."""

    drafter: Callable[[], Drafter] | None
    weights: int = 0
    footprint: Footprint = Footprint(per_token=0)  # noqa: RUF009, a frozen value


def _guessing(loaded: Loaded, spec: ModelSpec) -> Guessing:
    caches = loaded.make_cache()
    if spec.draft_model is None:
        return Guessing(Lookup if trimmable(caches) and spec.speculation == "lookup" else None)
    if not trimmable(caches):
        kinds = ", ".join(sorted({type(cache).__name__ for cache in caches}))
        raise ValueError(f"draft_model: guesses cannot be taken back out of {kinds}")
    return _draft_model(loaded, spec.draft_model)


def _draft_model(loaded: Loaded, path: str) -> Guessing:
    folder = Path(path)
    model, config = load_model(folder)
    computable(model)
    tokenizer = read_tokenizer(folder, config)
    own = loaded.prompts.tokenizer
    if tokenizer.encode(PROBE) != own.encode(PROBE) or tokenizer.get_vocab() != own.get_vocab():
        raise ValueError(f"draft_model: {path} has other tokens than the model that it drafts for")
    drafts, make_cache = Forward(model), partial(make_prompt_cache, model)
    if not trimmable(make_cache()):
        raise ValueError(f"draft_model: the caches of {path} cannot take a guess back")
    size = min(loaded.prompts.vocab_size, int(drafts(mx.array([[0]]), make_cache()).shape[-1]))
    caches = footprint(model, make_cache)
    return Guessing(lambda: DraftModel(drafts, make_cache, size), weight_bytes(model), caches)
