"""The rows that are being answered, and one step for all of them: mlx-lm's BatchGenerator, driven from outside.

`Engine` knows tokens, rows and events; it knows nothing of sockets or templates. Everything here runs on the one
thread that owns the model (mlx arrays that are not evaluated yet belong to the thread that made them).
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from openai_gateway.errors import GatewayError, Unavailable
from openai_gateway.types import Delta, Echo, Event, Failed, Progress, Started, TokenLogprob
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.rows import Live, Row
from openai_gateway.worker.sampling import Penalties, make_sampler, top_logprobs
from openai_gateway.worker.scoring import Scoring

logger = logging.getLogger(__name__)

Out = tuple[int, Event]
"""(request id, event)."""

INTERNAL = GatewayError("The server failed on this request.")
TRY_AGAIN = Unavailable("The model could not go on with this request; please try again.")


class Float32:
    """A model with its logits in float32: 16 bits leave log-probabilities two or three digits."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        return logits.astype(mx.float32)

    def make_cache(self) -> Any:
        """Where mlx-lm asks a model for its caches."""
        return make_prompt_cache(self._model)


class Engine:
    """Answers jobs in one batch. `step` is one pass: admit, compute, report.

    `model` is mlx-lm's; `eos` are the ids that end an answer; `open_text` makes the text path of a choice. At most
    `max_batch` rows decode at once, prefill reads `prefill_step` tokens of a prompt between two decode steps.
    """

    def __init__(
        self,
        model: Any,
        table: TokenTable,
        eos: Iterable[int],
        open_text: Callable[[Job], TextPath[TokenLogprob]],
        *,
        max_batch: int,
        prefill_step: int,
    ) -> None:
        self._model = Float32(model)
        self._table = table
        self._eos = frozenset(eos)
        self._open_text = open_text
        self._max_batch = max_batch
        self._prefill_step = prefill_step
        # Scoring needs logits of every token, not of the last one alone: at most 128 MB of them at a time.
        self._scoring_step = max(1, min(prefill_step, 2**25 // max(1, len(table))))
        self._stream = mx.default_stream(mx.default_device())
        self._waiting: deque[Job] = deque()
        self._scoring: dict[int, tuple[Job, Scoring]] = {}
        self._live: dict[int, Live] = {}
        self._rows: dict[int, Row] = {}
        self._leaving: set[int] = set()
        self._generator = self._fresh()

    def _fresh(self) -> Any:
        return BatchGenerator(
            self._model,
            completion_batch_size=self._max_batch,
            prefill_batch_size=self._max_batch,  # no short prompt waits until long ones are read
            prefill_step_size=self._prefill_step,
            stream=self._stream,
        )

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._scoring or self._rows or self._leaving)

    def submit(self, job: Job) -> list[Out]:
        """Queue a job; answers that it was accepted."""
        self._waiting.append(job)
        return [(job.id, Started(len(job.tokens)))]

    def cancel(self, id: int) -> None:
        """Forget a request, wherever it is: the next step begins with taking its rows out of the batch."""
        self._waiting = deque(job for job in self._waiting if job.id != id)
        self._scoring.pop(id, None)
        if live := self._live.pop(id, None):
            self._leaving |= live.uids
            for uid in live.uids:
                del self._rows[uid]

    def step(self) -> list[Out]:
        """One pass. Whatever goes wrong in it fails the requests concerned; it never raises."""
        out: list[Out] = []
        try:
            self._step(out)
            return out
        except Exception:
            logger.exception("a step failed; every request in it is given up and the generator is rebuilt")
        # Not in the handler: the traceback there keeps the arrays of the failed step in memory.
        out += self._give_up()
        return out

    def _step(self, out: list[Out]) -> None:
        if self._leaving:
            self._generator.remove(self._leaving)
            self._leaving.clear()
        out += self._admit()
        out += self._score()
        self._share_prefill()
        prompts, tokens = self._generator.next() if self._rows else ((), ())
        for response in prompts:
            out += self._prefilled(response)
        out += self._generated(tokens)
        if not self.busy:
            mx.clear_cache()

    def _share_prefill(self) -> None:
        """`prefill_step` is for all prompts together; mlx-lm would read as much of each between two decode steps."""
        reading = sum(row.reading for row in self._rows.values())
        share = max(32, self._prefill_step // max(1, reading))
        self._generator.prefill_step_size = min(share, self._prefill_step)

    def _give_up(self) -> Iterator[Out]:
        for id in [*self._live, *self._scoring]:
            yield id, failed(TRY_AGAIN)
        self._live.clear()
        self._scoring.clear()
        self._rows.clear()
        self._leaving.clear()
        self._generator = self._fresh()
        mx.clear_cache()

    def _alone(self, job: Job, work: Iterator[Out], error: GatewayError) -> Iterator[Out]:
        """Work that concerns one request only, and so fails no other."""
        try:
            yield from work
        except Exception:
            logger.exception("request %d failed in its own part of a step", job.id)
            self.cancel(job.id)
            yield job.id, failed(error)

    # Admission

    def _admit(self) -> Iterator[Out]:
        while self._waiting and self._has_room(self._waiting[0].sampling.n):
            job = self._waiting.popleft()
            yield from self._alone(job, self._begin(job), INTERNAL)

    def _has_room(self, rows: int) -> bool:
        """Whether that many rows fit in; those of a single request always fit into an empty batch."""
        taken = sum(live.size for live in self._live.values())
        taken += sum(job.sampling.n for job, _ in self._scoring.values())
        return not taken or taken + rows <= self._max_batch

    def _begin(self, job: Job) -> Iterator[Out]:
        if job.echo is None:
            yield from self._generate(job)
        elif job.sampling.logprobs is None:
            yield job.id, Echo(job.echo)
            yield from self._generate(job)
        else:
            self._scoring[job.id] = job, Scoring(self._model, job.tokens, job.sampling.logprobs)

    def _score(self) -> Iterator[Out]:
        """Prompts whose own log-probabilities are asked for are read here, one after the other."""
        room = self._scoring_step
        for job, scoring in list(self._scoring.values()):
            if room > 0:
                before = len(scoring.logprobs)
                yield from self._alone(job, self._score_more(job, scoring, room), TRY_AGAIN)
                room -= len(scoring.logprobs) - before

    def _score_more(self, job: Job, scoring: Scoring, room: int) -> Iterator[Out]:
        done = scoring.read(room, self._stream)
        if len(job.tokens) > self._scoring_step:
            yield job.id, Progress(len(scoring.logprobs), len(job.tokens))
        if done:
            del self._scoring[job.id]
            yield job.id, self._echo(job, scoring)
            yield from self._generate(job, scoring)

    def _generate(self, job: Job, scoring: Scoring | None = None) -> Iterator[Out]:
        if job.max_tokens == 0:
            for index in range(job.sampling.n):
                yield job.id, Delta(index, finish="length")
            return
        live = self._live[job.id] = Live(job)
        if scoring is not None and len(job.tokens) > 1:
            self._insert(live, range(job.sampling.n), job.tokens[-1:], scoring.cache, job.tokens[:-1])
        elif job.sampling.n > 1 and len(job.tokens) > 1:
            # The others follow when this one has read the prompt.
            (live.fork,) = self._insert(live, range(1), job.tokens)
        else:
            self._insert(live, range(job.sampling.n), job.tokens)

    def _insert(
        self, live: Live, indices: range, tokens: list[int], cache: Any = None, read: list[int] | None = None
    ) -> list[int]:
        """Rows for these choices. `cache` (copied, lazily) already holds `read`, the tokens before `tokens`."""
        sampling = live.job.sampling
        rows = [Row(live.job, index, self._open_text(live.job)) for index in indices]
        uids: list[int] = self._generator.insert(
            [list(tokens) for _ in rows],
            max_tokens=[live.job.max_tokens] * len(rows),
            caches=None if cache is None else [copy.deepcopy(cache) for _ in rows],
            all_tokens=None if read is None else [list(read) for _ in rows],
            samplers=[make_sampler(sampling, row.index) for row in rows],
            logits_processors=[
                [row.guarded(Penalties(sampling), lambda _, logits: logits)] if Penalties.wanted(sampling) else []
                for row in rows
            ],
            stop_sequences=[
                stops(frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._eos))
            ] * len(rows),
        )  # fmt: skip
        live.uids.update(uids)
        self._rows.update(zip(uids, rows, strict=True))
        return uids

    def _echo(self, job: Job, scoring: Scoring) -> Echo:
        entries = [TokenLogprob(*self._spelled(job.tokens[0]), None)]
        entries += [
            self._entry(token, own, top) for token, (own, top) in zip(job.tokens[1:], scoring.logprobs, strict=True)
        ]
        return Echo(job.echo or "", tuple(entries))

    # Responses

    def _prefilled(self, response: Any) -> Iterator[Out]:
        if (row := self._rows.get(response.uid)) is None:
            return
        row.reading = not response.end_of_prompt
        done, total = response.progress
        if total > self._prefill_step:
            yield row.job.id, Progress(done, total)
        live = self._live[row.job.id]
        if live.fork == response.uid and done == total - 1:
            live.fork = None
            cache, read = self._generator.extract_cache([response.uid])[response.uid]
            self._insert(live, range(1, row.job.sampling.n), row.job.tokens[-1:], cache, read)

    def _generated(self, responses: Iterable[Any]) -> Iterator[Out]:
        responses = list(responses)
        entries = self._entries(responses)
        for response in responses:
            row = self._rows.get(response.uid)
            if row is not None:  # another row of its request may just have failed, and this one with it
                yield from self._alone(row.job, self._advance(row, response, entries.get(response.uid)), INTERNAL)

    def _advance(self, row: Row, response: Any, entry: TokenLogprob | None) -> Iterator[Out]:
        if row.error is not None:
            raise row.error
        rendered, finish = row.read(response.token, response.finish_reason, entry)
        if delta := row.delta(rendered, finish):
            yield row.job.id, delta
        if finish is not None:
            self._end(response.uid, running=response.finish_reason is None)

    def _end(self, uid: int, *, running: bool) -> None:
        if running:
            self._leaving.add(uid)
        id = self._rows.pop(uid).job.id
        live = self._live[id]
        live.uids.discard(uid)
        if not live.uids:
            del self._live[id]

    # Log-probabilities

    def _entries(self, responses: list[Any]) -> dict[int, TokenLogprob]:
        asked = [r for r in responses if self._rows[r.uid].job.sampling.logprobs is not None]
        if not asked:
            return {}
        wanted = [self._rows[r.uid].job.sampling.logprobs or 0 for r in asked]
        found = top_logprobs(mx.stack([r.logprobs for r in asked]), [r.token for r in asked], max(wanted))
        return {
            r.uid: self._entry(r.token, own, top[:k], generated=True)
            for r, k, (own, top) in zip(asked, wanted, found, strict=True)
        }

    def _entry(self, token: int, own: float, top: list[tuple[int, float]], *, generated: bool = False) -> TokenLogprob:
        text, raw = self._spelled(token)
        if generated and self._table.is_special(token):
            raw = b""  # it does not stand in the answer
        return TokenLogprob(text, raw, own, tuple((*self._spelled(id), value) for id, value in top))

    def _spelled(self, token: int) -> tuple[str, bytes]:
        raw = self._table.bytes_of(token)
        return raw.decode("utf-8", "replace"), raw


@lru_cache(maxsize=256)
def stops(ids: frozenset[int]) -> Any:
    """mlx-lm's matcher for tokens that end a row."""
    return StopSequences([(id,) for id in ids])


def failed(error: GatewayError) -> Failed:
    """An error as it crosses the pipe."""
    return Failed(type(error).__name__, error.message, error.param)
