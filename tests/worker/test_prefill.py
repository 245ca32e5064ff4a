"""How much is read in a step, by how long reading takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openai_gateway.worker import batch, prefill
from openai_gateway.worker.admission import FEW_LOGITS, LEAST
from openai_gateway.worker.load import Loaded
from tests.worker.session import Session, greedy, prompt

SCORES = 2 * 4
"""Bytes of a score of each of two heads."""
ENOUGH = 1e9
"""Seconds in which any machine reads more than a step may."""


@pytest.fixture
def keeping(llama: Loaded) -> Loaded:
    """The model as it were if mlx-lm put its scores together, and kept them."""
    return replace(llama, footprint=replace(llama.footprint, scores=SCORES))


def parts(session: Session) -> list[tuple[int, int]]:
    """Rows and columns of the prompts that were read since this was asked last."""
    read = [shape for shape in session.model.shapes if shape[1] > 1]
    session.model.shapes.clear()
    return read


def test_the_first_prompt_begins_with_few_tokens_and_goes_on_with_as_many_as_there_is_time_for(llama: Loaded) -> None:
    session = Session(llama, prefill_step=64, max_silence=ENOUGH)
    assert session.ask(prompt(150), 2) == greedy(llama, prompt(150), 2)
    assert parts(session) == [(1, LEAST), (1, 64), (1, 54)]
    session.ask(prompt(64), 2)
    assert parts(session) == [(1, 64)]


def test_a_prompt_that_is_read_at_once_tells_how_long_reading_takes_as_well(llama: Loaded) -> None:
    session = Session(llama, prefill_step=64, max_silence=ENOUGH)
    session.ask(prompt(LEAST), 2)
    session.ask(prompt(64), 2)
    assert parts(session) == [(1, LEAST), (1, 64)]


def test_last_tokens_get_a_pass_of_their_own_where_weights_are_read_sooner_than_logits_and_scores_are_computed(
    keeping: Loaded,
) -> None:
    session = Session(keeping, prefill_step=512)
    session.engine._prefill._limits = replace(session.engine._prefill._limits, weights=1)
    for length, passes in ((300, [(1, 300), (1, 1)]), (310, [(1, 309), (1, 1)])):
        # Each token of a prompt has 258 logits, and in a layer of two heads two scores for each token before it.
        assert (length * (258 + 2 * length) <= FEW_LOGITS) is (length == 300)
        assert session.ask(prompt(length), 2) == greedy(keeping, prompt(length), 2)
        assert session.model.shapes[:2] == passes
        session.model.shapes.clear()


def test_running_answers_are_not_held_up_by_the_first_prompt_of_more_than_few_tokens(llama: Loaded) -> None:
    session = Session(llama, prefill_step=64, max_stall=ENOUGH)
    session.submit(0, prompt(5), 40)
    session.until(lambda: session.deltas(0))
    session.submit(1, prompt(64), 2)
    session.run()
    assert parts(session) == [(1, 5), (1, LEAST), (1, LEAST)]


def storm(llama: Loaded, monkeypatch: pytest.MonkeyPatch, *, answers: int) -> list[tuple[int, int]]:
    """Reads a prompt for running answers, and then one more that comes with each of nine steps; a pass takes a second
    for each column. Returns the rows and columns of all passes of the nine."""
    session = Session(llama, max_stall=ENOUGH)
    monkeypatch.setattr(batch, "launching_waits", lambda: False)  # as on a GPU: one pass in each step
    monkeypatch.setattr(prefill, "monotonic", lambda: sum(columns for _, columns in session.model.shapes))
    session.submit(0, prompt(5), 40, n=answers)
    session.until(lambda: session.deltas(0))
    begun = len(session.model.shapes)
    for id in range(1, 10):
        session.submit(id, prompt(4), 1)
        session.step()
    seen = session.model.shapes[begun:]
    session.run()
    assert all(session.finish(id) == "length" for id in range(10))
    return seen


def test_few_arrivals_wait_for_each_other_while_more_answers_run(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = storm(llama, monkeypatch, answers=8)
    assert seen == [(8, 1)] * 6 + [(7, 4), (15, 1)] + [(8, 1)] * 2


def test_more_arrivals_than_running_answers_are_read_at_once(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [columns for _, columns in storm(llama, monkeypatch, answers=1)] == [4, 1] * 9


@pytest.mark.parametrize("scored", [False, True])
def test_on_a_slow_machine_little_is_read_in_a_step_though_nobody_waits(llama: Loaded, scored: bool) -> None:
    """A worker is heard between steps only, and ended when it is silent for too long."""
    session = Session(llama, max_silence=0.0)
    asked: dict[str, Any] = {"echo": "x", "logprobs": 0} if scored else {}
    session.submit(0, prompt(200), 2, **asked)
    for id in (1, 2, 3):
        session.submit(id, prompt(20 + id), 2)
    while session.engine.busy:
        session.step()
        read = [rows * columns for rows, columns in parts(session)]
        assert max(read, default=0) <= LEAST
        assert sum(read) <= 2 * LEAST + LEAST * scored
    assert session.generated(0) == greedy(llama, prompt(200), 2)


def test_parts_of_a_long_prompt_get_smaller_where_attention_keeps_its_scores(keeping: Loaded) -> None:
    session = Session(keeping, prefill_step=64, reserve=SCORES * 64 * 64)
    assert session.ask(prompt(150), 2) == greedy(keeping, prompt(150), 2)
    read = parts(session)
    assert read == [(1, 64), (1, 39), (1, LEAST), (1, 15)]
    assert 39 * (64 + 39) <= 64 * 64 < 40 * (64 + 40)
