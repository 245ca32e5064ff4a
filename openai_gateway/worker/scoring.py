"""How likely a prompt is: the log-probability of each of its tokens, read a chunk at a time.

mlx-lm's batch generator throws a prompt's logits away; lm-eval-harness and everybody else who sends `echo` with
`logprobs` wants them. What was read is kept in a cache, so that generation goes on from it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from openai_gateway.worker.sampling import Likeliest, likeliest, listed


class Scoring:
    """Reads one prompt of at least one token, with a model whose logits are float32."""

    def __init__(self, model: Any, tokens: list[int], top: int, cache: list[Any]) -> None:
        self.cache = cache
        self.done = 0
        """Tokens that are read."""
        self._model = model
        self._tokens = tokens
        self._top = top

    @property
    def left(self) -> int:
        """Tokens that are not read yet, but for the last one, which nothing needs to follow."""
        return len(self._tokens) - 1 - self.done

    @property
    def nbytes(self) -> int:
        """Of the caches."""
        return sum(layer.nbytes for layer in self.cache)

    def read(self, count: int) -> list[tuple[float, Likeliest]]:
        """Read `count` more tokens, or those that are left: how likely is what follows each of them, and what else."""
        start, end = self.done, self.done + min(count, self.left)
        if start == end:
            return []
        logits = self._model(mx.array([self._tokens[start:end]]), cache=self.cache)[0]
        found = listed(*likeliest(logits, mx.array(self._tokens[start + 1 : end + 1]), self._top))
        mx.eval([c.state for c in self.cache])
        self.done = end
        return found
