"""What the engine knows of each choice that it generates."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from openai_gateway.types import Delta, FinishReason, TokenLogprob
from openai_gateway.worker.guide import Allowed, Guide
from openai_gateway.worker.parse import Rendered, TextPath
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.sampling import Penalties, Shape, base_key, shape_of
from openai_gateway.worker.speculation import Speculation


@dataclass(slots=True, eq=False)
class Row:
    """One choice that is being generated."""

    job: Job
    index: int
    text: TextPath[TokenLogprob]
    stops: frozenset[int]
    """Ids that end it."""
    shape: Shape | None = field(init=False)
    key: int = field(init=False)
    penalties: Penalties | None = field(init=False)
    guide: Guide | None = field(init=False)
    tokens: list[int] = field(init=False)
    """The prompt, and what was generated and reported."""
    stored: int = 0
    """How many of them the caches of its batch hold."""
    kept: int = 0
    """How many of them the prefix cache has, as far as is known."""
    sampled: int = 0
    """Tokens chosen for it: those reported, and one that is not read from the device yet, if it is being computed."""
    unreported: int = 0
    """Tokens of text that is held back: their count is held back as well."""
    reasoning_tokens: int = 0
    guesses: Speculation | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        sampling = self.job.sampling
        self.shape = shape_of(sampling)
        self.key = base_key(sampling.seed, self.index)
        self.penalties = Penalties(sampling) if Penalties.wanted(sampling) else None
        self.guide = self.job.form.guide(self.stops) if self.job.form is not None else None
        self.tokens = list(self.job.tokens)

    @property
    def generated(self) -> int:
        """Tokens that were generated and reported."""
        return len(self.tokens) - len(self.job.tokens)

    @property
    def complete(self) -> bool:
        """Whether it has as many tokens as it may have, the unread one included."""
        return self.sampled >= self.job.max_tokens

    @property
    def guided(self) -> bool:
        """Whether its guide is to be asked for its next token, which follows one that it may not know yet."""
        return self.guide is not None and self.error is None and not self.complete and self.guide.due()

    def tell(self, token: int) -> None:
        """Tells its guide the next token; what that raises fails this row and not the batch."""
        try:
            if self.guide is not None and self.error is None:
                self.guide.tell(token)
        except Exception as error:
            self.error = error

    def allowed(self, size: int) -> Allowed | None:
        """Which of `size` tokens may come next; None for any. What is raised fails this row and not the batch."""
        try:
            return self.guide.allowed(size) if self.guide is not None else None
        except Exception as error:
            self.error = error
            return None

    def put_off(self) -> None:
        """Its caches are gone, and what was being computed: that is to be chosen once more, in the same way."""
        self.sampled = self.generated
        self.penalties = Penalties(self.job.sampling) if self.penalties is not None else None

    def penalised(self, newest: mx.array | None, logits: mx.array) -> mx.array:
        """Logits [1, V] with its penalties, so that what they raise fails this row and not the batch; `newest` [1] is
        None where its prompt was read, and all that it had said before."""
        if newest is None and self.generated:
            newest = mx.array(self.tokens[len(self.job.tokens) :])
        try:
            return self.penalties(newest, logits) if self.penalties is not None else logits
        except Exception as error:
            self.error = error
            return logits

    def read(self, token: int, entry: TokenLogprob | None) -> tuple[Rendered[TokenLogprob], FinishReason | None]:
        """The text of the next token, and why it is the last one. Raises what the row failed with."""
        if self.error is not None:
            raise self.error
        self.tokens.append(token)
        self.unreported += 1
        if token in self.stops:  # the end marker itself is no text
            rendered = self.text.finish()
            if entry is not None and not self.job.chat:
                rendered.entries.append(entry)
            return rendered, self._ended
        rendered = self.text.push(token, entry)
        self.reasoning_tokens += rendered.reasoning_token
        if rendered.stopped:
            return rendered, self._ended
        if self.guide is not None and self.guide.over:
            return joined(rendered, self.text.finish()), self._ended
        if self.generated < self.job.max_tokens:
            return rendered, None
        rendered = joined(rendered, self.text.finish(cut=True))
        return rendered, self._ended if rendered.stopped else "length"

    @property
    def _ended(self) -> FinishReason:
        """Why it ended, where the model was not cut short."""
        return "tool_calls" if self.text.calls else "stop"

    def delta(self, rendered: Rendered[TokenLogprob], finish: FinishReason | None) -> Delta | None:
        """What to report now; None while all of it is held back."""
        if not (rendered.content or rendered.reasoning or rendered.entries or rendered.calls or finish):
            return None
        delta = Delta(
            self.index,
            rendered.content,
            rendered.reasoning,
            tuple(rendered.entries),
            self.unreported,
            self.reasoning_tokens,
            finish,
            rendered.calls,
        )
        self.unreported = self.reasoning_tokens = 0
        return delta


def joined(a: Rendered[TokenLogprob], b: Rendered[TokenLogprob]) -> Rendered[TokenLogprob]:
    """Two pieces of one row, one after the other."""
    return Rendered(
        a.content + b.content,
        a.reasoning + b.reasoning,
        [*a.entries, *b.entries],
        a.reasoning_token,
        a.stopped or b.stopped,
        a.calls + b.calls,
    )
