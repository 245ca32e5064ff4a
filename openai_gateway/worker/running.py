"""The rows that decode, and one step for a batch of them: with guesses where a row has the engine for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic

from openai_gateway.worker.admission import Limits
from openai_gateway.worker.batch import Decoding, Scored
from openai_gateway.worker.keeping import Keeping
from openai_gateway.worker.rows import Row
from openai_gateway.worker.speculation import LONGEST, Drafter, Speculation


class Running:
    """Rows in one batch, or in as few as their lengths allow.

    A row that runs alone is decoded with guesses by a `drafter` of its own; `totals` are the engine's.
    """

    def __init__(
        self, limits: Limits, keeping: Keeping, drafter: Callable[[], Drafter] | None, totals: Counter[str]
    ) -> None:
        self.batches: list[Decoding] = []
        self._limits = limits
        self._keeping = keeping
        self._drafter = drafter
        self._totals = totals

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return [row for batch in self.batches for row in batch.rows]

    @property
    def nbytes(self) -> int:
        """Of the caches."""
        return sum(batch.nbytes for batch in self.batches)

    def join(self, newcomers: Decoding) -> None:
        """Takes rows in; their batch is of no use any more. Nobody runs alone then, so nobody needs a drafter."""
        for row in self.rows:
            row.guesses = None
        batch = self._limits.place(self.batches, len(newcomers.rows), newcomers.longest)
        if batch is None:
            self.batches.append(newcomers)
        else:
            batch.extend(newcomers)

    def step(self, batch: Decoding, *, alone: bool) -> list[tuple[Row, int, Scored | None]]:
        """The next token of each row of a batch, or the next ones of a row that has the engine for itself (`alone`)."""
        guesses = self._guesses(batch) if alone and len(self.batches) == len(batch.rows) == 1 else None
        if guesses is None:
            return batch.step()
        (row,) = batch.rows
        if guesses.due(row.tokens) and (guessed := self._guessed(row, guesses, batch)):
            return guessed
        said = batch.step()
        guesses.stepped(monotonic())
        return said

    def remove(self, batch: Decoding, rows: set[Row]) -> None:
        """Takes rows out of a batch, and keeps what its caches know of them."""
        for row in rows & set(batch.rows):
            self._keeping.row(row, batch)
        batch.remove(rows)
        self._sweep()

    def drop(self, id: int) -> None:
        """Forgets the rows of a request, and keeps nothing of them."""
        for batch in self.batches:
            batch.remove({row for row in batch.rows if row.job.id == id})
        self._sweep()

    def _sweep(self) -> None:
        self.batches[:] = [batch for batch in self.batches if batch.rows]

    def _guesses(self, batch: Decoding) -> Speculation | None:
        """Those of a row alone; None if it can have none."""
        (row,) = batch.rows
        if self._drafter is None or row.penalties or row.job.sampling.logprobs is not None:
            return None
        if row.guide is not None and row.guide.due(LONGEST + 1):
            return None
        if not self._limits.drafts(batch):
            row.guesses = None
            return None
        row.guesses = row.guesses or Speculation(self._drafter())
        return row.guesses

    def _guessed(self, row: Row, guesses: Speculation, batch: Decoding) -> list[tuple[Row, int, Scored | None]]:
        """The newest tokens of a row where there was a guess at them; none where there was not."""
        newest = batch.pending
        begun = monotonic()
        drafted = guesses.draft(row.tokens, newest, row.job.max_tokens - row.sampled)
        if not drafted:
            return []
        tokens = batch.leap(drafted)
        guesses.learn(len(drafted), len(tokens) - 1, monotonic() - begun)
        self._totals["drafted_tokens"] += len(drafted)
        self._totals["accepted_tokens"] += len(tokens) - 1
        return [(row, token, None) for token in tokens]
