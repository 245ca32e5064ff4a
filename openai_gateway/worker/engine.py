"""What is answered now, what waits, and one step for all of it.

`Engine` knows requests, rows and events; it knows nothing of sockets or templates. Everything here runs on the one
thread that owns the model (mlx arrays that are not evaluated yet belong to the thread that made them).

One step: admit who fits → read a bounded part of the prompts → one decode pass → report. The decode pass is computed
while the tokens of the one before are reported.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx

from openai_gateway.errors import GatewayError, InsufficientMemory, Unavailable
from openai_gateway.types import Delta, Echo, Event, Failed, Progress, Started, Stats, TokenLogprob
from openai_gateway.worker.admission import Admission, Limits, youngest
from openai_gateway.worker.batch import Decoding, Scored
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.fatal import Failures, raise_if_fatal
from openai_gateway.worker.keeping import Keeping
from openai_gateway.worker.model import Cache, Forward
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.prefill import Prefill
from openai_gateway.worker.prefixes import Found, Prefixes
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.reading import Reading, fork
from openai_gateway.worker.rows import Row
from openai_gateway.worker.running import Running
from openai_gateway.worker.scoring import Scoring
from openai_gateway.worker.speculation import Drafter, trimmable
from openai_gateway.worker.spelling import answer_entry, echo

logger = logging.getLogger(__name__)

Out = tuple[int, Event]
"""(request id, event)."""

INTERNAL = GatewayError("The server failed on this request.")
TRY_AGAIN = Unavailable("The model could not go on with this request; please try again.")

FETCHING = 0.03
"""Seconds of a step for reading kept beginnings of prompts from disk, while running answers wait."""
REST = 5.0
"""Seconds without work after which MLX gives back the buffers that it keeps for the next step."""


class Engine:
    """Answers jobs in one batch.

    `model` is mlx-lm's; `eos` are the ids that end an answer; `open_text` makes the text path of a choice. At most
    `limits.max_batch` rows decode at once; between two decode passes a bounded part of the prompts is read. A row that
    runs alone is decoded with guesses by a `drafter` of its own.
    """

    def __init__(
        self,
        model: Any,
        table: TokenTable,
        eos: Iterable[int],
        open_text: Callable[[Job], TextPath[TokenLogprob]],
        *,
        prefixes: Prefixes,
        limits: Limits,
        memory_limit: int = 0,
        batched: bool = True,
        make_cache: Callable[[], Cache],
        drafter: Callable[[], Drafter] | None = None,
    ) -> None:
        self._model = Forward(model)
        self._make_cache = make_cache
        self._table = table
        self._eos = frozenset(eos)
        self._open_text = open_text
        self._limits = limits if batched else replace(limits, max_batch=1)
        self._batched = batched
        self._memory_limit = memory_limit
        # Scoring needs logits of every token, not of the last one alone: at most 128 MB of them at a time.
        self._scoring_step = max(1, min(limits.prefill_step, 2**25 // max(1, len(table))))
        self._prefixes = prefixes
        self._admission = Admission(self._limits, prefixes)
        self._totals: Counter[str] = Counter()
        self._keeping = Keeping(prefixes)
        self._scoring: dict[int, tuple[Reading, Scoring]] = {}
        self._prefill = Prefill(self._model, self._limits, self._keeping, len(table), self._totals)
        # A wrong guess is taken back out of the caches, which a sliding window has no way to do.
        drafter = drafter if trimmable(make_cache()) else None
        self._running = Running(self._limits, self._keeping, drafter, self._totals)
        self._dropped: set[int] = set()
        """Requests that were given up since the last step began."""
        self._stepped_at = 0.0
        self._failures = Failures()

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._admission.waiting or self._scoring or self._prefill.readings or self._running.batches)

    @property
    def stats(self) -> Stats:
        """How it is doing."""
        return Stats(
            rows=len(self._running.rows),
            reading=len(self._prefill.readings) + len(self._scoring),
            waiting=len(self._admission.waiting),
            kv_bytes=self._running.nbytes + self._prefill.nbytes + sum(one.nbytes for _, one in self._scoring.values()),
            prefix_bytes=self._prefixes.nbytes,
            memory_bytes=mx.get_active_memory(),
            memory_limit=self._memory_limit,
            **self._totals,
        )

    def submit(self, job: Job) -> None:
        """Queue a job; the next step reports that it was accepted."""
        n = job.sampling.n
        # Where caches cannot be joined, each choice is read and answered by itself, one after the other.
        parts = [range(n)] if self._batched else [range(index, index + 1) for index in range(n)]
        self._admission.waiting += [Reading(job, job.tokens, choices) for choices in parts]

    def cancel(self, id: int) -> None:
        """Forget a request, wherever it is; what was read and generated is kept for who asks again.

        Raises `DeviceFailed` alone.
        """
        try:
            for reading in self._prefill.readings:
                if reading.job.id == id:
                    self._keeping.part(reading)
            for batch in list(self._running.batches):
                self._running.remove(batch, {row for row in batch.rows if row.job.id == id})
        except Exception as error:
            raise_if_fatal(error)
            logger.exception("what request %d leaves cannot be kept", id)
        self._drop(id)

    def _drop(self, id: int) -> None:
        """Forget a request, and keep nothing of it."""
        self._dropped.add(id)
        self._admission.waiting = [reading for reading in self._admission.waiting if reading.job.id != id]
        self._scoring.pop(id, None)
        self._prefill.drop(id)
        self._running.drop(id)

    def step(self) -> list[Out]:
        """One pass. What goes wrong in it fails the requests concerned, as long as others can be served.

        Raises `DeviceFailed` when they cannot, or when it has looked like that for some steps.
        """
        out: list[Out] = []
        generated = self._totals["generated_tokens"]
        if not self._stepped(out):
            # Not in the handler: the traceback there keeps the arrays of the failed step in memory.
            out += self._give_up()
        self._failures.end_step(fruitful=self._totals["generated_tokens"] > generated)
        return out

    def _stepped(self, out: list[Out]) -> bool:
        try:
            self._step(out)
        except Exception as error:
            self._failures.add(error, of_all=True)
            logger.exception("a step failed; every request in it is given up")
            return False
        return True

    def _step(self, out: list[Out]) -> None:
        self._dropped.clear()
        out += self._admit()
        out += self._score()
        out += self._read()
        out += self._decode()
        self._prefill.arrived()
        self._totals["steps"] += 1
        self._stepped_at = time.monotonic()

    def _give_up(self) -> Iterator[Out]:
        jobs = [row.job.id for row in self._running.rows]
        jobs += [reading.job.id for reading in self._prefill.readings]
        scoring, self._scoring = self._scoring, {}
        self._running.batches.clear()
        self._prefill.readings.clear()
        # With nothing else at work, it is what waits that cannot be taken in, now or ever.
        waiting = [] if jobs or scoring else [reading.job.id for reading in self._admission.waiting]
        for id in dict.fromkeys([*jobs, *scoring, *waiting]):
            self._drop(id)  # other choices of it may still wait
            yield id, failed(TRY_AGAIN)
        mx.clear_cache()

    def _guarded(self, jobs: Iterable[Job], work: Iterator[Out], error: GatewayError) -> Iterator[Out]:
        """Work that concerns these requests only, and so fails no other."""
        try:
            yield from work
            return
        except GatewayError as refusal:
            error = refusal
        except Exception as fault:
            self._failures.add(fault)
            logger.exception("requests %s failed in their own part of a step", [job.id for job in jobs])
        for job in jobs:
            self._drop(job.id)
            yield job.id, failed(error)

    # Admission

    def _admit(self) -> Iterator[Out]:
        for reading in self._admission.refused():
            self._drop(reading.job.id)
            yield reading.job.id, failed(InsufficientMemory.of(reading.width, len(reading.tokens)))
        until = time.monotonic() + FETCHING
        for reading in [reading for reading in self._prefill.readings if not reading.entered]:
            yield from self._guarded([reading.job], self._enter(reading, until), INTERNAL)
        scoring = [reading for reading, _ in self._scoring.values()]
        for reading in self._admission.admit(self._prefill.readings, scoring, self._running.batches):
            yield from self._guarded([reading.job], self._begin(reading, until), INTERNAL)
        for reading in self._admission.waiting:
            if not (reading.announced or reading.rows):
                reading.announced = True
                yield from self._accept(reading, Found(0, None, None), queued=True)

    def _accept(self, reading: Reading, found: Found, *, queued: bool = False) -> Iterator[Out]:
        """Tell it once for all choices, and when it comes from the queue once more."""
        if reading.choices.start == 0:
            yield reading.job.id, Started(len(reading.job.tokens), found.length, found.diverged_at, queued=queued)

    def _begin(self, reading: Reading, until: float) -> Iterator[Out]:
        job = reading.job
        if not job.tokens:
            raise ValueError("a prompt has at least one token")
        if reading.is_first and job.echo is not None and job.sampling.logprobs is not None:
            yield from self._accept(reading, Found(0, None, None))
            self._scoring[job.id] = reading, Scoring(self._model, job.tokens, job.sampling.logprobs, self._make_cache())
            return
        self._prefill.readings.append(reading)
        yield from self._enter(reading, until)

    def _enter(self, reading: Reading, until: float) -> Iterator[Out]:
        """Go on from the kept beginning, if it is in memory by then; else in a later step."""
        job = reading.job
        # A run that is needed once more had no room, or has it no longer: `find` does without.
        while (run := self._prefixes.absent(job.owner, reading.tokens)) and run.end > reading.fetched:
            if time.monotonic() >= until:
                return
            self._prefixes.fetch(run)
            reading.fetched = run.end
        found = self._prefixes.find(job.owner, reading.tokens)
        reading.cache, reading.done, reading.cached = found.cache or self._make_cache(), found.length, found.length
        # One at a time is enough: whoever comes with it is read as fast without.
        forks = self._prefixes.needs_snapshots and not any(other.forks for other in self._prefill.readings)
        common = found.diverged_at or 0
        reading.fork = fork(len(reading.tokens), found.length, common, job.turns) if forks else 0
        self._totals["cached_tokens"] += found.length
        if not reading.rows:
            yield from self._accept(reading, found)
        if reading.is_first and job.echo is not None:
            yield job.id, Echo(job.echo)
        yield from self._open(reading)

    def _open(self, reading: Reading) -> Iterator[Out]:
        """From here on it is read, with what its cache holds already."""
        job = reading.job
        if job.max_tokens == 0:
            self._prefill.readings.remove(reading)
            for index in reading.choices:
                yield job.id, Delta(index, finish="length")
            return
        stops = frozenset(job.sampling.stop_token_ids) | (frozenset() if job.sampling.ignore_eos else self._eos)
        reading.rows = reading.rows or [Row(job, index, self._open_text(job), stops) for index in reading.choices]

    # Prompts whose own log-probabilities are asked for

    def _score(self) -> Iterator[Out]:
        """They are read here, one after the other."""
        room = min(self._scoring_step, self._prefill.room(waited_for=bool(self._running.batches)))
        for reading, scoring in list(self._scoring.values()):
            if room > 0:
                count = min(room, scoring.left)
                yield from self._guarded([reading.job], self._score_more(reading, scoring, count), TRY_AGAIN)
                room -= count

    def _score_more(self, reading: Reading, scoring: Scoring, count: int) -> Iterator[Out]:
        job = reading.job
        done = scoring.done
        with self._prefill.timed(count):
            pieces = list(echo(self._table, job, done, scoring.read(count)))
        if len(job.tokens) > self._scoring_step:
            yield job.id, Progress(scoring.done, len(job.tokens))
        for piece in pieces:
            yield job.id, piece
        if not scoring.left:
            del self._scoring[job.id]
            reading.cache, reading.done = scoring.cache, len(job.tokens) - 1
            self._prefill.readings.append(reading)
            yield from self._open(reading)

    # Reading

    def _read(self) -> Iterator[Out]:
        groups, long, count = self._prefill.due(len(self._running.rows))
        for group in groups:
            yield from self._guarded([reading.job for reading in group], self._finish(group), TRY_AGAIN)
        if long is not None:
            yield from self._guarded([long.job], self._read_part(long, count), TRY_AGAIN)

    def _read_part(self, reading: Reading, count: int) -> Iterator[Out]:
        self._prefill.part(reading, count)
        yield from self._progress(reading)

    def _finish(self, group: list[Reading]) -> Iterator[Out]:
        self._running.join(self._prefill.finish(group))
        for reading in group:
            yield from self._progress(reading)

    def _progress(self, reading: Reading) -> Iterator[Out]:
        if len(reading.tokens) > self._limits.prefill_step:
            yield reading.job.id, Progress(reading.done, len(reading.tokens))

    # Decoding

    def _decode(self) -> Iterator[Out]:
        while self._is_crowded():
            self._put_off(youngest(self._running.batches, self._prefill.readings))
        for batch in list(self._running.batches):
            jobs = list({row.job.id: row.job for row in batch.rows}.values())
            if jobs:  # else all of its rows were choices of a request that failed in another batch
                yield from self._guarded(jobs, self._decode_batch(batch), TRY_AGAIN)

    def _decode_batch(self, batch: Decoding) -> Iterator[Out]:
        ended: set[Row] = set()
        alone = not (self._admission.waiting or self._prefill.readings or self._scoring)
        for row, token, scored in self._running.step(batch, alone=alone):
            if row in ended or row.job.id in self._dropped:  # guessed behind its end; another choice has failed
                continue
            self._totals["generated_tokens"] += 1
            yield from self._guarded([row.job], self._advance(row, token, scored, ended), INTERNAL)
        self._running.remove(batch, ended)

    def _advance(self, row: Row, token: int, scored: Scored | None, ended: set[Row]) -> Iterator[Out]:
        entry = scored and answer_entry(self._table, token, scored, row.job.sampling.logprobs or 0)
        rendered, finish = row.read(token, entry)
        if delta := row.delta(rendered, finish):
            yield row.job.id, delta
        if finish is not None:
            ended.add(row)

    def _is_crowded(self) -> bool:
        """Whether what runs has outgrown the memory; what runs alone fits, or was refused."""
        count = len(self._running.rows) + len(self._prefill.readings)
        readings = [*self._prefill.readings, *(reading for reading, _ in self._scoring.values())]
        return count > 1 and self._limits.size(self._running.batches, readings) > self._limits.room

    def _put_off(self, last: Row | Reading) -> None:
        """Back into the queue, to be read when there is room; a row with all that it has said."""
        logger.info("request %d is put off: what runs has outgrown the memory", last.job.id)
        if isinstance(last, Row):
            for batch in list(self._running.batches):
                self._running.remove(batch, {last})
            last.put_off()
            last = Reading(last.job, list(last.tokens), range(last.index, last.index + 1), [last])
        else:
            self._keeping.part(last)
            self._prefill.readings.remove(last)
            last.leave()
        self._admission.waiting.insert(0, last)

    def settle(self) -> None:
        """To be called after each step, when its events are on their way: keeps the prefixes that it left."""
        self._keeping.settle()

    def idle(self) -> bool:
        """Something useful to do while nothing is asked; whether there is more of it."""
        if time.monotonic() - self._stepped_at > REST:
            mx.clear_cache()
        return not self.busy and self._keeping.idle()


def failed(error: GatewayError) -> Failed:
    """An error as it crosses the pipe."""
    return Failed(type(error).__name__, error.message, error.param)
