from __future__ import annotations

from itertools import chain

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from openai_gateway.worker.scoring import Scoring
from tests.worker import tiny

TOKENS = [5, 200, 7, 7, 31, 90, 14, 3, 3, 120, 61, 77, 8, 250, 9, 9, 9, 40, 41, 42]


@pytest.fixture(scope="module", params=["LLAMA", "GPT_OSS"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny.build(getattr(tiny, request.param) | {"vocab_size": 256})


def expected(model: nn.Module, tokens: list[int]) -> np.ndarray:
    logits = np.array(model(mx.array([tokens]))[0]).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize("chunk", [1, 3, 16, 19, 500])
def test_a_prompt_is_scored_the_same_in_chunks_of_any_size(model: nn.Module, chunk: int) -> None:
    scoring = Scoring(model, TOKENS, 3, make_prompt_cache(model))
    reads = []
    while scoring.left:
        reads.append(scoring.read(chunk))
    assert len(reads) == -(-(len(TOKENS) - 1) // chunk)
    rows = expected(model, TOKENS)
    for token, row, (own, top) in zip(TOKENS[1:], rows[:-1], chain(*reads), strict=True):
        assert own == pytest.approx(row[token], abs=1e-4)
        assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)
        assert [row[id] for id, _ in top] == pytest.approx([value for _, value in top], abs=1e-4)


def test_the_cache_goes_on_where_the_last_token_comes(model: nn.Module) -> None:
    scoring = Scoring(model, TOKENS, 0, make_prompt_cache(model))
    while scoring.left:
        scoring.read(6)
    logits = model(mx.array([TOKENS[-1:]]), cache=scoring.cache)[0, -1]
    assert np.allclose(np.array(logits), np.array(model(mx.array([TOKENS]))[0, -1]), atol=1e-3)


def test_a_prompt_of_one_token_needs_no_model() -> None:
    scoring = Scoring(None, [65], 5, [])
    assert scoring.left == 0
    assert scoring.read(0) == []
