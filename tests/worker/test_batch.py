from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from openai_gateway.types import ModelSpec, Sampling
from openai_gateway.worker import batch as batches
from openai_gateway.worker import reading as prompts
from openai_gateway.worker.batch import Decoding, choose, choose_ahead, extracted
from openai_gateway.worker.channels import PlainChannels
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.model import Forward
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.reading import Reading
from openai_gateway.worker.rows import Row
from tests.worker import tiny
from tests.worker.session import SHAPES, greedy, log_softmax, prompt


def row(loaded: Loaded, tokens: list[int], index: int = 0, max_tokens: int = 50, **sampling: Any) -> Row:
    job = Job(0, tokens, Sampling(**({"temperature": 0.0} | sampling)), max_tokens, chat=False)
    table = loaded.prompts.table
    return Row(
        job, index, TextPath(PlainChannels(table.stream(trim_leading_space=False)), (), table=table), frozenset()
    )


def begun(loaded: Loaded, tokens: list[int], **sampling: Any) -> Decoding:
    """One row whose prompt is read."""
    only = row(loaded, tokens, **sampling)
    reading = Reading(only.job, tokens, range(1), [only], loaded.make_cache())
    model = Forward(loaded.model)
    logits = prompts.read_rest(model, reading, one_pass=True)
    return prompts.begin(model, [reading], reading.cache, logits)


def steps(batch: Decoding, count: int) -> None:
    """Runs a batch, and gives its rows their tokens."""
    for _ in range(count):
        for one, token, _ in batch.step():
            one.tokens.append(token)


def said(one: Row) -> list[int]:
    return one.tokens[len(one.job.tokens) :]


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_rows_join_and_leave_and_no_other_one_notices(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    batch = begun(loaded, prompt(30))
    steps(batch, 3)
    for length in (5, 50, 1):
        batch.extend(begun(loaded, prompt(length)))
        steps(batch, 4)
    first, short, long, last = batch.rows
    batch.remove({long})
    steps(batch, 4)
    batch.remove({first, last})
    steps(batch, 4)
    for one, count in ((first, 19), (short, 20), (long, 8), (last, 8)):
        assert said(one) == greedy(loaded, one.job.tokens, count)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_the_caches_of_a_row_are_those_of_its_tokens_read_alone(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    batch = begun(loaded, prompt(30))
    for length in (5, 50):
        batch.extend(begun(loaded, prompt(length)))
    steps(batch, 10)
    batch.remove({batch.rows[2]})
    steps(batch, 10)
    for one in batch.rows:
        assert one.stored == len(one.tokens)
        new = prompt(3, 9)
        logits = np.array(loaded.model(mx.array([new]), cache=batch.cache_of(one))[0, -1].astype(mx.float32))
        expected = log_softmax(loaded, one.tokens + new)[-1]
        assert logits - logits.max() == pytest.approx(expected - expected.max(), abs=2e-3)


def test_who_reads_from_the_caches_of_a_row_does_not_disturb_the_batch(llama: Loaded) -> None:
    batch = begun(llama, prompt(30))
    batch.extend(begun(llama, prompt(10)))
    steps(batch, 5)
    cache = batch.cache_of(batch.rows[1])
    llama.model(mx.array([prompt(8)]), cache=cache)
    cache[0].trim(4)
    steps(batch, 5)
    for one in batch.rows:
        assert said(one) == greedy(llama, one.job.tokens, 10)


def test_a_row_that_leaves_gives_back_its_memory(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "launching_waits", lambda: False)
    batch = begun(llama, prompt(300))
    batch.extend(begun(llama, prompt(10)))
    batch.extend(begun(llama, prompt(12)))
    steps(batch, 1)
    whole = batch.nbytes
    assert batch.longest == 301
    batch.remove({batch.rows[0]})
    assert batch.longest == 13
    assert batch.nbytes < whole * 2 // 3
    batch.remove({*batch.rows})
    assert (batch.nbytes, batch.longest, batch.rows) == (0, 0, [])


def test_removing_rows_of_another_batch_changes_nothing(llama: Loaded) -> None:
    batch = begun(llama, prompt(10))
    batch.remove({row(llama, prompt(5))})
    steps(batch, 5)
    assert said(batch.rows[0]) == greedy(llama, prompt(10), 5)


def test_a_batch_whose_rows_have_all_their_tokens_computes_nothing_more(llama: Loaded) -> None:
    batch = begun(llama, prompt(10), max_tokens=2)
    steps(batch, 2)
    assert said(batch.rows[0]) == greedy(llama, prompt(10), 2)
    assert batch.rows[0].stored == 11


@pytest.mark.parametrize(("waits", "stored"), [(True, [10, 11, 13]), (False, [11, 12, 13])])
def test_first_tokens_are_reported_before_a_pass_that_would_hold_them_up(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch, waits: bool, stored: list[int]
) -> None:
    monkeypatch.setattr(batches, "launching_waits", lambda: waits)
    batch = begun(llama, prompt(10))
    seen = []
    for newcomers in (None, prompt(20), None):
        if newcomers:
            batch.extend(begun(llama, newcomers))
        steps(batch, 1)
        seen.append(batch.rows[0].stored)
    assert seen == stored
    for one, count in zip(batch.rows, (3, 2), strict=True):
        assert said(one) == greedy(llama, one.job.tokens, count)


@pytest.mark.parametrize("way", ["leap", "pending"])
def test_behind_a_first_token_a_row_goes_on_in_any_way(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(batches, "launching_waits", lambda: True)
    expected = greedy(llama, prompt(10), 4)
    batch = begun(llama, prompt(10))
    steps(batch, 1)
    if way == "pending":
        assert batch.pending == expected[1]
    else:
        batch.rows[0].tokens += batch.leap([expected[2]])
    steps(batch, 1)
    assert said(batch.rows[0]) == (expected if way == "leap" else expected[:2])


def test_only_rows_that_ask_get_log_probabilities_and_their_own(llama: Loaded) -> None:
    batch = begun(llama, prompt(10))
    batch.extend(begun(llama, prompt(11), logprobs=2))
    batch.extend(begun(llama, prompt(12), logprobs=5, temperature=1.0, seed=1))
    steps(batch, 2)
    plain, two, five = batch.rows
    scored = {one: entry for one, _, entry in batch.step()}
    assert scored[plain] is None
    for one in (two, five):
        entry = scored[one]
        assert entry is not None
        own, top = entry
        expected = log_softmax(llama, one.tokens)[-1]
        assert [value for _, value in top] == pytest.approx(np.sort(expected)[::-1][: len(top)], abs=1e-4)
        assert any(own == pytest.approx(value, abs=1e-4) for value in expected)


def test_a_row_alone_again_after_others_can_leap(llama: Loaded) -> None:
    batch = begun(llama, prompt(10))
    batch.extend(begun(llama, prompt(40)))
    steps(batch, 3)
    batch.remove({batch.rows[1]})
    expected = greedy(llama, prompt(10), 20)
    (one,) = batch.rows
    for wrong in (0, 3, 5):
        at = len(said(one))
        assert batch.pending == expected[at]
        guess = expected[at + 1 : at + 1 + wrong]
        tokens = batch.leap([*guess, (expected[at + 1 + wrong] + 1) % 256, 7])
        assert tokens == expected[at : at + 1 + wrong]
        one.tokens += tokens
        assert (one.stored, one.sampled) == (len(one.tokens), len(said(one)) + 1)
    steps(batch, 3)
    assert said(one) == expected[: len(said(one))]


def test_a_leap_ends_before_the_token_that_ends_its_row(llama: Loaded) -> None:
    expected = greedy(llama, prompt(10), 8)
    place = next(n for n in range(2, 8) if expected[n] not in expected[:n])
    batch = begun(llama, prompt(10))
    batch.rows[0].stops = frozenset({expected[place]})
    assert batch.leap(expected[1:]) == expected[:place]
    assert batch.pending == expected[place]


# Choosing


MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_k": 5},
    {},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_p": 0.5},
    {"temperature": 0.7, "seed": 3},
]


@pytest.mark.parametrize("order", [range(7), [6, 2, 0, 5, 1, 3, 4], [1, 4], [0], [5, 0, 5]])
def test_each_row_chooses_as_it_does_alone(llama: Loaded, order: Any) -> None:
    logits = mx.random.normal((7, 258), key=mx.random.key(4)) * 3
    alone = [choose(logits[place : place + 1], [row(llama, [1], **MIXED[place])], None)[0] for place in range(7)]
    rows = [row(llama, [1], **MIXED[place]) for place in order]
    tokens, entries = choose(logits[mx.array([*order])], rows, None)
    assert [int(token) for token in np.array(tokens)] == [int(np.array(alone[place])[0]) for place in order]
    assert entries == []
    assert [one.sampled for one in rows] == [1] * len(rows)


@pytest.mark.parametrize("settings", MIXED)
def test_several_positions_at_once_are_chosen_as_one_after_the_other(llama: Loaded, settings: dict[str, Any]) -> None:
    logits = mx.random.normal((6, 258), key=mx.random.key(5)) * 3
    ahead, single = row(llama, [1], **settings), row(llama, [1], **settings)
    ahead.sampled = single.sampled = 4
    expected = [int(np.array(choose(logits[n : n + 1], [single], None)[0])[0]) for n in range(6)]
    assert np.array(choose_ahead(logits, ahead)).tolist() == expected


def test_a_penalty_touches_its_own_row_only(llama: Loaded) -> None:
    logits = mx.zeros((3, 258)).at[:, 9].add(1.0)
    rows = [row(llama, [1]), row(llama, [1], logit_bias={9: -100.0, 8: 1.0}), row(llama, [1])]
    assert np.array(choose(logits, rows, None)[0]).tolist() == [9, 8, 9]


def test_a_penalty_that_raises_is_kept_for_its_row(llama: Loaded) -> None:
    failing = row(llama, [1], presence_penalty=1.0)
    failing.penalties = lambda newest, logits: logits[99, 99, 99]  # type: ignore[assignment]
    tokens, _ = choose(mx.zeros((2, 258)).at[:, 9].add(1.0), [failing, row(llama, [1])], None)
    assert np.array(tokens).tolist() == [9, 9]
    with pytest.raises(ValueError, match="indices"):
        failing.read(9, None)


# Rows of batched caches


def test_a_row_of_a_batched_cache_is_what_mlx_lm_extracts() -> None:
    single = []
    for length in (5, 9, 2):
        cache = KVCache()
        cache.update_and_fetch(*mx.random.normal((2, 1, 2, length, 4), key=mx.random.key(length)))
        single.append(cache)
    batch = BatchKVCache.merge(single)
    batch.update_and_fetch(*mx.random.normal((2, 3, 2, 1, 4), key=mx.random.key(0)))
    for place in range(3):
        mine, theirs = extracted(batch, place), batch.extract(place)
        assert mine.offset == theirs.offset == (6, 10, 3)[place]
        for a, b in zip(mine.state, theirs.state, strict=True):
            assert np.array_equal(np.array(a), np.array(b))


def test_what_layers_count_and_nobody_reads_is_computed_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "SETTLED", 8)
    four_layers = tiny.QWEN3_NEXT | {"num_hidden_layers": 4, "full_attention_interval": 4}
    loaded = load(ModelSpec(id="m", path=str(tiny.save(tmp_path, four_layers))))
    rows = [row(loaded, prompt(10, seed), max_tokens=100) for seed in (1, 2)]
    readings = [Reading(one.job, one.job.tokens, range(1), [one], loaded.make_cache()) for one in rows]
    model = Forward(loaded.model)
    cache, logits = prompts.read_together(model, readings, one_pass=True)
    both = prompts.begin(model, readings, cache, logits)
    steps(both, 40)
    counted = batches.counts(cache)
    assert len(counted) >= 3  # of each linear layer, and more of the other
    for place, array in enumerate(counted):
        mx.export_to_dot(str(tmp_path / f"{place}.dot"), array)
        # Nodes that are not computed yet: one for each step since.
        assert (tmp_path / f"{place}.dot").read_text().count("shape") < 40
