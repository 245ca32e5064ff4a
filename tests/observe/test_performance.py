"""What is measured of a request, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from openai_gateway.observe.performance import CANCELLED, WINDOW, WINDOW_REQUESTS, Measured, Percentiles, Performance
from openai_gateway.observe.performance import Rate as TokenRate
from openai_gateway.types import ChatRequest, CompletionRequest, Delta, Echo, ModelSpec, Progress, Started

SPEC = ModelSpec(id="a", path="a")
CHAT = ChatRequest(model="alias-of-a", messages=())
COMPLETION = CompletionRequest(model="a", prompt="x")


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered(performance: Performance, clock: Clock, seconds: float = 1.0) -> Measured:
    """A chat that took that long until its only token."""
    with performance.watch(SPEC, CHAT) as seen:
        clock.now += seconds
        seen.add(Delta(0, "x", tokens=1, finish="stop"))
    return seen


def test_times_and_tokens_of_a_request_are_measured(clock: Clock) -> None:
    with Performance(clock).watch(SPEC, CHAT) as seen:
        seen.add(Started(10, queued=True))
        clock.now += 1
        seen.add(Started(10, 4))
        seen.add(Progress(5, 10))
        clock.now += 1
        seen.add(Delta(0, "a", tokens=3))
        clock.now += 1
        seen.add(Delta(0, "b", tokens=1))
        clock.now += 1
        seen.add(Delta(0, "cde", tokens=3, finish="stop"))
        clock.now += 5
    assert (seen.operation, seen.error) == ("chat", None)
    assert (seen.prompt_tokens, seen.cached_tokens, seen.completion_tokens) == (10, 4, 7)
    assert (seen.time_to_first_token, seen.time_per_output_token, seen.duration) == (2, 0.5, 9)


def test_choices_that_run_beside_each_other_do_not_make_a_token_look_faster(clock: Clock) -> None:
    with Performance(clock).watch(SPEC, CHAT) as seen:
        for _ in range(5):
            for index in (1, 0, 2):
                seen.add(Delta(index, "x", tokens=1))
            clock.now += 0.1
    assert seen.completion_tokens == 15
    assert seen.time_per_output_token == pytest.approx(0.1)


def test_an_echoed_prompt_is_something_to_show_and_no_part_of_decoding(clock: Clock) -> None:
    with Performance(clock).watch(SPEC, COMPLETION) as seen:
        clock.now += 1
        seen.add(Echo("prompt"))
        clock.now += 7
        seen.add(Delta(0, "x", tokens=1))
        clock.now += 1
        seen.add(Delta(0, "y", tokens=2))
    assert seen.operation == "text_completion"
    assert (seen.time_to_first_token, seen.time_per_output_token) == (1, 0.5)


def test_what_never_came_has_no_time(clock: Clock) -> None:
    with Performance(clock).watch(SPEC, CHAT) as seen:
        seen.add(Started(10))
    assert (seen.time_to_first_token, seen.time_per_output_token) == (None, None)
    assert answered(Performance(clock), clock).time_per_output_token is None


def test_of_a_prompt_that_never_left_the_queue_nothing_was_read(clock: Clock) -> None:
    with Performance(clock).watch(SPEC, CHAT) as seen:
        seen.add(Started(10, answer="miss", queued=True))
    assert (seen.prompt_tokens, seen.answer) == (0, "miss")


@pytest.mark.parametrize(
    ("raised", "error"),
    [(GeneratorExit, CANCELLED), (asyncio.CancelledError, CANCELLED), (ValueError, "ValueError")],
)
def test_how_a_request_ended_is_told_apart_and_not_swallowed(
    clock: Clock, raised: type[BaseException], error: str
) -> None:
    performance = Performance(clock)
    seen = performance.watch(SPEC, CHAT)
    assert performance.of(SPEC).running == 1
    with pytest.raises(raised), seen:
        raise raised
    traffic = performance.of(SPEC)
    assert seen.error == error
    assert (traffic.running, traffic.ok) == (0, 0)
    assert (traffic.cancelled, traffic.failed) == ((1, 0) if error == CANCELLED else (0, 1))


def test_listeners_hear_of_a_request_when_it_is_over(clock: Clock) -> None:
    performance = Performance(clock)
    heard: list[Measured] = []
    performance.subscribe(heard.append)
    assert [answered(performance, clock)] == heard


def test_what_is_recent_is_bounded_in_number_and_in_time(clock: Clock) -> None:
    performance = Performance(clock)
    for _ in range(WINDOW_REQUESTS + 5):
        answered(performance, clock, 0.001)
    traffic = performance.of(SPEC)
    assert (len(traffic.recent(clock.now)), traffic.ok) == (WINDOW_REQUESTS, WINDOW_REQUESTS + 5)
    clock.now += WINDOW
    answered(performance, clock, 2)
    assert [round(r.duration) for r in traffic.recent(clock.now)] == [2]


def test_percentiles_are_values_that_were_measured() -> None:
    assert Percentiles.of([None]) is None
    assert Percentiles.of([3.0]) == Percentiles(3, 3, 3)
    assert Percentiles.of([None, *map(float, range(100, 0, -1))]) == Percentiles(50, 90, 99)


def test_tokens_per_second_are_those_of_whole_seconds_and_are_forgotten() -> None:
    rate = TokenRate()
    for tenth in range(1000, 1600):  # one token each 0.1 s for a minute
        rate.add(tenth / 10, 1)
    assert (rate.per_second(160.5, 10), rate.per_second(160.5, 60)) == (10, 10)
    rate.add(160.7, 1000)  # of a second that is not over
    assert rate.per_second(160.9, 10) == 10
    assert rate.per_second(161, 10) == 109
    assert rate.per_second(165, 10) == 105
    assert rate.per_second(400, 60) == 0
