"""An engine on a tiny model, driven step by step, with all that comes out of it; and what it should say."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from openai_gateway.types import Delta, Event, Failed, Sampling, Started, TokenLogprob
from openai_gateway.worker.admission import Limits
from openai_gateway.worker.channels import PlainChannels
from openai_gateway.worker.engine import Engine
from openai_gateway.worker.guide import Form
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.memory import Footprint
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.speculation import Drafter
from openai_gateway.worker.spill import Spill
from tests.worker import tiny

SHAPES = {
    "llama": tiny.LLAMA,
    "qwen3": tiny.QWEN3,
    "moe": tiny.QWEN3_MOE,
    "gpt_oss": tiny.GPT_OSS,
    "recurrent": tiny.QWEN3_NEXT,
}
STATES = {"jamba": tiny.JAMBA, "rwkv7": tiny.RWKV7}
"""Models whose recurrent layers take padding into their state."""
DEMO = Path(__file__).parent.parent.parent / "openai_gateway" / "demo"
MEGABYTES = 1 << 24
"""Room for more prefixes than any test keeps."""


class Calls:
    """A model that remembers how many tokens [rows, columns] it was given, and fails when it is told to."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.failures = 0
        self.failure: Exception = RuntimeError("out of memory")
        self._model = model

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.shapes.append((tokens.shape[0], tokens.shape[1]))
        if self.failures:
            self.failures -= 1
            raise self.failure
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def make_cache(self) -> Any:
        return make_prompt_cache(self._model)


class Recorded(TextPath[Any]):
    """A text path that remembers its tokens."""

    tokens: list[int]

    def push(self, token: int, entry: Any = None) -> Any:
        self.tokens.append(token)
        return super().push(token, entry)


class Session:
    """An engine with what came out of it."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_batch: int = 16,
        prefill_step: int = 64,
        max_stall: float = math.inf,
        max_silence: float = math.inf,
        prefix_bytes: int = 0,
        shared: bool = False,
        spill: Spill | None = None,
        batched: bool | None = None,
        room: int = 1 << 62,
        reserve: int = 1 << 62,
        drafter: Callable[[], Drafter] | None = None,
        drafting: Footprint = Footprint(per_token=0),  # noqa: B008, a frozen value
    ) -> None:
        """How fast this machine is must not decide what a test sees, so reading takes no time unless a bound is given.

        A bound of 0 makes parts as small as they get, whatever the machine.
        """
        self.model = Calls(loaded.model)
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.paths: dict[int, list[Recorded]] = defaultdict(list)
        self.steps = 0
        self._table = loaded.prompts.table
        self.engine = Engine(
            self.model,
            self._table,
            loaded.prompts.tokenizer.eos_token_ids,
            self._open_text,
            prefixes=Prefixes(loaded.make_cache, capacity=prefix_bytes, shared=shared, spill=spill),
            limits=Limits(
                max_batch,
                prefill_step,
                max_stall,
                max_silence,
                room=room,
                reserve=reserve,
                footprint=loaded.footprint,
                drafting=drafting,
            ),
            batched=loaded.batched if batched is None else batched,
            make_cache=loaded.make_cache,
            drafter=drafter,
        )

    def _open_text(self, job: Job) -> TextPath[Any]:
        path = Recorded(
            PlainChannels(self._table.stream(trim_leading_space=False)), job.sampling.stop, table=self._table
        )
        path.tokens = []
        self.paths[job.id].append(path)
        return path

    def submit(
        self,
        id: int,
        tokens: list[int],
        max_tokens: int = 8,
        *,
        echo: str | None = None,
        form: Form | None = None,
        owner: str = "",
        priority: int = 0,
        **sampling: Any,
    ) -> None:
        settings = {"temperature": 0.0, "ignore_eos": True} | sampling
        job = Job(id, tokens, Sampling(**settings), max_tokens, chat=False, echo=echo, owner=owner, priority=priority)
        job.form = form
        self.engine.submit(job)

    def step(self) -> None:
        self.steps += 1
        assert self.steps < 5000
        self._take(self.engine.step())
        self.engine.settle()

    def run(self) -> None:
        while self.engine.busy:
            self.step()

    def until(self, reached: Callable[[], object]) -> None:
        """Steps until something is so; it must become so while there is work."""
        while not reached():
            assert self.engine.busy
            self.step()

    def ask(self, tokens: list[int], max_tokens: int = 8, **settings: Any) -> list[int]:
        """The answer to a request that is served to its end now, alone if nothing else was submitted."""
        id = max(self.events, default=-1) + 1
        self.submit(id, tokens, max_tokens, **settings)
        self.run()
        return self.generated(id)

    def _take(self, out: list[tuple[int, Event]]) -> None:
        for id, event in out:
            self.events[id].append(event)

    def deltas(self, id: int, index: int = 0) -> list[Delta]:
        return [e for e in self.events[id] if isinstance(e, Delta) and e.index == index]

    def text(self, id: int, index: int = 0) -> str:
        return "".join(delta.content for delta in self.deltas(id, index))

    def finish(self, id: int, index: int = 0) -> str | None:
        deltas = self.deltas(id, index)
        return deltas[-1].finish if deltas else None

    def entries(self, id: int, index: int = 0) -> list[TokenLogprob]:
        return [entry for delta in self.deltas(id, index) for entry in delta.logprobs]

    def generated(self, id: int, index: int = 0) -> list[int]:
        return self.paths[id][index].tokens

    def started(self, id: int) -> list[Started]:
        return [event for event in self.events[id] if isinstance(event, Started)]

    def errors(self, id: int) -> list[str]:
        return [event.error for event in self.events[id] if isinstance(event, Failed)]

    def read(self) -> int:
        """Tokens that were given to the model since this was asked last, those of padding included."""
        tokens = sum(rows * columns for rows, columns in self.model.shapes)
        self.model.shapes.clear()
        return tokens

    @property
    def stopped_at(self) -> int:
        """Tokens that are read of the prompt that is being read, if there is one."""
        return next((reading.done for reading in self.engine._prefill.readings), 0)

    @property
    def rows(self) -> int:
        """Rows of the requests that the engine works on."""
        engine = self.engine
        return len(engine._running.rows) + sum(len(reading.rows) for reading in engine._prefill.readings)

    @property
    def ids(self) -> set[int]:
        """The requests that it works on."""
        engine = self.engine
        return {row.job.id for row in engine._running.rows} | {one.job.id for one in engine._prefill.readings}


def alone(
    loaded: Loaded, tokens: list[int], max_tokens: int = 8, *, prefill_step: int = 64, **sampling: Any
) -> list[int]:
    """The tokens that a row gets which has the engine for itself."""
    session = Session(loaded, prefill_step=prefill_step)
    session.submit(0, tokens, max_tokens, **sampling)
    session.run()
    return session.generated(0)


def log_softmax(loaded: Loaded, tokens: list[int]) -> Any:
    """Log-probabilities after each token, computed in one call without any cache: [T, V]."""
    logits = np.array(loaded.model(mx.array([tokens]))[0].astype(mx.float32)).astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def greedy(loaded: Loaded, tokens: list[int], count: int) -> list[int]:
    """The likeliest tokens, each from the whole text before it: what a model says without engine, batch or cache."""
    text = list(tokens)
    for _ in range(count):
        text.append(int(log_softmax(loaded, text)[-1].argmax()))
    return text[len(tokens) :]


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(1000 * length + seed).choices(range(256), k=length)


def token_of(loaded: Loaded, byte: bytes) -> int:
    """The id that stands for a single byte."""
    return next(id for id in range(256) if loaded.prompts.table.bytes_of(id) == byte)
