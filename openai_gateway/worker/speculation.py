"""Guesses at the next tokens of a row that runs alone, for the model to check several of them in one pass.

To check a guess takes longer than a step, more so where a wider pass reads more experts; so both are timed. What the
model says is the same. With a second row it does not pay any more: the passes are shared by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from openai_gateway.worker.model import Cache, Model

LONGEST = 16
"""Most tokens of one guess."""
GRAM = 3
"""Tokens that must stand in the text already for it to be a sign of what follows."""
REST = 32
"""Tokens that are generated without a guess after several attempts came to nothing."""
MOST = 8192
"""Places of a text that are indexed in one call: 5 ms."""
PART = 512
"""Tokens that a draft model reads in one pass."""
PATIENCE = 8
"""Attempts that may come to nothing before that."""
TIMED = 8
"""Of so many steps the quickest tells how long one takes: between two of them a prompt may be kept, or another read."""
SURE = 3
"""Steps that are timed before the first guess."""


def trimmable(caches: Cache) -> bool:
    """Whether the last positions can be taken back out of these caches, as wrong guesses must be."""
    return all(type(cache) in (KVCache, QuantizedKVCache) for cache in caches)


class Drafter(Protocol):
    """Where guesses come from. One for each row."""

    def is_hopeful(self, tokens: Sequence[int]) -> bool:
        """Whether there may be a guess, once the token that follows `tokens` is known."""
        ...

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int] | None:
        """At most `count` tokens that may follow `tokens` and `newest`; `tokens` only grows from call to call.

        None: it has more to read before it can tell.
        """
        ...


class Lookup:
    """What followed when the newest tokens stood in the text before (A. Saxena, "Prompt Lookup Decoding", 2023)."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        """Where each run of `GRAM` tokens ended the last time."""
        self._indexed = GRAM
        self._repeats = False
        """Whether the last run that was indexed had been there before."""

    def is_hopeful(self, tokens: Sequence[int]) -> bool:
        """Costs as much as there are new tokens; a long prompt is indexed over several calls."""
        indexed = min(len(tokens) + 1, self._indexed + MOST)
        for end in range(self._indexed, indexed):
            run = tuple(tokens[end - GRAM : end])
            self._repeats = run in self._ends
            self._ends[run] = end
        self._indexed = max(GRAM, indexed)
        return self._repeats and self._indexed > len(tokens)

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int] | None:
        """Where the newest tokens came up before, what followed them there."""
        self.is_hopeful(tokens)
        if self._indexed <= len(tokens):
            return None
        found = self._ends.get((*tokens[len(tokens) + 1 - GRAM :], newest))
        if found is None:
            return []
        # Where that is so near that the newest token comes within, the text goes round in circles.
        since = [*tokens[found : found + count], newest]
        return [since[place % len(since)] for place in range(count)]


class DraftModel:
    """A smaller model with the same tokens, which says what it finds likeliest.

    Ids from `size` on are unknown to one of the two models: tables of embeddings are padded to different sizes.
    """

    def __init__(self, model: Model, make_cache: Callable[[], Cache], size: int) -> None:
        self._model = model
        self._cache = make_cache()
        self._size = size
        self._read: list[int] = []

    def is_hopeful(self, _: Sequence[int]) -> bool:
        """It always has something to say."""
        return True

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int] | None:
        """Reads on from where the last call left off; what was wrong of the last guess is forgotten first."""
        text = [*tokens, newest]
        same = min(len(self._read), len(tokens))
        while self._read[:same] != text[:same]:
            same -= 1
        for cache in self._cache:
            cache.trim(len(self._read) - same)
        part = text[same : same + PART]
        logits = self._pass(mx.array([part]))
        self._read = text[: same + len(part)]
        if len(self._read) < len(text):
            mx.async_eval([cache.state for cache in self._cache])
            return None
        drafted = [self._likeliest(logits)]
        while len(drafted) < count:
            drafted.append(self._likeliest(self._pass(drafted[-1])))
        ids: Any = mx.concatenate(drafted, axis=1)[0].tolist()
        self._read += ids[:-1]
        return list(ids)

    def _pass(self, tokens: mx.array) -> mx.array:
        return self._model(mx.minimum(tokens, self._size - 1), cache=self._cache)

    def _likeliest(self, logits: mx.array) -> mx.array:
        """[1, 1], from logits [1, T, V]."""
        return mx.argmax(logits[:, -1:, : self._size], axis=-1)


class Speculation:
    """How much to guess: more after guesses that came true, not at all for a while after those that did not pay.

    A guess pays where single steps would have taken longer to say as much. It needs the newest token on the host, so
    that nothing is computed while that is read: to try costs as well, and is left alone in text that is all new.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._length = 4
        self._failures = 0
        self._rest = 0
        self._steps: deque[float] = deque(maxlen=TIMED)
        """Seconds that the last ones took."""
        self._stepped: float | None = None
        """When the last one had ended."""

    def due(self, tokens: Sequence[int]) -> bool:
        """Whether to guess what follows. Called once for each token, as a rest is measured in those."""
        self._rest = max(0, self._rest - 1)
        return len(self._steps) >= SURE and self._rest == 0 and self._drafter.is_hopeful(tokens)

    def stepped(self, now: float) -> None:
        """Tell it when a step has ended, in seconds; those are what a guess has to be better than."""
        if self._stepped is not None:
            self._steps.append(now - self._stepped)
        self._stepped = now

    def draft(self, tokens: Sequence[int], newest: int, most: int) -> list[int]:
        """The next guess, of at most `most` tokens; none when there is nothing to go by."""
        if most <= 0:
            return []
        drafted = self._drafter.draft(tokens, newest, min(self._length, most))
        if drafted is None:
            self._stepped = None  # the device reads for the drafter beside the next step
        elif not drafted:
            self._fail()
        return drafted or []

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """Tell it what came of its last guess, and how long that took, from the drafting on."""
        self._stepped = None  # the step behind this one has nothing to wait for
        if not accepted or (self._steps and seconds >= (accepted + 1) * min(self._steps)):
            self._fail()
            self._length = max(1, self._length // 2)
            return
        self._failures = 0
        self._length = min(LONGEST, self._length * 2) if accepted == drafted else max(2, accepted)

    def _fail(self) -> None:
        self._failures += 1
        if self._failures >= PATIENCE:
            self._failures, self._rest = 0, REST
