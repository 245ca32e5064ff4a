"""Makes the embedded model: tokenizer, training, export; `python -m openai_gateway.demo.training.train`."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from openai_gateway.demo.training import fast
from openai_gateway.demo.training.corpus import Encoder, Sample, samples, texts
from openai_gateway.demo.training.model import CONTEXT, VOCABULARY, build_config, export, prepare_copying
from openai_gateway.demo.training.tokenizer import save_tokenizer, stop_ids, train_tokenizer

SEED = 20261121
CHUNK = 512
TOKENIZER_TEXTS = 6000
WARMUP = 0.02
AVERAGE = 0.998


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train, how fast, and where the files go. `batch` is in tokens, padding included; `tokens` is not."""

    folder: Path
    checkpoint: Path
    tokens: float
    batch: int
    rate: float
    threads: int


@dataclass(slots=True)
class State:
    """What a checkpoint holds next to weights and optimizer."""

    step: int = 0
    chunk: int = 0
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Shapes (rows, length); `learned` marks targets, `tokens` leaves padding out."""

    ids: torch.Tensor
    learned: torch.Tensor
    tokens: int


def batches(pool: list[Sample], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Groups samples of like length, then shuffles the groups."""
    groups: list[list[Sample]] = [[]]
    for sample in sorted(pool, key=lambda sample: len(sample.ids)):
        if (len(groups[-1]) + 1) * len(sample.ids) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(sample)
    rng.shuffle(groups)
    for group in groups:
        length = max(len(sample.ids) for sample in group)
        ids = torch.zeros(len(group), length, dtype=torch.long)
        learned = torch.zeros_like(ids, dtype=torch.bool)
        for row, sample in enumerate(group):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            learned[row, : len(sample.ids)] = torch.tensor(sample.learned)
        yield Batch(ids, learned, sum(len(sample.ids) for sample in group))


def loss_of(model: GptOssForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the learned tokens, and the loss that keeps experts evenly used.

    Logits are computed for learned positions only, which halves the work of the head.
    """
    config, wanted = model.config, batch.learned[:, 1:]
    masks = fast.masks(batch.ids.shape[1], config.sliding_window)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.model(batch.ids, attention_mask=masks, use_cache=False, output_router_logits=True)
        logits = model.lm_head(output.last_hidden_state[:, :-1][wanted])
    entropy = functional.cross_entropy(logits.float(), batch.ids[:, 1:][wanted])
    balance = load_balancing_loss_func(output.router_logits, config.num_local_experts, config.num_experts_per_tok)
    return entropy, config.router_aux_loss_coef * balance


def rate_at(progress: float, peak: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if progress < WARMUP:
        return peak * (progress + 0.002) / (WARMUP + 0.002)
    fall = (progress - WARMUP) / (1 - WARMUP)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


class Trainer:
    """One run, which can be stopped at any time and goes on at its last checkpoint."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        torch.manual_seed(SEED)
        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.state = State()
        self.encoder = Encoder(tokenizer)
        self.model = GptOssForCausalLM(build_config(stop_ids(tokenizer)))
        prepare_copying(self.model)
        fast.use_in(self.model)
        # The running average is what is exported: it is far better than the weights of any one step.
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        matrices = [weight for weight in self.model.parameters() if weight.dim() > 1]
        others = [weight for weight in self.model.parameters() if weight.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
        )
        if plan.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.plan.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = State(**saved["state"])

    def save(self) -> None:
        state = {name: getattr(self.state, name) for name in State.__slots__}
        saved = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": state,
        }
        partial = self.plan.checkpoint.with_suffix(".partial")
        torch.save(saved, partial)
        partial.replace(self.plan.checkpoint)
        export(self.average.module, self.plan.folder)

    @property
    def progress(self) -> float:
        return self.state.tokens / self.plan.tokens

    def run(self) -> None:
        """Trains until the tokens are used; a checkpoint and an export after every eighth chunk."""
        self.model.train()
        columns = (*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns) as bar:
            task = bar.add_task("training", total=self.plan.tokens, note="")
            while self.progress < 1:
                note = self._chunk()
                bar.update(task, completed=self.state.tokens, note=note)
                if not bar.console.is_terminal:
                    bar.console.print(f"{self.progress:6.1%} {note}")
                if self.state.chunk % 8 == 0:
                    self.save()
        self.save()

    def _chunk(self) -> str:
        """Trains on one chunk of the corpus; returns a line on how it went."""
        began, seconds, tokens, losses = time.monotonic(), self.state.seconds, self.state.tokens, []
        pool = samples(self.encoder, SEED, self.state.chunk, CHUNK)
        for batch in batches(pool, self.plan.batch, random.Random(self.state.chunk)):
            losses.append(self._step(batch))
            self.state.seconds = seconds + time.monotonic() - began
        self.state.chunk += 1
        speed = (self.state.tokens - tokens) / (self.state.seconds - seconds)
        mean = sum(losses) / len(losses)
        return f"step {self.state.step} loss {mean:.4f} {speed:.0f} tokens/s {self.state.tokens / 1e6:.1f}M tokens"

    def _step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.progress, self.plan.rate)
        entropy, balance = loss_of(self.model, batch)
        (entropy + balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.state.step += 1
        self.state.tokens += batch.tokens
        return float(entropy.detach())


def tokenizer_of(plan: Plan) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with, or a new one."""
    if plan.checkpoint.exists():
        return Tokenizer.from_file(str(plan.folder / "tokenizer.json"))
    tokenizer = train_tokenizer(texts(SEED, TOKENIZER_TEXTS), VOCABULARY)
    save_tokenizer(tokenizer, plan.folder, CONTEXT)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent, help="where the model is written")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo-checkpoint.pt"), help="resumed when it exists")
    parser.add_argument("--tokens", type=float, default=26e6, help="how many to learn from")
    parser.add_argument("--batch", type=int, default=2048, help="tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    plan = Plan(**vars(parser.parse_args()))
    Trainer(plan, tokenizer_of(plan)).run()


if __name__ == "__main__":
    main()
