from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from openai_gateway.types import ModelSpec
from openai_gateway.worker import running, wire
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.model import Forward
from openai_gateway.worker.speculation import (
    GRAM,
    LONGEST,
    PART,
    PATIENCE,
    REST,
    SURE,
    TIMED,
    Drafter,
    DraftModel,
    Lookup,
    Speculation,
)
from tests.worker import tiny
from tests.worker.session import MEGABYTES, Session, alone, greedy, prompt


@pytest.fixture(autouse=True)
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every guess takes as long as a step, so that one pays if any token of it comes true."""
    monkeypatch.setattr(running, "monotonic", itertools.count(0.0).__next__)


class Oracle:
    """Guesses that come true up to a place of each, which is drawn anew every time."""

    def __init__(self, answer: Sequence[int], start: int, seed: int) -> None:
        self._answer = [*answer]
        self._start = start
        self._random = random.Random(seed)

    def is_hopeful(self, _: Sequence[int]) -> bool:
        return True

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int]:
        said = len(tokens) + 1 - self._start
        guess = self._answer[said : said + count]
        right = self._random.randrange(len(guess) + 1)
        return guess[:right] + [(token + 1) % 256 for token in guess[right:]]


def oracle(answer: Sequence[int], start: int, seed: int = 0) -> Callable[[], Drafter]:
    return lambda: Oracle(answer, start, seed)


def draft_model(loaded: Loaded) -> Callable[[], Drafter]:
    model = Forward(loaded.model)
    return lambda: DraftModel(model, loaded.make_cache, loaded.prompts.vocab_size)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.2, "seed": 2, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.0, "seed": 3, "min_p": 0.05},
]


# The same tokens


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", ["llama", "qwen3", "moe"])
def test_guesses_of_any_worth_give_the_tokens_of_single_steps(
    shapes: dict[str, Loaded], shape: str, settings: dict[str, Any]
) -> None:
    loaded = shapes[shape]
    expected = alone(loaded, prompt(20), 100, **settings)
    for seed in range(3):
        session = Session(loaded, drafter=oracle(expected, 20, seed))
        assert session.ask(prompt(20), 100, **settings) == expected
        assert 0 < session.engine.stats.accepted_tokens < session.engine.stats.drafted_tokens
        assert session.steps < 90


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["lookup", "draft model", "the model itself"])
def test_each_drafter_gives_the_tokens_of_single_steps(
    shapes: dict[str, Loaded], kind: str, settings: dict[str, Any]
) -> None:
    llama, other = shapes["llama"], shapes["qwen3"]
    drafters: dict[str, Callable[[], Drafter]] = {
        "lookup": Lookup,
        "draft model": draft_model(other),
        "the model itself": draft_model(llama),
    }
    text = prompt(30) * 3
    session = Session(llama, drafter=drafters[kind])
    assert session.ask(text, 120, **settings) == alone(llama, text, 120, **settings)
    # What is drawn at random seldom says the same twice.
    assert session.engine.stats.drafted_tokens > 0 or (kind == "lookup" and settings)


def test_a_model_that_drafts_for_itself_is_always_right(llama: Loaded) -> None:
    session = Session(llama, drafter=draft_model(llama))
    assert session.ask(prompt(20), 100) == greedy(llama, prompt(20), 100)
    stats = session.engine.stats
    assert stats.accepted_tokens == stats.drafted_tokens > 80
    assert session.steps < 20


def test_nothing_is_guessed_where_there_is_no_room_for_what_a_draft_model_reads(llama: Loaded) -> None:
    both = llama.footprint.batch(1, 100) + llama.footprint.batch(1, 100 + LONGEST)
    for room, guesses in ((both, True), (both // 2, False)):
        session = Session(llama, drafter=draft_model(llama), drafting=llama.footprint, room=room)
        assert session.ask(prompt(20), 60) == greedy(llama, prompt(20), 60)
        assert (session.engine.stats.drafted_tokens > 0) is guesses


def test_a_draft_model_is_let_go_when_its_row_does_not_run_alone_any_more(llama: Loaded) -> None:
    session = Session(llama, drafter=draft_model(llama))
    session.submit(1, prompt(20), 200)
    session.until(lambda: session.engine.stats.drafted_tokens > 0)
    session.submit(2, prompt(30), 20)
    session.until(lambda: session.rows == 2)
    assert [row.guesses for row in session.engine._running.rows] == [None, None]
    drafted = session.engine.stats.drafted_tokens
    session.run()
    assert session.engine.stats.drafted_tokens > drafted
    assert session.generated(1) == greedy(llama, prompt(20), 200)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 6, 7, 40])
def test_no_token_is_generated_beyond_those_asked_for(llama: Loaded, max_tokens: int) -> None:
    session = Session(llama, drafter=draft_model(llama))
    assert session.ask(prompt(20), max_tokens) == greedy(llama, prompt(20), max_tokens)
    assert session.finish(0) == "length"
    assert sum(delta.tokens for delta in session.deltas(0)) == max_tokens
    assert session.engine.stats.generated_tokens == max_tokens


def test_a_stop_string_in_the_middle_of_a_guess_ends_the_row(llama: Loaded) -> None:
    plain = Session(llama)
    plain.ask(prompt(20), 60)
    text = plain.text(0)
    for place in range(0, 30, 2):
        stop = (text[place : place + 3], text[place + 4 : place + 5])
        session, cold = Session(llama, drafter=draft_model(llama)), Session(llama)
        for one in (session, cold):
            one.submit(0, prompt(20), 60, stop=stop)
            one.run()
        assert session.finish(0) == "stop"
        assert session.text(0) == cold.text(0)
        assert session.generated(0) == cold.generated(0)
        assert sum(delta.tokens for delta in session.deltas(0)) == len(session.generated(0))
        assert session.engine.stats.generated_tokens == len(session.generated(0))
        assert not session.rows


def test_a_token_that_ends_the_answer_in_the_middle_of_a_guess_ends_the_row(llama: Loaded) -> None:
    said = greedy(llama, prompt(20), 40)
    for place in [place for place in range(39) if said.index(said[place]) == place][3:]:
        session = Session(llama, drafter=oracle(said, 20, place), prefix_bytes=MEGABYTES)
        session.submit(0, prompt(20), 100, stop_token_ids=(said[place],))
        session.run()
        assert session.finish(0) == "stop"
        assert session.generated(0) == said[:place]
        # What a guess read behind the end is not kept.
        text = [*prompt(20), *said[: place + 1], (said[place + 1] + 1) % 256, *prompt(8, 1)]
        assert session.ask(text, 6) == greedy(llama, text, 6)
        started = session.started(1)[-1]
        assert started.cached_tokens <= 21 + place
        if 20 + place >= 32:
            assert started.cached_tokens >= 20 + place


@pytest.mark.parametrize("drafter", ["lookup", "itself"])
def test_the_turn_after_guesses_goes_on_from_what_they_left(llama: Loaded, drafter: str) -> None:
    session = Session(llama, drafter=Lookup if drafter == "lookup" else draft_model(llama), prefix_bytes=MEGABYTES)
    text = prompt(15) * 4
    for turn in range(4):
        expected = greedy(llama, text, 40)
        assert session.ask(text, 40) == expected
        cached = session.started(turn)[-1].cached_tokens
        assert cached == 0 if turn == 0 else cached >= len(text) - 12 - 1
        text = [*text, *expected, *prompt(12, turn)]


# One alone, and several


def test_a_second_request_ends_the_guessing_and_its_end_brings_it_back(llama: Loaded) -> None:
    session = Session(llama, drafter=draft_model(llama), prefill_step=16)
    session.submit(0, prompt(20), 300)
    session.until(lambda: len(session.generated(0)) > 30 if session.paths[0] else False)
    before = session.engine.stats.drafted_tokens
    assert before > 0
    session.submit(1, prompt(200), 20, temperature=1.0, seed=3)
    session.step()
    while session.engine.stats.rows + session.engine.stats.reading > 1:
        assert session.engine.stats.drafted_tokens == before
        session.step()
    session.run()
    assert session.engine.stats.drafted_tokens > before + 100
    assert session.generated(0) == alone(llama, prompt(20), 300)
    assert session.generated(1) == alone(llama, prompt(200), 20, temperature=1.0, seed=3)


def test_two_that_take_turns_to_be_alone_get_their_own_tokens(llama: Loaded) -> None:
    session = Session(llama, drafter=draft_model(llama), prefix_bytes=MEGABYTES)
    session.submit(0, prompt(20), 40)
    session.until(lambda: session.deltas(0))
    session.submit(1, prompt(25), 150)
    session.until(lambda: session.finish(0))
    session.until(lambda: len(session.generated(1)) > 90)
    session.submit(2, prompt(30), 20)
    session.run()
    for id, length, count in ((0, 20, 40), (1, 25, 150), (2, 30, 20)):
        assert session.generated(id) == greedy(llama, prompt(length), count)
    assert session.engine.stats.drafted_tokens > 0


@pytest.mark.parametrize("settings", [{"logprobs": 2}, {"presence_penalty": 0.5}, {"logit_bias": {5: 1.0}}])
def test_who_asks_for_more_than_tokens_is_served_step_by_step(llama: Loaded, settings: dict[str, Any]) -> None:
    session = Session(llama, drafter=draft_model(llama))
    assert session.ask(prompt(20), 40, **settings) == alone(llama, prompt(20), 40, **settings)
    assert session.engine.stats.drafted_tokens == 0


@pytest.mark.parametrize("shape", ["gpt_oss", "recurrent", "demo"])
def test_models_that_cannot_take_a_guess_back_get_none(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    session = Session(loaded, drafter=Lookup)
    text = prompt(10) * 5
    assert session.ask(text, 40) == greedy(loaded, text, 40)
    assert session.engine.stats.drafted_tokens == 0


def test_quantized_keys_and_values_can_be_guessed_at_as_well(tmp_path: Path) -> None:
    wide = tiny.LLAMA | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    spec = ModelSpec(id="q", path=str(tiny.save(tmp_path, wide)), cache_type="quantized", kv_group_size=32)
    loaded = load(spec, wire.Engine())
    session = Session(loaded, drafter=draft_model(loaded), prefix_bytes=MEGABYTES)
    assert session.ask(prompt(20), 60) == alone(loaded, prompt(20), 60)
    assert session.engine.stats.accepted_tokens > 0


def test_a_cancelled_row_that_was_guessed_at_leaves_what_it_said(llama: Loaded) -> None:
    session = Session(llama, drafter=draft_model(llama), prefix_bytes=MEGABYTES)
    session.submit(0, prompt(20), 1000)
    session.until(lambda: len(session.generated(0)) > 60 if session.paths[0] else False)
    text = prompt(20) + session.generated(0)
    session.engine.cancel(0)
    session.engine.settle()
    text += prompt(4, 2)
    assert session.ask(text, 10) == greedy(llama, text, 10)
    assert session.started(1)[-1].cached_tokens == len(text) - 4


# Where guesses come from


def test_lookup_says_what_followed_the_last_time() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 2, 3]
    assert lookup.draft(text, 4, 3) == [5, 6, 7]
    assert lookup.draft([*text, 4], 9, 3) == []
    text += [4, 9, 1, 2, 3]
    assert lookup.draft(text, 4, 4) == [9, 1, 2, 3]


def test_lookup_is_hopeful_where_the_newest_tokens_stood_before() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 1, 2]
    assert not lookup.is_hopeful(text)
    for _ in range(2):
        assert lookup.is_hopeful([*text, 3])
    assert not lookup.is_hopeful([*text, 3, 9])


@pytest.mark.parametrize("length", range(GRAM + 1))
def test_lookup_has_nothing_to_say_about_a_text_that_is_too_short(length: int) -> None:
    assert Lookup().draft([7] * length, 8, 4) == []


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_lookup_follows_a_text_that_goes_round_in_circles(period: int) -> None:
    circle = [*range(period)] * 30
    assert Lookup().draft(circle[:12], circle[12], 8) == circle[13:21]


def test_lookup_asked_after_any_number_of_new_tokens_says_the_same() -> None:
    rng = random.Random(5)
    text = rng.choices(range(3), k=300)
    grown = Lookup()
    for end in sorted(rng.sample(range(1, 299), 60)):
        assert grown.draft(text[:end], text[end], 6) == Lookup().draft(text[:end], text[end], 6)


def test_a_draft_model_reads_only_what_is_new_and_says_what_it_says_alone(llama: Loaded) -> None:
    read: list[int] = []

    def model(tokens: mx.array, cache: Any) -> mx.array:
        read.append(tokens.shape[1])
        logits: mx.array = llama.model(tokens, cache=cache)
        return logits

    drafts = DraftModel(model, lambda: make_prompt_cache(llama.model), llama.prompts.vocab_size)
    text = prompt(30)
    newest = 7
    guess = drafts.draft(text, newest, 4)
    assert guess == greedy(llama, [*text, newest], 4)
    assert read == [31, 1, 1, 1]
    # The last token of a guess was never read: with the newest one, there are two to read where all of it came true.
    for accepted, new in ((4, 2), (2, 1), (0, 1), (1, 1), (3, 1), (4, 2)):
        read.clear()
        text, newest = [*text, newest, *guess[:accepted]], (guess[accepted] + 1) % 256 if accepted < 4 else 5
        guess = drafts.draft(text, newest, 4)
        assert guess == greedy(llama, [*text, newest], 4)
        assert read == [new, 1, 1, 1]


def test_a_draft_model_reads_a_long_text_in_parts_before_it_guesses(llama: Loaded) -> None:
    drafts = DraftModel(Forward(llama.model), llama.make_cache, llama.prompts.vocab_size)
    text = prompt(PART + 100)
    assert drafts.draft(text, 7, 3) is None
    assert drafts.draft([*text, 7], 9, 3) == greedy(llama, [*text, 7, 9], 3)


def test_a_draft_model_says_no_token_that_the_other_does_not_know(llama: Loaded) -> None:
    said = greedy(llama, [*prompt(20), 7], 1)[0]
    drafts = DraftModel(Forward(llama.model), llama.make_cache, said)
    assert all(token < said for token in drafts.draft(prompt(20), 7, 4) or [said])
    assert drafts.draft([*prompt(20), 7], 255, 2)


# How much to guess


class Fixed:
    def __init__(self, guess: int) -> None:
        self.asked: list[int] = []
        self._guess = guess

    def is_hopeful(self, _: Sequence[int]) -> bool:
        return True

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> list[int]:
        self.asked.append(count)
        return [1] * min(self._guess, count)


class Behind:
    def is_hopeful(self, _: Sequence[int]) -> bool:
        return True

    def draft(self, tokens: Sequence[int], newest: int, count: int) -> None:
        """It has more to read."""


def measured(drafter: Drafter) -> Speculation:
    """Guesses beside steps that take a second each."""
    guesses = Speculation(drafter)
    for now in range(1 + SURE):
        assert not guesses.due([])
        guesses.stepped(float(now))
    return guesses


@pytest.mark.parametrize(("seconds", "pays"), [(2.9, True), (3.1, False)])
def test_a_guess_that_takes_longer_than_the_steps_that_it_spares_does_not_pay(seconds: float, pays: bool) -> None:
    guesses = measured(Fixed(4))
    for _ in range(PATIENCE):
        assert guesses.due([])
        guesses.learn(len(guesses.draft([], 0, 4)), 2, seconds)
    assert guesses.due([]) is pays


def test_a_step_is_timed_from_the_one_before_and_not_across_a_guess() -> None:
    guesses = measured(Fixed(4))
    for now in range(100, 100 + 10 * TIMED, 10):
        guesses.learn(4, 4, 1.0)
        guesses.stepped(float(now))
    for _ in range(PATIENCE):
        guesses.learn(4, 2, 3.1)
    assert not guesses.due([])


def test_what_lies_between_two_steps_now_and_then_is_no_part_of_them() -> None:
    guesses = Speculation(Fixed(4))
    for now in (0.0, 50.0, 51.0, 52.0, 90.0):  # a prompt was kept, and another one was read
        guesses.stepped(now)
    for _ in range(PATIENCE):
        guesses.learn(4, 2, 3.1)
    assert not guesses.due([])


def test_steps_beside_which_a_drafter_reads_are_not_timed() -> None:
    guesses = measured(Behind())
    for now in range(100, 100 + 10 * TIMED, 10):
        assert guesses.draft([], 0, 4) == []
        guesses.stepped(float(now))
    for _ in range(PATIENCE):
        guesses.learn(4, 2, 3.1)
    assert not guesses.due([])


def test_guesses_grow_while_they_come_true_and_shrink_when_they_do_not() -> None:
    drafter = Fixed(100)
    guesses = Speculation(drafter)
    for _ in range(4):
        guesses.learn(len(guesses.draft([], 0, 100)), drafter.asked[-1], 1.0)
    assert drafter.asked == [4, 8, 16, LONGEST]
    for _ in range(5):
        guesses.draft([], 0, 100)
        guesses.learn(drafter.asked[-1], 0, 1.0)
    assert drafter.asked[4:] == [16, 8, 4, 2, 1]
    assert len(guesses.draft([], 0, 100)) == 1


def test_no_more_is_guessed_than_may_be_said() -> None:
    drafter = Fixed(100)
    guesses = Speculation(drafter)
    assert len(guesses.draft([], 0, 2)) == 2
    assert guesses.draft([], 0, 0) == []
    assert drafter.asked == [2]


@pytest.mark.parametrize("guess", [0, 3])
def test_attempts_that_come_to_nothing_are_given_a_rest(guess: int) -> None:
    guesses = measured(Fixed(guess))
    for _ in range(PATIENCE):
        assert guesses.due([])
        if drafted := guesses.draft([], 0, 10):
            guesses.learn(len(drafted), 0, 1.0)
    assert [guesses.due([]) for _ in range(REST)] == [False] * (REST - 1) + [True]


def test_one_guess_that_comes_true_makes_up_for_those_before() -> None:
    guesses = measured(Fixed(3))
    for _ in range(3 * PATIENCE):
        for accepted in (0, 1):
            assert guesses.due([])
            guesses.learn(len(guesses.draft([], 0, 10)), accepted, 1.0)
