"""How likely a prompt is: the log-probability of each of its tokens, read a chunk at a time.

mlx-lm's batch generator throws a prompt's logits away; lm-eval-harness and everybody else who sends `echo` with
`logprobs` wants them. What was read is kept in a cache, so that generation goes on from it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from openai_gateway.worker.sampling import likeliest, listed


class Scoring:
    """Reads one prompt of at least one token, with a model whose logits are float32.

    `logprobs` grows to one entry for each token after the first.
    """

    def __init__(self, model: Any, tokens: list[int], top: int, cache: list[Any]) -> None:
        self.logprobs: list[tuple[float, list[tuple[int, float]]]] = []
        self.cache = cache
        self._model = model
        self._tokens = tokens
        self._top = top

    @property
    def left(self) -> int:
        """Tokens that are not read yet, but for the last one, which nothing needs to follow."""
        return len(self._tokens) - 1 - len(self.logprobs)

    @property
    def nbytes(self) -> int:
        """Of the caches."""
        return sum(layer.nbytes for layer in self.cache)

    def read(self, count: int) -> None:
        """Read `count` more tokens, or those that are left."""
        start = len(self.logprobs)
        if inputs := self._tokens[start : start + min(count, self.left)]:
            logits = self._model(mx.array([inputs]), cache=self.cache)[0]
            targets = mx.array(self._tokens[start + 1 : start + 1 + len(inputs)])
            self.logprobs += listed(*likeliest(logits, targets, self._top))
            mx.eval([c.state for c in self.cache])
