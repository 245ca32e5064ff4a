"""Makes the embedded model: tokenizer, training, export; `python -m openai_gateway.demo.training.train`."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from openai_gateway.demo.training import fast
from openai_gateway.demo.training.corpus import Encoder, Sample, samples, texts
from openai_gateway.demo.training.model import (
    CONTEXT,
    build_config,
    export,
    prepare_copying,
    share_words,
)
from openai_gateway.demo.training.tokenizer import save_tokenizer, spellings, stop_ids, train_tokenizer

SEED = 20261121
VOCABULARY = 2048
"""Most tokens."""
CHUNK = 512
TOKENIZER_TEXTS = 6000
WARMUP = 350_000
"""Tokens."""
FALL = 0.3
"""Of all tokens."""
DOUBLED = 0.5
"""Of all tokens; from then on batches are twice as large: what a step costs besides is shared by more."""
AVERAGE = 0.998
ADAM_SHARE = 0.7
"""Of the learning rate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train, how fast, and where the files go. `batch` is in tokens, padding included; `tokens` is not. In
    the last part of them batches are twice as large.

    Each of `workers` processes has one core and an equal part of every batch: two of them wait for each other once a
    step, where two threads of one process do so in every operation.
    """

    folder: Path
    checkpoint: Path
    tokens: float
    batch: int
    rate: float
    workers: int


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


def steps(pool: list[Sample], tokens: int, workers: int, rng: random.Random) -> Iterator[tuple[Batch, ...]]:
    """A batch of about so many tokens for each worker, in random order; what is left over is left out.

    Samples of like length are in a batch, and batches of like length in a step, where the workers wait for each other.
    """
    groups: list[list[Sample]] = [[]]
    for sample in sorted(pool, key=lambda sample: len(sample.ids)):
        if (len(groups[-1]) + 0.5) * len(sample.ids) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(sample)
    together = list(zip(*[iter(groups)] * workers, strict=False))
    rng.shuffle(together)
    for each in together:
        yield tuple(map(_batch, each))


def _batch(group: list[Sample]) -> Batch:
    length = max(len(sample.ids) for sample in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for row, sample in enumerate(group):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        learned[row, : len(sample.ids)] = torch.tensor(sample.learned)
    return Batch(ids, learned, sum(len(sample.ids) for sample in group))


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


def rate_at(tokens: int, total: float, peak: float) -> float:
    """Linear warm-up, then the peak, then a line down to a hundredth of it over the last part of all tokens.

    Until that line begins the rate does not depend on `total`, so a run may be made longer or shorter until then.
    """
    rise = (tokens + WARMUP / 10) / (WARMUP * 1.1)
    fall = (total - tokens) / (FALL * total)
    return peak * max(0.01, min(1.0, rise, fall))


class Trainer:
    """One run, which can be stopped at any time and goes on at its last checkpoint."""

    def __init__(self, plan: Plan, rank: int) -> None:
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        self.plan, self.rank = plan, rank
        tokenizer = Tokenizer.from_file(str(plan.folder / "tokenizer.json"))
        self.state = State()
        self.encoder = Encoder(tokenizer)
        self.model = GptOssForCausalLM(build_config(tokenizer.get_vocab_size(), stop_ids(tokenizer)))
        share_words(self.model, spellings(tokenizer))
        prepare_copying(self.model)
        fast.use_in(self.model)
        # The running average is what is exported: it is far better than the weights of any one step.
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        weights = list(self.model.parameters())
        self.gradients, views = _joined(weights)
        for weight, view in zip(weights, views, strict=True):
            weight.grad = view
        hidden = [weight for name, weight in self.model.named_parameters() if _is_hidden(name, weight)]
        self.hidden, views = _joined(hidden)
        for weight, view in zip(hidden, views, strict=True):
            weight.data = view.copy_(weight.data)
        self.matrices = [matrix for weight in hidden for matrix in _matrices(weight)]
        self.muon = muon(self.matrices[rank :: plan.workers])
        self.adam = adam([weight for name, weight in self.model.named_parameters() if not _is_hidden(name, weight)])
        if plan.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.plan.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.muon.load_state_dict(saved["muon"][self.rank])
        self.adam.load_state_dict(saved["adam"])
        self.state = State(**saved["state"])

    def save(self) -> None:
        """To be called by all workers."""
        momenta: list[dict[str, object]] = [{} for _ in range(self.plan.workers)]
        distributed.all_gather_object(momenta, self.muon.state_dict())
        if self.rank > 0:
            return
        state = {name: getattr(self.state, name) for name in State.__slots__}
        saved = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "muon": momenta,
            "adam": self.adam.state_dict(),
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
        with Progress(*columns, disable=self.rank > 0) as bar:
            task = bar.add_task("training", total=self.plan.tokens, note="")
            while self.progress < 1:
                note = self._chunk()
                bar.update(task, completed=self.state.tokens, note=note)
                if self.rank == 0 and not bar.console.is_terminal:
                    bar.console.print(f"{self.progress:6.1%} {note}")
                if self.state.chunk % 8 == 0 or self.progress >= 1:
                    self.save()

    def _chunk(self) -> str:
        """Trains on one chunk of the corpus; returns a line on how it went."""
        began, seconds, tokens, losses = time.monotonic(), self.state.seconds, self.state.tokens, []
        pool = samples(self.encoder, SEED, self.state.chunk, CHUNK)
        size = self.plan.batch * (2 if self.progress >= DOUBLED else 1) // self.plan.workers
        for parts in steps(pool, size, self.plan.workers, random.Random(self.state.chunk)):
            losses.append(self._step(parts[self.rank]))
            self.state.tokens += sum(part.tokens for part in parts)
            self.state.seconds = seconds + time.monotonic() - began
        self.state.chunk += 1
        speed = (self.state.tokens - tokens) / (self.state.seconds - seconds)
        mean = sum(losses) / len(losses)
        return f"step {self.state.step} loss {mean:.4f} {speed:.0f} tokens/s {self.state.tokens / 1e6:.1f}M tokens"

    def _step(self, batch: Batch) -> float:
        rate = rate_at(self.state.tokens, self.plan.tokens, self.plan.rate)
        for optimizer, share in ((self.muon, 1.0), (self.adam, ADAM_SHARE)):
            for group in optimizer.param_groups:
                group["lr"] = share * rate
        self.gradients.zero_()
        entropy, balance = loss_of(self.model, batch)
        (entropy + balance).backward()
        distributed.all_reduce(self.gradients)
        self.gradients /= self.plan.workers
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.muon.step()
        self._exchange()
        self.average.update_parameters(self.model)
        self.state.step += 1
        return float(entropy.detach())

    def _exchange(self) -> None:
        """Each worker has changed its own of the matrices."""
        with torch.no_grad():
            for place, matrix in enumerate(self.matrices):
                if place % self.plan.workers != self.rank:
                    matrix.zero_()
            distributed.all_reduce(self.hidden)


def _joined(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One tensor of zeros for all of them, which workers exchange at once, and a view of it in the place of each."""
    joined = torch.zeros(sum(tensor.numel() for tensor in tensors))
    parts = joined.split([tensor.numel() for tensor in tensors])
    return joined, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _is_hidden(name: str, weight: torch.Tensor) -> bool:
    """Whether layers multiply with it."""
    return weight.dim() > 1 and ".layers." in name and not name.endswith("bias") and "router" not in name


def muon(matrices: list[torch.Tensor]) -> torch.optim.Optimizer:
    """For what layers multiply with: half of the steps that AdamW needs (Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks"). A quarter of a step's time, so workers share it out.
    """
    return torch.optim.Muon(matrices, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")


def adam(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    """For the rest."""
    rows, others = ([weight for weight in weights if (weight.dim() > 1) is many] for many in (True, False))
    groups = [{"params": rows, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _matrices(weight: torch.Tensor) -> list[torch.Tensor]:
    """The weight, or each of those that are stacked in it: views, with views of its gradient."""
    if weight.dim() == 2:
        return [weight]
    parts = list(weight.detach())
    assert weight.grad is not None
    for part, gradient in zip(parts, weight.grad, strict=True):
        part.grad = gradient
    return parts


def work(rank: int, plan: Plan, meeting: Path) -> None:
    """One of the processes that train."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.workers)
    Trainer(plan, rank).run()
    distributed.destroy_process_group()


def prepare_tokenizer(plan: Plan) -> None:
    """Writes a new tokenizer, unless a checkpoint was trained with the one that is there."""
    if not plan.checkpoint.exists():
        tokenizer = train_tokenizer(texts(SEED, TOKENIZER_TEXTS), VOCABULARY)
        save_tokenizer(tokenizer, plan.folder, CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent, help="where the model is written")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo-checkpoint.pt"), help="resumed when it exists")
    parser.add_argument("--tokens", type=float, default=28e6, help="how many to learn from")
    parser.add_argument("--batch", type=int, default=2048, help="tokens per step")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    plan = Plan(**vars(parser.parse_args()))
    prepare_tokenizer(plan)
    with TemporaryDirectory() as folder:
        spawn(work, (plan, Path(folder) / "meeting"), nprocs=plan.workers)


if __name__ == "__main__":
    main()
