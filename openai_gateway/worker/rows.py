"""What the engine knows of each choice that it generates, and of each request that has such rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

from openai_gateway.types import Delta, FinishReason, TokenLogprob
from openai_gateway.worker.parse import Rendered, TextPath
from openai_gateway.worker.prompt import Job


@dataclass(slots=True)
class Row:
    """One choice that is being generated."""

    job: Job
    index: int
    text: TextPath[TokenLogprob]
    tokens: int = 0
    """Generated and not reported yet: text that is held back holds its count back as well."""
    reasoning_tokens: int = 0
    reading: bool = True
    """Its prompt is not read yet."""
    error: Exception | None = None

    def guarded(self, call: Callable[..., mx.array], fallback: Callable[..., mx.array]) -> Callable[..., mx.array]:
        """`call`, so that what it raises fails this row and not the batch."""

        def guard(*arrays: mx.array) -> mx.array:
            try:
                return call(*arrays)
            except Exception as error:
                self.error = error
                return fallback(*arrays)

        return guard

    def read(
        self, token: int, ended: FinishReason | None, entry: TokenLogprob | None
    ) -> tuple[Rendered[TokenLogprob], FinishReason | None]:
        """The text of the next token, and why it is the last one. `ended` is why the generator has ended the row."""
        self.tokens += 1
        if ended == "stop":  # the token is the end marker itself, which is no text
            rendered = self.text.finish()
            if entry is not None and not self.job.chat:
                rendered.entries.append(entry)
            return rendered, ended
        rendered = self.text.push(token, entry)
        self.reasoning_tokens += rendered.reasoning_token
        if ended == "length" and not rendered.stopped:
            rendered = joined(rendered, self.text.finish())
        return rendered, "stop" if rendered.stopped else ended

    def delta(self, rendered: Rendered[TokenLogprob], finish: FinishReason | None) -> Delta | None:
        """What to report now; None while all of it is held back."""
        if not (rendered.content or rendered.reasoning or rendered.entries or finish):
            return None
        delta = Delta(
            self.index,
            rendered.content,
            rendered.reasoning,
            tuple(rendered.entries),
            self.tokens,
            self.reasoning_tokens,
            finish,
        )
        self.tokens = self.reasoning_tokens = 0
        return delta


@dataclass(slots=True)
class Live:
    """A request with rows in the generator. `fork` is the row whose prefill the others wait for."""

    job: Job
    uids: set[int] = field(default_factory=set)
    fork: int | None = None

    @property
    def size(self) -> int:
        """Rows that it has or is going to have."""
        return len(self.uids) if self.fork is None else self.job.sampling.n


def joined(a: Rendered[TokenLogprob], b: Rendered[TokenLogprob]) -> Rendered[TokenLogprob]:
    """Two pieces of one row, one after the other."""
    return Rendered(
        a.content + b.content,
        a.reasoning + b.reasoning,
        [*a.entries, *b.entries],
        a.reasoning_token,
        a.stopped or b.stopped,
    )
