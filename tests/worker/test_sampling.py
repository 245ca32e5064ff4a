from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_gateway.types import Sampling
from openai_gateway.worker.sampling import Penalties, keep, make_sampler, top_logprobs

# Quarters are exact in a float, so that ties are ties on both sides.
LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=24)
TOP_P = st.one_of(st.sampled_from([0.0, 1e-9, 0.5, 1.0]), st.floats(0, 1))
MIN_P = st.one_of(st.sampled_from([0.0, 1e-300, 0.5, 1.0]), st.floats(0, 1))


def reference(logits: list[float], top_k: int, top_p: float, min_p: float) -> tuple[set[int], set[int]]:
    """The tokens that must be kept and those that may be, where rounding decides; slow and in double precision."""
    kept = set(range(len(logits)))
    maybe = set(kept)
    if 0 < top_k < len(logits):
        edge = sorted(logits, reverse=True)[top_k - 1]
        kept = maybe = {i for i in kept if logits[i] >= edge}
    if top_p < 1:
        total = sum(math.exp(logits[i]) for i in kept)

        def above(i: int) -> float:
            return sum(math.exp(logits[j]) for j in kept if logits[j] > logits[i]) / total

        best = max(logits)
        kept, maybe = (
            {i for i in kept if above(i) < top_p - slack or logits[i] == best} for slack in (1e-5, -1e-5)
        )  # fmt: skip
    if min_p > 0:
        floor = max(logits) + math.log(min_p)
        kept = {i for i in kept if logits[i] >= floor + 1e-4 or logits[i] == max(logits)}
        maybe = {i for i in maybe if logits[i] >= floor - 1e-4}
    return kept, maybe


def kept_by(logits: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    before = np.array(logits, dtype=np.float32)
    after = np.array(keep(mx.array(before[None]), top_k, top_p, min_p))[0]
    assert np.all((after == before) | (after == -math.inf))
    return set(np.flatnonzero(after > -math.inf).tolist())


@settings(max_examples=300, deadline=None)
@given(LOGITS, st.integers(0, 30), TOP_P, MIN_P)
def test_exactly_the_tokens_of_the_definition_are_kept(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    kept, maybe = reference(logits, top_k, top_p, min_p)
    assert kept <= kept_by(logits, top_k, top_p, min_p) <= maybe


@settings(max_examples=50, deadline=None)
@given(st.lists(LOGITS.filter(lambda row: len(row) >= 4).map(lambda row: row[:4]), min_size=1, max_size=5))
def test_rows_of_a_batch_do_not_see_each_other(rows: list[list[float]]) -> None:
    together = np.array(keep(mx.array(rows), 3, 0.8, 0.01))
    for row, kept in zip(rows, together, strict=True):
        assert np.array_equal(np.array(keep(mx.array([row]), 3, 0.8, 0.01))[0], kept)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "expected"),
    [
        (0, 1.0, 0.0, {0, 1, 2, 3}),
        (1, 1.0, 0.0, {3}),
        (2, 1.0, 0.0, {3, 0, 1}),  # two tie for the second place
        (4, 1.0, 0.0, {0, 1, 2, 3}),
        (99, 1.0, 0.0, {0, 1, 2, 3}),
        (0, 0.0, 0.0, {3}),
        (0, 0.49, 0.0, {3}),
        (0, 0.51, 0.0, {3, 0, 1}),
        (0, 0.89, 0.0, {3, 0, 1}),
        (0, 0.91, 0.0, {0, 1, 2, 3}),
        (0, 1.0, 1.0, {3}),
        (0, 1.0, 0.39, {3, 0, 1}),
        (2, 0.55, 0.0, {3}),  # of what top-k leaves
        (2, 0.56, 0.0, {3, 0, 1}),
    ],
)
def test_edges_are_those_of_the_field(top_k: int, top_p: float, min_p: float, expected: set[int]) -> None:
    logits = [math.log(p) for p in (0.2, 0.2, 0.1, 0.5)]
    assert kept_by(logits, top_k, top_p, min_p) == expected


def test_tokens_that_are_ruled_out_stay_out() -> None:
    logits = [0.0, -math.inf, -1.0, -math.inf]
    for arguments in ((3, 1.0, 0.0), (0, 0.9999999, 0.0), (0, 1.0, 1e-300)):
        assert kept_by(logits, *arguments) <= {0, 2}


# Samplers


def test_temperature_nought_is_the_likeliest_token() -> None:
    sampler = make_sampler(Sampling(temperature=0.0, seed=3, top_p=0.1), 0)
    assert sampler(mx.array([[0.1, 0.5, 0.2], [0.9, 0.1, 0.2]])).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-4])
def test_a_temperature_next_to_nought_does_not_leave_the_range_of_a_float(temperature: float) -> None:
    logprobs = mx.array([[-9.0, -0.5, -7.0]] * 50)
    assert make_sampler(Sampling(temperature=temperature), 0)(logprobs).tolist() == [1] * 50


@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}])
def test_tokens_come_as_often_as_they_are_likely(temperature: float | None, limits: dict[str, Any]) -> None:
    count = 20_000
    logprobs = mx.log(mx.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    sampler = make_sampler(Sampling(temperature=temperature, seed=11, **limits), 0)
    tokens = np.array(sampler(mx.broadcast_to(logprobs, (count, 5))))
    weights = np.exp(np.array(logprobs) / (temperature or 1.0))
    limit = (limits.get("top_k", 0), limits.get("top_p", 1.0), limits.get("min_p", 0.0))
    kept = kept_by((np.array(logprobs) / (temperature or 1.0)).tolist(), *limit)
    expected = np.array([weight if i in kept else 0 for i, weight in enumerate(weights)])
    found = np.bincount(tokens, minlength=5) / count
    assert found == pytest.approx(expected / expected.sum(), abs=0.015)


def test_rows_with_equal_parameters_share_a_sampler_and_are_sampled_in_one_call() -> None:
    a = make_sampler(Sampling(temperature=0.7, top_p=0.9, top_k=5), 0)
    assert make_sampler(Sampling(temperature=0.7, top_p=0.9, top_k=5, stop=("x",)), 3) is a
    assert make_sampler(Sampling(temperature=0.7, top_p=0.9, top_k=6), 0) is not a
    assert make_sampler(Sampling(temperature=0.0), 0) is make_sampler(Sampling(temperature=0.0, top_k=3), 1)


def draws(seed: int, index: int, count: int = 30) -> list[int]:
    sampler = make_sampler(Sampling(temperature=1.0, seed=seed), index)
    return [int(sampler(mx.zeros((1, 50)))[0]) for _ in range(count)]


def test_a_seed_gives_the_same_tokens_again_and_another_seed_or_choice_gives_others() -> None:
    variants = [draws(1, 0), draws(1, 1), draws(2, 0), draws(2, 1), draws(2**63 + 1, 0), draws(-1, 0)]
    assert draws(1, 0) == variants[0]
    assert len(set(map(tuple, variants))) == len(variants)
    assert len(set(variants[0])) > 10  # each step has a key of its own


def test_what_others_draw_does_not_move_a_seeded_row() -> None:
    expected = draws(5, 0)
    mx.random.seed(1)
    sampler = make_sampler(Sampling(temperature=1.0, seed=5), 0)
    mixed = []
    for _ in range(30):
        make_sampler(Sampling(temperature=1.0), 0)(mx.zeros((3, 50)))
        mixed.append(int(sampler(mx.zeros((1, 50)))[0]))
    assert mixed == expected


# Bias and penalties


def penalised(sampling: Sampling, generated: list[int], logits: list[float]) -> list[float]:
    """The logits for the token after `generated`, with a prompt of 7, 7 and 1."""
    penalties = Penalties(sampling)
    tokens = [7, 7, 1]
    row = penalties(mx.array(tokens), mx.array([logits]))
    for token in generated:
        tokens.append(token)
        row = penalties(mx.array(tokens), mx.array([logits]))
    result: list[float] = np.array(row)[0].tolist()
    return result


LOGITS_8 = [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0]


def test_frequency_and_presence_follow_the_formula_of_the_api_reference() -> None:
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=1.5)
    assert penalised(sampling, [], LOGITS_8) == LOGITS_8
    after = penalised(sampling, [2, 4, 2, 2], LOGITS_8)
    assert after == pytest.approx([1.0, -1.0, 2.0 - 1.5 - 1.5, -2.0, 3.0 - 0.5 - 1.5, -3.0, 4.0, -4.0])


def test_negative_penalties_encourage() -> None:
    assert penalised(Sampling(frequency_penalty=-2.0), [3, 3], LOGITS_8)[3] == pytest.approx(2.0)


def test_repetition_makes_likely_and_unlikely_tokens_less_likely() -> None:
    after = penalised(Sampling(repetition_penalty=2.0), [4, 5, 5], LOGITS_8)
    assert after == pytest.approx([1.0, -1.0, 2.0, -2.0, 1.5, -6.0, 4.0, -4.0])


def test_bias_is_added_from_the_first_token_on() -> None:
    sampling = Sampling(logit_bias={0: 5.5, 7: -100.0})
    for generated in ([], [0], [0, 7, 7]):
        assert penalised(sampling, generated, LOGITS_8) == pytest.approx([6.5, *LOGITS_8[1:7], -104.0])


def test_bias_and_penalties_add_up() -> None:
    sampling = Sampling(logit_bias={0: 5.0}, presence_penalty=1.0)
    assert penalised(sampling, [0], LOGITS_8)[0] == pytest.approx(5.0)


def test_a_bias_alone_keeps_no_counts() -> None:
    # Nothing would ever evaluate them: they would grow by one array a token until the row ends.
    penalties = Penalties(Sampling(logit_bias={1: 1.0}))
    for length in range(1, 5):
        penalties(mx.zeros((length,), dtype=mx.int32), mx.zeros((1, 8)))
    assert penalties._counts is None


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), False),
        (Sampling(repetition_penalty=1.0), False),
        (Sampling(repetition_penalty=1.1), True),
        (Sampling(frequency_penalty=-0.1), True),
        (Sampling(presence_penalty=0.1), True),
        (Sampling(logit_bias={1: 0.0}), True),
    ],
)
def test_rows_that_ask_for_nothing_are_spared_the_call(sampling: Sampling, wanted: bool) -> None:
    assert Penalties.wanted(sampling) is wanted


# Log-probabilities


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-30, 0, width=32), min_size=6, max_size=6), min_size=1, max_size=4), st.data())
def test_the_likeliest_tokens_are_reported_in_order(rows: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, 8))
    tokens = data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    found = top_logprobs(mx.array(rows), tokens, k)
    for row, token, (own, top) in zip(rows, tokens, found, strict=True):
        assert own == row[token]
        assert [value for _, value in top] == sorted(row, reverse=True)[:k]
        assert all(row[id] == value for id, value in top)
        assert len({id for id, _ in top}) == len(top)
