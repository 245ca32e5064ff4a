from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openai_gateway.types import AT_ONCE, Delta, Echo, Failed, ModelSpec, Progress, Started
from openai_gateway.worker import batch as batches
from openai_gateway.worker.admission import LEAST, Limits
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.prefixes import Found
from openai_gateway.worker.sampling import Penalties
from tests.worker import tiny
from tests.worker.session import MEGABYTES, SHAPES, Recorded, Session, alone, greedy, log_softmax, prompt

# One batch for all


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_rows_of_one_batch_say_what_each_says_alone(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    session = Session(loaded, prefill_step=16)
    prompts = [prompt(length) for length in (1, 2, 5, 16, 17, 33, 90)]
    for id, tokens in enumerate(prompts):
        session.submit(id, tokens, max_tokens=6 + id)
        for _ in range(id % 3):
            session.step()
    session.run()
    for id, tokens in enumerate(prompts):
        assert session.generated(id) == greedy(loaded, tokens, 6 + id)


@pytest.mark.parametrize("shape", ["llama", "gpt_oss", "demo"])
def test_a_prompt_read_in_chunks_gives_the_tokens_of_one_read_at_once(shapes: dict[str, Loaded], shape: str) -> None:
    tokens = prompt(150)
    whole = alone(shapes[shape], tokens, 24, prefill_step=512)
    assert alone(shapes[shape], tokens, 24, prefill_step=7) == whole == greedy(shapes[shape], tokens, 24)


def test_a_seeded_row_is_the_same_whatever_else_is_in_the_batch(llama: Loaded) -> None:
    settings: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95, "seed": 7}
    expected = alone(llama, prompt(9), 20, **settings)
    session = Session(llama)
    session.submit(1, prompt(30), 40)
    session.submit(2, prompt(12), 10, temperature=1.0, seed=8, n=3)
    session.step()
    session.step()
    session.submit(3, prompt(9), 20, **settings)
    session.submit(4, prompt(4), 25, temperature=0.7, frequency_penalty=0.5)
    session.run()
    assert session.generated(3) == expected


def test_the_choices_of_a_seeded_request_differ_and_come_again(llama: Loaded) -> None:
    first, second = Session(llama), Session(llama)
    for session in (first, second):
        session.submit(1, prompt(5), 12, temperature=1.5, seed=2**63 + 5, n=4)
        session.run()
    answers = [first.generated(1, index) for index in range(4)]
    assert answers == [second.generated(1, index) for index in range(4)]
    assert len(set(map(tuple, answers))) == 4


@pytest.mark.parametrize("seed", [-1, 0, -(2**63), 2**63 - 1, 2**64])
def test_any_whole_number_is_a_seed(llama: Loaded, seed: int) -> None:
    assert len(alone(llama, prompt(3), 4, temperature=1.0, seed=seed, n=1)) == 4


def test_requests_without_a_seed_differ(llama: Loaded) -> None:
    assert alone(llama, prompt(5), 30, temperature=1.5) != alone(llama, prompt(5), 30, temperature=1.5)


# Several choices


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_each_choice_is_what_a_request_of_its_own_would_get(shapes: dict[str, Loaded], shape: str, length: int) -> None:
    session = Session(shapes[shape], prefill_step=16)
    session.submit(1, prompt(length), 10, n=3)
    session.submit(2, prompt(21), 10)
    session.run()
    expected = greedy(shapes[shape], prompt(length), 10)
    assert [session.generated(1, index) for index in range(3)] == [expected] * 3
    assert session.generated(2) == greedy(shapes[shape], prompt(21), 10)


def test_the_prompt_of_several_choices_is_read_once(llama: Loaded) -> None:
    session = Session(llama, prefill_step=50)
    session.submit(1, prompt(120), 3, n=5)
    session.run()
    assert sum(columns for _, columns in session.model.shapes if columns > 1) == 120
    assert sum(event.tokens for event in session.events[1] if isinstance(event, Delta)) == 15


# Log-probabilities


def test_log_probabilities_are_those_of_the_model(shapes: dict[str, Loaded]) -> None:
    loaded = shapes["qwen3"]
    session = Session(loaded)
    tokens = prompt(9)
    session.submit(1, tokens, 6, logprobs=4, temperature=1.0, seed=1)
    session.submit(2, tokens, 6, logprobs=0)
    session.submit(3, tokens, 6)
    session.run()
    said = session.generated(1)
    expected = log_softmax(loaded, tokens + said)[len(tokens) - 1 : -1]
    entries = [entry for delta in session.deltas(1) for entry in delta.logprobs]
    assert len(entries) == 6
    for token, entry, row in zip(said, entries, expected, strict=True):
        assert entry.raw == loaded.prompts.table.bytes_of(token)
        assert entry.logprob == pytest.approx(row[token], abs=1e-4)
        likeliest = np.argsort(-row)[:4]
        assert [raw for _, raw, _ in entry.top] == [loaded.prompts.table.bytes_of(int(id)) for id in likeliest]
        assert [value for _, _, value in entry.top] == pytest.approx(row[likeliest], abs=1e-4)
    assert all(entry.top == () for delta in session.deltas(2) for entry in delta.logprobs)
    assert sum(len(delta.logprobs) for delta in session.deltas(2)) == 6
    assert not any(delta.logprobs for delta in session.deltas(3))


def test_a_model_in_16_bits_reports_log_probabilities_in_32(tmp_path: Path) -> None:
    loaded = load(ModelSpec(id="m", path=str(tiny.save(tmp_path, tiny.LLAMA))))
    loaded.model.set_dtype(mx.bfloat16)
    session = Session(loaded)
    session.submit(1, [65], 1, logprobs=2)
    session.run()
    (entry,) = session.deltas(1)[0].logprobs
    best = log_softmax(loaded, [65])[-1].max()
    assert entry.logprob == pytest.approx(best, abs=1e-4)


def test_more_alternatives_than_tokens_are_all_tokens(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(4), 1, logprobs=10_000)
    session.run()
    (entry,) = session.deltas(1)[0].logprobs
    assert sum(math.exp(value) for _, _, value in entry.top) == pytest.approx(1, abs=1e-4)


# Bias and penalties


def test_bias_bans_a_token_and_forces_a_token(llama: Loaded) -> None:
    tokens = prompt(6)
    free = alone(llama, tokens, 8)
    assert free[0] not in alone(llama, tokens, 8, logit_bias={free[0]: -100.0})
    assert alone(llama, tokens, 8, logit_bias={42: 100.0}) == [42] * 8
    assert alone(llama, tokens, 8, logit_bias={42: math.inf}, temperature=0.0) == [42] * 8


def frequency(logits: Any, counts: Any) -> Any:
    return logits - 1.0 * counts


def presence(logits: Any, counts: Any) -> Any:
    return logits - 1.0 * (counts > 0)


def repetition(logits: Any, counts: Any) -> Any:
    return np.where(counts > 0, np.where(logits > 0, logits / 1.5, logits * 1.5), logits)


@pytest.mark.parametrize(
    ("sampling", "formula"),
    [
        ({"frequency_penalty": 1.0}, frequency),
        ({"presence_penalty": 1.0}, presence),
        ({"repetition_penalty": 1.5}, repetition),
    ],
)
def test_penalties_count_the_whole_answer_and_nothing_of_the_prompt(
    llama: Loaded, sampling: dict[str, Any], formula: Callable[[Any, Any], Any]
) -> None:
    (favourite,) = alone(llama, prompt(6), 1)
    text = [favourite] * 12 + prompt(6)
    expected: list[int] = []
    for _ in range(40):
        logits = np.array(llama.model(mx.array([text + expected]))[0, -1])
        logits = formula(logits, np.bincount(expected, minlength=len(logits)))
        logits[42] += 3.0  # said again and again, while nothing stands against it
        expected.append(int(logits.argmax()))
    assert alone(llama, text, 40, logit_bias={42: 3.0}, **sampling) == expected
    assert alone(llama, text, 40, logit_bias={42: 3.0}) != expected


def test_penalised_rows_leave_others_as_they_are(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(6), 12, frequency_penalty=2.0)
    session.submit(2, prompt(6), 12)
    session.run()
    assert session.generated(2) == greedy(llama, prompt(6), 12)
    assert session.generated(1) == alone(llama, prompt(6), 12, frequency_penalty=2.0)


# Why a row ends


def test_a_row_that_has_all_its_tokens_ends_for_length(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(6), 5)
    session.run()
    assert session.finish(1) == "length"
    assert sum(delta.tokens for delta in session.deltas(1)) == 5


def test_an_end_token_ends_a_row_and_is_no_text(shapes: dict[str, Loaded]) -> None:
    loaded = shapes["llama"]
    session = Session(loaded)
    session.submit(1, prompt(6), 50, ignore_eos=False, logit_bias={256: 100.0})
    session.submit(2, prompt(6), 5, ignore_eos=True, logit_bias={256: 100.0})
    session.run()
    assert (session.finish(1), session.text(1), session.deltas(1)[-1].tokens) == ("stop", "", 1)
    assert (session.finish(2), session.text(2)) == ("length", "")
    assert session.generated(2) == [256] * 5


def test_stop_token_ids_end_a_row(llama: Loaded) -> None:
    said = greedy(llama, prompt(6), 12)
    last = next(token for token in said[3:] if said.index(token) >= 3)
    session = Session(llama)
    session.submit(1, prompt(6), 50, stop_token_ids=(last,))
    session.run()
    assert session.finish(1) == "stop"
    assert session.generated(1) == said[: said.index(last)]


def test_a_stop_string_across_tokens_ends_the_row_and_frees_its_place(llama: Loaded) -> None:
    text = "abcabc"
    bias: dict[int, float] = {}
    session = Session(llama)
    # One byte is a token: a bias that changes nothing else makes the answer "aaaa...".
    (a,) = [id for id in range(256) if llama.prompts.table.bytes_of(id) == b"a"]
    bias[a] = 100.0
    session.submit(1, prompt(6), 1000, stop=("aaaa",), logit_bias=bias)
    session.submit(2, prompt(6), 12, stop=(text,))
    session.run()
    assert (session.finish(1), session.text(1)) == ("stop", "")
    assert sum(delta.tokens for delta in session.deltas(1)) == 4
    assert session.generated(2) == greedy(llama, prompt(6), 12)
    assert session.rows == 0


def test_a_stop_string_that_is_certain_only_at_the_end_is_still_why_the_row_ended(llama: Loaded) -> None:
    (a,) = [id for id in range(256) if llama.prompts.table.bytes_of(id) == b"a"]
    session = Session(llama)
    # After "aa" the longer one may still begin earlier, so the shorter one is held.
    session.submit(1, prompt(6), 2, stop=("a", "aaa"), logit_bias={a: 100.0})
    session.submit(2, prompt(6), 3, stop=("aab", "a" * 9), logit_bias={a: 100.0})
    session.run()
    assert (session.finish(1), session.text(1)) == ("stop", "")
    assert (session.finish(2), session.text(2)) == ("length", "aaa")


# Cancelling


def cancelled_at(stage: str) -> Callable[[Session], bool]:
    def reached(session: Session) -> bool:
        return {
            "waiting": lambda: bool(session.engine._admission.waiting),
            "prefilling": lambda: any(reading.done > 0 for reading in session.engine._prefill.readings),
            "decoding": lambda: len(session.deltas(1)) >= 3,
            "scoring": lambda: any(scoring.done for _, scoring in session.engine._scoring.values()),
        }[stage]()

    return reached


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "decoding", "scoring"])
@pytest.mark.parametrize("n", [1, 2])
def test_g04_a_cancelled_request_leaves_before_the_next_step_and_others_go_on(
    llama: Loaded, stage: str, n: int
) -> None:
    session = Session(llama, prefill_step=8, max_batch=4 if stage == "waiting" else 16)
    session.submit(0, prompt(20), 40, n=4 if stage == "waiting" else 1)
    session.submit(2, prompt(11), 30, seed=3, temperature=1.0)
    while len(session.deltas(0)) < 2:
        session.step()
    scored: dict[str, Any] = {"echo": "", "logprobs": 1} if stage == "scoring" else {}
    session.submit(1, prompt(60), 1000, n=n, **scored)
    while not cancelled_at(stage)(session):
        session.step()
    session.engine.cancel(1)
    before = len(session.events[1])
    session.step()
    assert len(session.events[1]) == before
    assert 1 not in session.ids
    session.run()
    assert len(session.events[1]) == before
    assert session.generated(0) == greedy(llama, prompt(20), 40)
    assert session.generated(2) == alone(llama, prompt(11), 30, seed=3, temperature=1.0)
    assert session.rows == 0


def test_cancelling_what_is_unknown_or_over_changes_nothing(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 3)
    session.engine.cancel(99)
    session.run()
    session.engine.cancel(1)
    assert not session.engine.busy
    assert session.finish(1) == "length"


# Failing


def test_what_a_row_raises_fails_that_request_alone(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def explode(self: Penalties, newest: mx.array | None, logits: mx.array) -> mx.array:
        if next(calls) > 8:
            raise ZeroDivisionError
        return logits

    monkeypatch.setattr(Penalties, "__call__", explode)
    session = Session(llama)
    session.submit(1, prompt(5), 20, presence_penalty=1.0, n=2)
    session.submit(2, prompt(7), 20)
    session.run()
    assert [event.error for event in session.events[1] if isinstance(event, Failed)] == ["GatewayError"]
    assert isinstance(session.events[1][-1], Failed)
    assert session.generated(2) == greedy(llama, prompt(7), 20)
    assert session.rows == 0


def test_text_that_cannot_be_made_fails_that_request_alone(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    push = Recorded.push

    def explode(self: Recorded, token: int, entry: Any = None) -> Any:
        if self is session.paths[1][0] and len(self.tokens) == 3:
            raise IndexError
        return push(self, token, entry)

    monkeypatch.setattr(Recorded, "push", explode)
    session = Session(llama)
    session.submit(1, prompt(5), 20, n=2)
    session.submit(2, prompt(7), 20)
    session.run()
    assert [event.error for event in session.events[1] if isinstance(event, Failed)] == ["GatewayError"]
    assert isinstance(session.events[1][-1], Failed)
    assert session.generated(2) == greedy(llama, prompt(7), 20)
    assert session.rows == 0


def test_a_job_that_cannot_begin_fails_alone_and_nothing_of_it_stays(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(2, prompt(7), 6)
    session.submit(1, [], 6)  # a prompt without a token is refused before it comes here
    session.submit(3, prompt(8), 6)
    session.run()
    assert isinstance(session.events[1][-1], Failed)
    assert session.generated(2) == greedy(llama, prompt(7), 6)
    assert session.generated(3) == greedy(llama, prompt(8), 6)
    assert not session.rows


def test_g33_a_model_that_raises_fails_live_requests_and_answers_the_next(llama: Loaded) -> None:
    session = Session(llama, max_batch=4)
    session.submit(1, prompt(5), 20)
    session.submit(2, prompt(7), 20, n=3)
    session.submit(3, prompt(9), 6)
    while not session.deltas(2):
        session.step()
    session.model.failures = 1
    session.step()
    for id in (1, 2):
        assert [event.error for event in session.events[id] if isinstance(event, Failed)] == ["Unavailable"]
    session.run()
    assert session.generated(3) == greedy(llama, prompt(9), 6)
    session.submit(4, prompt(5), 20)
    session.run()
    assert session.generated(4) == greedy(llama, prompt(5), 20)
    assert len([event for event in session.events[1] if isinstance(event, Failed)]) == 1
    assert session.rows == 0


def test_a_model_that_raises_while_a_long_prompt_is_read_fails_that_request_alone(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16)
    session.submit(1, prompt(5), 30)
    session.until(lambda: session.deltas(1))
    session.submit(2, prompt(100), 5)
    session.submit(3, prompt(101), 5, n=2)
    session.step()
    session.model.failures = 1  # reading comes before decoding
    session.run()
    assert session.errors(2) == ["Unavailable"]
    assert not session.errors(1) and not session.errors(3)
    assert session.generated(1) == greedy(llama, prompt(5), 30)
    assert [session.generated(3, index) for index in range(2)] == [greedy(llama, prompt(101), 5)] * 2
    assert session.rows == 0


def test_a_model_that_raises_while_prompts_are_read_together_fails_these_alone(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 30)
    session.until(lambda: session.deltas(1))
    session.submit(2, prompt(10), 5)
    session.submit(3, prompt(12), 5)
    session.submit(4, prompt(120), 5)
    session.model.failures = 1
    session.run()
    assert [session.errors(id) for id in range(1, 5)] == [[], ["Unavailable"], ["Unavailable"], []]
    assert session.generated(1) == greedy(llama, prompt(5), 30)
    assert session.generated(4) == greedy(llama, prompt(120), 5)


def test_a_model_that_raises_while_rows_decode_fails_those_of_that_batch(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "place", lambda *_: None)
    session = Session(llama, prefill_step=16, prefix_bytes=MEGABYTES)
    for id in (1, 2):
        session.submit(id, prompt(5 + id), 30)
        session.until(lambda id=id: session.deltas(id))  # type: ignore[misc]
    session.submit(3, prompt(200), 5)
    for _ in range(3):
        session.step()
    decode = session.engine._running.batches[1].step
    monkeypatch.setattr(session.engine._running.batches[1], "step", lambda: [decode(), 1 // 0])
    session.run()
    assert [session.errors(id) for id in (1, 2, 3)] == [[], ["Unavailable"], []]
    for id, length, count in ((1, 6, 30), (3, 200, 5)):
        assert session.generated(id) == greedy(llama, prompt(length), count)
    assert session.rows == 0


def test_a_drafter_that_raises_fails_its_request_alone(llama: Loaded) -> None:
    class Broken:
        def is_hopeful(self, _: Sequence[int]) -> bool:
            return True

        def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int]:
            raise MemoryError

    session = Session(llama, drafter=Broken)
    session.submit(1, prompt(5), 30)
    session.run()
    assert session.errors(1) == ["Unavailable"]
    session.submit(2, prompt(5), 1)
    session.run()
    assert session.generated(2) == greedy(llama, prompt(5), 1)


def test_prefixes_that_cannot_be_kept_cost_no_request_anything(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise MemoryError

    session = Session(llama, prefix_bytes=MEGABYTES)
    with monkeypatch.context() as broken:
        broken.setattr(session.engine._prefixes, "keep", explode)
        for id in range(3):
            session.submit(id, prompt(100 + id), 5)
        session.run()
    assert session.engine.stats.prefix_bytes == 0
    for id in range(3):
        assert session.generated(id) == greedy(llama, prompt(100 + id), 5)
        assert not session.errors(id)
    assert session.ask(prompt(100), 5) == greedy(llama, prompt(100), 5)
    assert session.engine.stats.prefix_bytes > 0


def test_a_prefix_that_cannot_be_found_fails_that_request_with_all_its_choices_alone(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(llama, prefix_bytes=MEGABYTES)
    find = session.engine._prefixes.find

    def found(owner: str, tokens: Sequence[int]) -> Found:
        if owner == "broken":
            raise OSError
        return find(owner, tokens)

    session.submit(1, prompt(20), 60, n=2, owner="broken", temperature=1.0)
    session.submit(2, prompt(21), 60)
    session.until(lambda: len(session.deltas(1)) > 3)
    # Both choices wait to be read again, each by itself.
    for row in [row for batch in session.engine._running.batches for row in batch.rows if row.job.id == 1]:
        session.engine._put_off(row)
    monkeypatch.setattr(session.engine._prefixes, "find", found)
    session.run()
    assert [session.errors(id) for id in (1, 2)] == [["GatewayError"], []]
    assert session.generated(2) == greedy(llama, prompt(21), 60)


def test_an_engine_counts_what_it_does(llama: Loaded) -> None:
    session = Session(llama, prefix_bytes=MEGABYTES)
    session.submit(1, prompt(50), 7, n=2)
    session.submit(2, prompt(40), 5)
    session.step()
    running = session.engine.stats
    assert (running.rows, running.reading, running.waiting) == (1, 1, 0)
    assert running.kv_bytes > 0
    session.run()
    session.ask(prompt(50), 3)
    stats = session.engine.stats
    assert (stats.rows, stats.reading, stats.waiting, stats.kv_bytes) == (0, 0, 0, 0)
    assert (stats.read_tokens, stats.cached_tokens, stats.generated_tokens) == (50 + 40 + 1, 49, 2 * 7 + 5 + 3)
    assert stats.steps == session.steps
    assert stats.prefix_bytes > 0


def test_a_model_that_raises_while_a_prompt_is_scored_fails_that_request_alone(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 10)
    while not session.deltas(1):
        session.step()
    session.submit(2, prompt(7), 5, echo="x", logprobs=1)
    session.model.failures = 1  # scoring comes first in a step
    session.run()
    assert [event.error for event in session.events[2] if isinstance(event, Failed)] == ["Unavailable"]
    assert session.generated(1) == greedy(llama, prompt(5), 10)


@pytest.mark.parametrize("waits", [True, False])
def test_who_is_put_off_is_penalised_for_all_that_it_had_said(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    monkeypatch.setattr(batches, "launching_waits", lambda: waits)
    penalties: dict[str, Any] = {"frequency_penalty": 2.0, "repetition_penalty": 1.8}
    for seed in range(12):
        expected = Session(llama).ask(prompt(20, seed), 12, **penalties)
        for said in (1, 2):
            session = Session(llama)
            session.submit(0, prompt(20, seed), 12, **penalties)
            while len(session.deltas(0)) < said:
                session.step()
            session.engine._put_off(session.engine._running.rows[0])
            session.run()
            assert session.generated(0) == expected


# Prompts: progress, echo, nothing to generate


def test_long_prompts_report_their_progress_and_short_ones_do_not(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16)
    session.submit(1, prompt(50), 2)
    session.submit(2, prompt(16), 2)
    session.run()
    progress = [(event.done, event.total) for event in session.events[1] if isinstance(event, Progress)]
    assert progress == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert not any(isinstance(event, Progress) for event in session.events[2])


def test_a_running_row_gets_tokens_while_a_long_prompt_is_read(llama: Loaded) -> None:
    session = Session(llama, prefill_step=8)
    session.submit(1, prompt(5), 100)
    while not session.deltas(1):
        session.step()
    session.submit(2, prompt(100), 1)
    before = len(session.generated(1))
    while not session.deltas(2):
        session.step()
    assert len(session.generated(1)) - before >= 12


@pytest.mark.parametrize("n", [1, 3])
def test_echo_comes_once_before_the_answer(llama: Loaded, n: int) -> None:
    session = Session(llama)
    session.submit(1, prompt(6), 4, echo="as it was written", n=n)
    session.run()
    assert session.events[1][:2] == [Started(6), Echo("as it was written")]
    assert sum(isinstance(event, Echo) for event in session.events[1]) == 1
    assert [session.generated(1, index) for index in range(n)] == [greedy(llama, prompt(6), 4)] * n


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_echo_with_log_probabilities_scores_the_prompt_and_goes_on(llama: Loaded, n: int, length: int) -> None:
    session = Session(llama, prefill_step=8)
    tokens = prompt(length)
    session.submit(1, tokens, 4, echo="x", logprobs=2, n=n)
    session.submit(2, prompt(9), 12)
    session.run()
    echoes = [event for event in session.events[1] if isinstance(event, Echo)]
    assert [echo.text for echo in echoes if echo.text] == [echoes[0].text] == ["x"]
    first, *entries = (entry for echo in echoes for entry in echo.entries)
    expected = log_softmax(llama, tokens)
    assert [entry.raw for entry in (first, *entries)] == [llama.prompts.table.bytes_of(token) for token in tokens]
    assert (first.logprob, first.top) == (None, ())
    for token, entry, row in zip(tokens[1:], entries, expected[:-1], strict=True):
        assert entry.logprob == pytest.approx(row[token], abs=1e-4)
        assert [value for _, _, value in entry.top] == pytest.approx(np.sort(row)[::-1][:2], abs=1e-4)
    assert [session.generated(1, index) for index in range(n)] == [greedy(llama, tokens, 4)] * n
    assert session.generated(2) == greedy(llama, prompt(9), 12)
    assert session.rows == 0


def test_log_probabilities_of_a_prompt_leave_as_they_are_found_in_pieces_of_a_bounded_size(llama: Loaded) -> None:
    session = Session(llama, prefill_step=300)
    session.submit(1, prompt(1000), 1, echo="x", logprobs=2)
    sizes = []
    while session.engine.busy:
        session.step()
        sizes.append([len(event.entries) for event in session.events.pop(1) if isinstance(event, Echo)])
    assert sizes[:4] == [[AT_ONCE, AT_ONCE, 45], *[[AT_ONCE, AT_ONCE, 44]] * 2, [99]]
    assert sum(map(sum, sizes)) == 1000


@pytest.mark.parametrize("logprobs", [None, 0])
def test_no_tokens_at_all_may_be_asked_for(llama: Loaded, logprobs: int | None) -> None:
    session = Session(llama)
    session.submit(1, prompt(6), 0, echo="x", logprobs=logprobs, n=2)
    session.run()
    assert [type(event) for event in session.events[1]] == [Started, Echo, Delta, Delta]
    assert [session.finish(1, index) for index in range(2)] == ["length"] * 2
    assert not session.rows


def test_many_prompts_to_score_cost_a_step_no_more_than_one(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16, max_batch=64)
    for id in range(10):
        session.submit(id, prompt(40), 0, echo="x", logprobs=0)
    session.step()
    assert sum(rows * columns for rows, columns in session.model.shapes) == 16
    session.run()
    assert all(session.finish(id) == "length" for id in range(10))


def test_a_prompt_that_is_scored_holds_running_answers_up_no_longer_than_one_that_is_read(llama: Loaded) -> None:
    session = Session(llama, max_stall=0.0)
    session.submit(1, prompt(5), 40)
    session.submit(2, prompt(200), 4, echo="x", logprobs=0)
    session.run()
    parts = [columns for rows, columns in session.model.shapes if columns > 5]
    assert parts == [64, *[LEAST] * 4, 199 - 64 - 4 * LEAST]  # how long the first one takes is not known yet


def test_a_prompt_that_is_scored_is_counted_like_one_that_is_read(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(100), 4, echo="x", logprobs=0)
    session.step()
    assert session.engine.stats.kv_bytes > 0
    session.run()
    assert session.engine.stats.read_tokens == 100
    assert session.engine.stats.kv_bytes == 0


# Admission


def test_no_more_rows_are_admitted_than_fit_and_none_is_left_waiting(llama: Loaded) -> None:
    session = Session(llama, max_batch=4)
    for id in range(6):
        session.submit(id, prompt(20 + id), 6, n=3 if id % 2 else 1)
    session.submit(6, prompt(7), 6, echo="x", logprobs=0, n=3)
    most = 0
    while session.engine.busy:
        session.step()
        most = max(most, session.rows)
    assert most == 4
    assert all(session.finish(id) == "length" for id in range(7))


def test_a_request_for_more_choices_than_fit_is_served_alone(llama: Loaded) -> None:
    session = Session(llama, max_batch=2)
    session.submit(1, prompt(5), 4, n=5)
    session.submit(2, prompt(6), 4)
    session.run()
    assert [session.generated(1, index) for index in range(5)] == [greedy(llama, prompt(5), 4)] * 5
    assert session.generated(2) == greedy(llama, prompt(6), 4)


def test_an_engine_is_busy_exactly_while_a_step_has_something_to_do(llama: Loaded) -> None:
    session = Session(llama)
    assert not session.engine.busy
    session.submit(1, prompt(5), 3)
    assert session.engine.busy
    session.run()
    session.submit(2, prompt(5), 30)
    session.step()
    session.engine.cancel(2)
    session.step()
    assert not session.engine.busy
    session.submit(3, prompt(5), 3)
    session.engine.cancel(3)
    assert not session.engine.busy
    assert session.engine.step() == []


# The long run


def operations(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    for _ in range(300):
        if rng.random() < 0.3:
            yield "cancel", {}
        else:
            settings: dict[str, Any] = {
                "temperature": rng.choice([0.0, 0.0, 1.0]),
                "n": rng.choice([1, 1, 1, 2, 4]),
                "logprobs": rng.choice([None, None, 0, 3]),
                "presence_penalty": rng.choice([0.0, 0.0, 0.5]),
                "seed": rng.choice([None, 5]),
            }
            yield "submit", settings


@pytest.mark.parametrize("shape", ["llama", "gpt_oss"])
def test_nothing_is_left_after_hundreds_of_requests_and_cancellations(shapes: dict[str, Loaded], shape: str) -> None:
    rng = random.Random(shape)
    session = Session(shapes[shape], max_batch=12, prefill_step=16)
    session.submit(-1, prompt(40), 60)
    session.run()
    gc.collect()
    before = mx.get_active_memory()
    ids = itertools.count()
    asked: dict[int, tuple[list[int], int, dict[str, Any]]] = {}
    cancelled: set[int] = set()
    for kind, settings in operations(rng):
        if kind == "cancel":
            id = rng.choice([-1, *asked][-8:])
            session.engine.cancel(id)
            cancelled.add(id)
        else:
            id = next(ids)
            asked[id] = prompt(rng.randrange(1, 50), id), rng.randrange(1, 12), settings
            echo = "x" if rng.random() < 0.3 else None
            session.submit(id, asked[id][0], asked[id][1], echo=echo, **settings)
        for _ in range(rng.randrange(3)):
            session.step()
    session.run()
    checked = 0
    for id, (tokens, max_tokens, settings) in asked.items():
        assert not any(isinstance(event, Failed) for event in session.events[id])
        if id in cancelled:
            continue
        for index in range(settings["n"]):
            assert session.finish(id, index) == "length"
            assert sum(delta.tokens for delta in session.deltas(id, index)) == max_tokens
        if settings["temperature"] == 0 and not settings["presence_penalty"] and checked < 12:
            checked += 1
            assert session.generated(id) == greedy(shapes[shape], tokens, max_tokens)
    assert checked == 12
    assert session.rows == 0
    assert not session.engine.busy
    gc.collect()
    assert mx.get_active_memory() - before < 200_000


def test_an_admission_that_raises_gives_up_what_waits_and_ends(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 4)
    with monkeypatch.context() as patch:
        patch.setattr(Limits, "refuses", lambda *_: 1 / 0)
        session.step()
    assert [event.error for event in session.events[1] if isinstance(event, Failed)] == ["Unavailable"]
    assert not session.engine.busy
    session.submit(2, prompt(5), 4)
    session.run()
    assert session.generated(2) == greedy(llama, prompt(5), 4)


def test_a_cancelled_request_gives_its_memory_back_within_one_step(llama: Loaded) -> None:
    session = Session(llama, prefill_step=512)
    session.submit(1, prompt(6), 4)
    session.run()
    gc.collect()
    before = mx.get_active_memory()
    session.submit(2, prompt(450), 50)
    session.submit(3, prompt(5), 50)
    while not session.deltas(2):
        session.step()
    held = mx.get_active_memory() - before
    session.engine.cancel(2)
    session.step()
    assert session.ids == {3}
    assert mx.get_active_memory() - before < held / 2
