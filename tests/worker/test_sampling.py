from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_gateway.types import Sampling
from openai_gateway.worker.sampling import (
    BLOCK,
    Penalties,
    Shape,
    base_key,
    best,
    cut,
    draw,
    greedy,
    keys_at,
    likeliest,
    listed,
    shape_of,
)

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


def kept_by(logits: list[float], top_p: float, min_p: float) -> set[int]:
    """What `cut` leaves of logits in any order."""
    order = np.argsort(-np.array(logits), kind="stable")
    before = np.array(logits, dtype=np.float32)[order]
    after = np.array(cut(mx.array(before[None]), top_p, min_p))[0]
    assert np.all((after == before) | (after == -math.inf))
    return {int(order[place]) for place in np.flatnonzero(after > -math.inf)}


def keys(count: int, seed: int = 1) -> mx.array:
    return keys_at([base_key(seed, 0)] * count, range(count))


def drawn(logits: list[float] | np.ndarray, shape: Shape, count: int, seed: int = 1) -> np.ndarray:
    """`count` draws from the same logits."""
    rows = mx.broadcast_to(mx.array(np.array(logits, dtype=np.float32)), (count, len(logits)))
    return np.array(draw(rows, shape, keys(count, seed)))


def spread(size: int, seed: int = 3, width: float = 2.0) -> np.ndarray:
    """Logits of a made-up vocabulary, a tenth of it ruled out and some of it tied."""
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(scale=width, size=size) * 4) / 4
    logits[random.choice(size, size // 10, replace=False)] = -math.inf
    return logits.astype(np.float32)


LARGE = 33 * BLOCK  # of those that are not sorted
SHAPES = [
    Shape(1.0, 0, 1.0, 0.0),
    Shape(0.7, 0, 1.0, 0.0),
    Shape(1.3, 0, 0.9, 0.0),
    Shape(1.0, 0, 0.5, 0.0),
    Shape(1.0, 0, 0.05, 0.0),
    Shape(1.0, 0, 1.0, 0.05),
    Shape(1.0, 0, 0.9, 0.2),
    Shape(1.0, 0, 0.3, 0.01),
    Shape(1.0, 5, 1.0, 0.0),
    Shape(2.0, 16, 0.8, 0.1),
    Shape(1.0, 400, 0.9, 0.0),
]


# What is kept


@settings(max_examples=300, deadline=None)
@given(LOGITS, TOP_P, MIN_P)
def test_exactly_the_tokens_of_the_definition_are_kept(logits: list[float], top_p: float, min_p: float) -> None:
    kept, maybe = reference(logits, 0, top_p, min_p)
    assert kept <= kept_by(logits, top_p, min_p) <= maybe


@pytest.mark.parametrize(
    ("top_p", "min_p", "expected"),
    [
        (1.0, 0.0, {0, 1, 2, 3}),
        (0.0, 0.0, {3}),
        (0.49, 0.0, {3}),
        (0.51, 0.0, {3, 0, 1}),  # two tie at the edge
        (0.89, 0.0, {3, 0, 1}),
        (0.91, 0.0, {0, 1, 2, 3}),
        (1.0, 1.0, {3}),
        (1.0, 0.39, {3, 0, 1}),
    ],
)
def test_edges_are_those_of_the_field(top_p: float, min_p: float, expected: set[int]) -> None:
    assert kept_by([math.log(p) for p in (0.2, 0.2, 0.1, 0.5)], top_p, min_p) == expected


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.integers(0, 30), TOP_P, MIN_P)
def test_only_tokens_of_the_definition_are_drawn(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    _, maybe = reference(logits, top_k, top_p, min_p)
    found = set(drawn(logits, Shape(1.0, top_k, top_p, min_p), 40).tolist())
    assert found <= maybe
    if 0 < top_k < len(logits):
        assert len(found) <= top_k


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([BLOCK * 20, BLOCK * 20 + 1, BLOCK * 17 - 1]),
    st.sampled_from([0.1, 1.0, 6.0]),
    st.sampled_from([0.2, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.001, 0.3, 1.0]),
)
def test_only_tokens_of_the_definition_are_drawn_from_a_large_vocabulary(
    seed: int, size: int, width: float, top_p: float, min_p: float
) -> None:
    logits = spread(size, seed, width)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    above = np.array([probabilities[probabilities > p].sum() for p in probabilities])
    maybe = (above < top_p + 1e-5) & (probabilities >= min_p * probabilities.max() * (1 - 1e-4)) & (probabilities > 0)
    assert maybe[drawn(logits, Shape(1.0, 0, top_p, min_p), 60, seed)].all()


def test_tokens_that_are_ruled_out_stay_out() -> None:
    for size in (3, 300, LARGE):
        logits = np.full(size, -math.inf)
        logits[[0, size - 1]] = 0.0
        for shape in SHAPES:
            assert set(drawn(logits, shape, 60).tolist()) == {0, size - 1}


def test_the_only_token_is_drawn() -> None:
    for shape in SHAPES:
        assert drawn([-7.0], shape, 3).tolist() == [0, 0, 0]


# How often


def weights_of(logits: np.ndarray, shape: Shape) -> np.ndarray:
    """The distribution that tokens are drawn from, by sorting and in double precision; no token lies on an edge."""
    scaled = logits.astype(np.float64) / shape.temperature
    weights = np.exp(scaled - scaled.max())
    if 0 < shape.top_k < len(weights):
        weights[weights < np.sort(weights)[-shape.top_k]] = 0
    above = np.array([weights[weights > weight].sum() for weight in weights]) / weights.sum()
    weights = np.where((above < shape.top_p) & (weights >= shape.min_p), weights, 0)
    return weights / weights.sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [5, 300, LARGE, LARGE + 7])
def test_tokens_come_as_often_as_they_are_likely(size: int, shape: Shape) -> None:
    logits = np.random.default_rng(size).normal(scale=2.0, size=size).astype(np.float32)
    expected = weights_of(logits, shape)
    count = 4000
    found = np.bincount(drawn(logits, shape, count, seed=5), minlength=size)
    assert not found[expected == 0].any()
    # Tokens are put into groups of about a tenth, the likely ones and the others apart, for a chi-square: with nine
    # degrees of freedom a right distribution exceeds 40 once in a hundred thousand times, and the seed is fixed.
    order = np.argsort(-expected)
    group = np.minimum((np.cumsum(expected[order]) - expected[order] / 2) * 10, 9).astype(int)
    wanted = np.bincount(group, weights=expected[order], minlength=10) * count
    had = np.bincount(group, weights=found[order], minlength=10)
    filled = wanted > 0
    assert (((had - wanted)[filled] ** 2) / wanted[filled]).sum() < 40


def test_a_flat_distribution_is_drawn_from_end_to_end() -> None:
    tokens = drawn(np.zeros(LARGE), Shape(1.0, 0, 0.9, 0.0), 3000)  # all tie, so all are kept
    parts = np.bincount(tokens * 6 // LARGE, minlength=6)
    assert parts == pytest.approx(500, abs=110)


# Whose randomness


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [5, 300, LARGE, LARGE + 7])
def test_a_row_draws_the_same_alone_and_in_any_batch(size: int, shape: Shape) -> None:
    rows = mx.array(np.stack([spread(size, seed) for seed in range(8)]))
    bases = [base_key(seed, 0) for seed in range(8)]
    positions = [3, 0, 7, 7, 1, 2**20, 5, 4]
    together = draw(rows, shape, keys_at(bases, positions)).tolist()
    alone = [draw(rows[i : i + 1], shape, keys_at(bases[i : i + 1], positions[i : i + 1])).item() for i in range(8)]
    assert together == alone
    assert draw(rows[5:1:-1], shape, keys_at(bases[5:1:-1], positions[5:1:-1])).tolist() == alone[5:1:-1]


def test_a_batch_of_rows_is_drawn_as_uint32() -> None:
    for size in (5, LARGE):
        for shape in SHAPES:
            tokens = draw(mx.zeros((2, size)), shape, keys(2))
            assert (tokens.shape, tokens.dtype) == ((2,), mx.uint32)


def test_keys_differ_by_seed_choice_and_position_and_come_out_the_same_again() -> None:
    seeds = [0, 1, 2, -1, 2**63 + 1]
    bases = {(seed, index): base_key(seed, index) for seed in seeds for index in range(4)}
    found = {tuple(key) for base in bases.values() for key in np.array(keys_at([base] * 50, range(50)))}
    assert len(found) == len(seeds) * 4 * 50
    assert all(base_key(seed, index) == base for (seed, index), base in bases.items())
    assert keys_at(list(bases.values()), [9] * 20).tolist() == [
        keys_at([base], [9])[0].tolist() for base in bases.values()
    ]


def test_without_a_seed_no_two_rows_are_alike() -> None:
    assert len({base_key(None, 0) for _ in range(100)}) == 100


def test_neighbouring_keys_draw_unrelated_tokens() -> None:
    logits = np.zeros(64)
    by_position = drawn(logits, SHAPES[0], 6400)
    by_seed = np.array(
        draw(mx.zeros((6400, 64)), SHAPES[0], keys_at([base_key(seed, 0) for seed in range(6400)], [0] * 6400))
    )
    for tokens in (by_position, by_seed):
        assert np.bincount(tokens, minlength=64) == pytest.approx(100, abs=50)
        assert (tokens[1:] == tokens[:-1]).sum() == pytest.approx(100, abs=50)
        assert np.corrcoef(tokens[1:], tokens[:-1])[0, 1] == pytest.approx(0, abs=0.06)


# Shapes


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-6])
def test_a_temperature_next_to_nought_is_greedy(temperature: float) -> None:
    assert shape_of(Sampling(temperature=temperature, seed=3, top_p=0.1)) is None


def test_greedy_is_the_likeliest_token() -> None:
    assert greedy(mx.array([[0.1, 0.5, 0.2], [0.9, 0.1, 0.2]])).tolist() == [1, 0]


def test_the_coldest_temperature_does_not_leave_the_range_of_a_float() -> None:
    shape = shape_of(Sampling(temperature=1e-5))
    assert shape is not None
    assert drawn([-9.0, -0.5, -7.0], shape, 50).tolist() == [1] * 50
    assert drawn([900.0, 901.0, -900.0], shape, 50).tolist() == [1] * 50


def test_rows_that_ask_for_the_same_have_equal_shapes() -> None:
    shape = shape_of(Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=1))
    assert shape == shape_of(Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.0, stop=("x",)))
    assert shape != shape_of(Sampling(temperature=0.7, top_p=0.9, top_k=6))
    assert shape_of(Sampling()) == Shape(1.0, 0, 1.0, 0.0)
    assert hash(shape) is not None


# Bias and penalties


def penalised(sampling: Sampling, generated: list[int], logits: list[float]) -> list[float]:
    """The logits for the token after `generated`."""
    penalties = Penalties(sampling)
    row = penalties(None, mx.array([logits]))
    for token in generated:
        row = penalties(mx.array([token]), mx.array([logits]))
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
    for _ in range(4):
        penalties(mx.zeros((1,), dtype=mx.uint32), mx.zeros((1, 8)))
    assert penalties._counts is None


def test_a_row_that_resumes_is_penalised_as_if_it_had_gone_on() -> None:
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=1.5)
    resumed = Penalties(sampling)(mx.array([2, 4, 2, 2, 5]), mx.array([LOGITS_8]))
    assert resumed[0].tolist() == penalised(sampling, [2, 4, 2, 2, 5], LOGITS_8)


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
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([1, 6, 50 * BLOCK, 50 * BLOCK + 1]), st.data())
def test_the_likeliest_tokens_are_reported_in_order(seed: int, count: int, size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, 20))
    rows = np.stack([spread(size, seed + i) for i in range(count)])
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=count, max_size=count))
    found = listed(*likeliest(mx.array(rows), mx.array(tokens), k))
    logprobs = rows - np.log(np.exp(rows.astype(np.float64)).sum(axis=-1, keepdims=True))
    assert len(found) == count
    for row, token, (own, top) in zip(logprobs, tokens, found, strict=True):
        assert own == pytest.approx(row[token], abs=1e-4)
        assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][:k], abs=1e-4)
        assert [row[id] for id, _ in top] == pytest.approx([value for _, value in top], abs=1e-4)
        assert len({id for id, _ in top}) == len(top)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, BLOCK, 10 * BLOCK, 40 * BLOCK, 40 * BLOCK - 3]), st.data())
def test_the_best_are_those_that_sorting_finds(seed: int, size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, min(size, 40)))
    random = np.random.default_rng(seed)
    # Few values, so that many tie and whole blocks look alike; one token may well be better than all others.
    rows = random.integers(0, data.draw(st.sampled_from([2, 10, 1000])), size=(3, size)).astype(np.float32)
    rows[:, random.integers(size)] += 5
    ids, values = best(mx.array(rows), k)
    assert np.array_equal(np.array(values), -np.sort(-rows, axis=-1)[:, :k])
    assert np.array_equal(np.take_along_axis(rows, np.array(ids), axis=-1), np.array(values))
    assert all(len(set(row)) == k for row in np.array(ids).tolist())
