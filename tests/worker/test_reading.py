from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openai_gateway.types import Sampling
from openai_gateway.worker import attention, batch
from openai_gateway.worker import reading as prompts
from openai_gateway.worker.admission import Limits
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.model import Forward
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.reading import Reading
from openai_gateway.worker.snapshots import Snapshot
from tests.worker.session import MEGABYTES, SHAPES, STATES, Session, greedy, log_softmax, prompt


def of(loaded: Loaded | None, tokens: list[int], *, done: int = 0, turns: tuple[int, ...] = ()) -> Reading:
    job = Job(0, tokens, Sampling(), 8, chat=False, turns=turns)
    reading = Reading(job, tokens, range(1))
    if loaded is not None:
        reading.cache = loaded.make_cache()
        if done:
            prompts.read_part(Forward(loaded.model), reading, done)
    reading.done = done
    return reading


def likelihood(logits: mx.array) -> Any:
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


@pytest.fixture(params=["mlx", "numpy"])
def attends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short prompts are mlx's otherwise."""
    if request.param == "numpy":
        monkeypatch.setattr(attention, "WORTH", 1)


@pytest.mark.usefixtures("attends")
@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_prompts_read_together_end_in_the_logits_that_each_ends_in_alone(
    shapes: dict[str, Loaded], shape: str, one_pass: bool
) -> None:
    """Also where parts were read before, and where a vocabulary is too large to compute all logits in `one_pass`."""
    loaded = shapes[shape]
    sizes = [(2, 0), (40, 0), (17, 16 - 1), (60, 32), (33, 16), (150, 140)]
    readings = [of(loaded, prompt(length), done=done) for length, done in sizes]
    _, logits = prompts.read_together(Forward(loaded.model), readings, one_pass=one_pass)
    for reading, row in zip(readings, likelihood(logits), strict=True):
        assert row == pytest.approx(log_softmax(loaded, reading.tokens)[-1], abs=2e-4)
        assert (reading.left, reading.cache) == (0, [])


@pytest.mark.usefixtures("attends")
@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("length", [1, 2, 40])
@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_a_prompt_read_alone_ends_in_the_logits_of_the_model(
    shapes: dict[str, Loaded], shape: str, length: int, one_pass: bool
) -> None:
    reading = of(shapes[shape], prompt(length))
    logits = prompts.read_rest(Forward(shapes[shape].model), reading, one_pass=one_pass)
    assert likelihood(logits)[0] == pytest.approx(log_softmax(shapes[shape], prompt(length))[-1], abs=2e-4)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_with_a_large_vocabulary_rows_say_what_each_says_alone(shapes: dict[str, Loaded], shape: str) -> None:
    session = Session(shapes[shape], prefill_step=32, prefix_bytes=MEGABYTES)
    session.engine._prefill._vocabulary = 1 << 62
    texts = [prompt(length) for length in (1, 2, 5, 17, 70)] + [prompt(70) + prompt(9)]
    for id, tokens in enumerate(texts):
        session.submit(id, tokens, 6, n=1 + id % 2)
        session.step()
    session.run()
    for id, tokens in enumerate(texts):
        assert [session.generated(id, n) for n in range(1 + id % 2)] == [greedy(shapes[shape], tokens, 6)] * (
            1 + id % 2
        )


@pytest.mark.parametrize("shape", STATES)
def test_padding_of_one_prompt_does_not_go_into_the_state_of_another(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    session = Session(loaded, prefill_step=128, prefix_bytes=MEGABYTES)
    texts = [prompt(20), prompt(33), prompt(20, 1)]
    for id, tokens in enumerate(texts):
        session.submit(id, tokens, 6)
    session.run()
    assert sorted(shape for shape in session.model.shapes if shape[1] > 1) == [(1, 33), (2, 20)]
    longer = [tokens + prompt(9, id) for id, tokens in enumerate(texts)]
    for id, tokens in enumerate([*longer, prompt(9)], start=3):
        session.submit(id, tokens, 6)
    session.run()
    for id, tokens in enumerate([*texts, *longer, prompt(9)]):
        assert session.generated(id) == greedy(loaded, tokens, 6)


def test_last_tokens_do_not_wait_for_whole_prompts_where_these_take_two_passes() -> None:
    readings = [of(None, prompt(length), done=done) for length, done in ((5, 4), (9, 0), (7, 6), (3, 1))]
    assert prompts.groups(readings, one_pass=True) == [[readings[0], readings[2], readings[1], readings[3]]]
    assert prompts.groups(readings, one_pass=False) == [[readings[0], readings[2]], [readings[1], readings[3]]]
    assert prompts.groups([], one_pass=True) == []


@pytest.mark.parametrize("room", [1, 2, 7, 64])
@pytest.mark.parametrize("turns", [(), (5,), (10, 20, 30, 99), tuple(range(1, 100))])
def test_a_part_is_never_empty_nor_the_last_token_nor_more_than_there_is_room_for(
    room: int, turns: tuple[int, ...]
) -> None:
    reading = of(None, prompt(100), turns=turns)
    while reading.left > 1:
        count = reading.part(room)
        assert 0 < count <= min(room, reading.left - 1)
        reading.done += count


def test_a_part_ends_where_a_message_begins_if_it_is_not_too_small_for_that() -> None:
    def after(done: int, room: int) -> int:
        return done + of(None, prompt(200), done=done, turns=(20, 50, 120)).part(room)

    assert after(0, 64) == 50
    assert after(50, 64) == 114  # nothing begins within
    assert after(0, 24) == 20
    assert after(15, 34) == 49  # 20 is less than half of what there is room for
    assert after(120, 512) == 199


@pytest.mark.parametrize("shape", ["llama", "gpt_oss", "recurrent"])
def test_parts_of_one_token_are_read_as_well(shapes: dict[str, Loaded], shape: str) -> None:
    session = Session(shapes[shape], prefill_step=1, prefix_bytes=MEGABYTES)
    assert session.ask(prompt(40), 5) == greedy(shapes[shape], prompt(40), 5)


# Snapshots of a prompt that is being read


def snapshot(nbytes: int) -> Snapshot:
    return Snapshot(((mx.zeros(nbytes, dtype=mx.uint8),),), None)


def test_too_many_snapshots_lose_the_closest_to_others_and_those_where_a_message_begins_last() -> None:
    reading = of(None, prompt(200), turns=(30,))
    reading.snapshots = {end: snapshot(10) for end in (20, 30, 40, 60, 64, 100, 150)}
    left = []
    for most in (70, 60, 50, 40, 30, 20, 0):
        reading.thin(most)
        left.append([*reading.snapshots])
    assert left == [
        [20, 30, 40, 60, 64, 100, 150],
        [20, 30, 40, 64, 100, 150],
        [30, 40, 64, 100, 150],
        [30, 64, 100, 150],
        [30, 100, 150],
        [30, 150],
        [150],
    ]


@pytest.mark.parametrize("shape", ["gpt_oss", "recurrent"])
def test_snapshots_of_a_prompt_that_is_read_are_bounded_and_counted(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    tokens = prompt(450)
    session = Session(loaded, prefill_step=8, prefix_bytes=MEGABYTES, room=loaded.footprint.batch(2, 500))
    session.submit(0, tokens, 4)
    most = 0
    session.step()
    while session.engine._prefill.readings:
        (reading,) = session.engine._prefill.readings
        held, limits = reading.snapshots_nbytes, session.engine._limits
        assert held <= limits.snapshots(reading) or len(reading.snapshots) == 1
        assert limits.size([], [reading]) == loaded.footprint.batch(1, 450) + held
        assert session.engine.stats.kv_bytes >= held + sum(layer.nbytes for layer in reading.cache)
        most = max(most, len(reading.snapshots))
        session.step()
    assert 1 < most < 450 // 8
    session.run()
    assert session.generated(0) == greedy(loaded, tokens, 4)
    other = [*tokens[:430], *prompt(20, 1)]
    assert session.ask(other, 4) == greedy(loaded, other, 4)
    assert session.started(1)[-1].cached_tokens > 0


# Who is read first


def test_a_short_newcomer_gets_its_first_token_before_a_long_prompt_that_is_being_read(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16)
    session.submit(0, prompt(400), 5)
    session.step()
    session.step()
    session.submit(1, prompt(10), 5)
    session.step()
    assert session.engine.stats.rows == 1
    session.step()
    assert session.deltas(1)
    assert session.stopped_at < 100
    session.run()
    assert session.generated(0) == greedy(llama, prompt(400), 5)
    assert session.generated(1) == greedy(llama, prompt(10), 5)


@pytest.mark.parametrize("shape", ["llama", "gpt_oss"])
def test_running_rows_get_a_token_at_every_step_while_prompts_are_read(shapes: dict[str, Loaded], shape: str) -> None:
    session = Session(shapes[shape], prefill_step=16, prefix_bytes=MEGABYTES)
    for id in range(3):
        session.submit(id, prompt(5 + id), 60)
    session.until(lambda: all(session.deltas(id) for id in range(3)))
    session.submit(3, prompt(300), 1)
    session.submit(4, prompt(200), 1, n=2)
    session.submit(5, prompt(9), 1)
    while not (session.deltas(3) and session.deltas(4)):
        before = [len(session.generated(id)) for id in range(3)]
        session.read()
        session.step()
        assert [len(session.generated(id)) for id in range(3)] == [count + 1 for count in before]
        assert sum(rows * columns for rows, columns in session.model.shapes if columns > 1) <= 2 * 16
    session.run()
    for id in range(3):
        assert session.generated(id) == greedy(shapes[shape], prompt(5 + id), 60)


def test_a_long_prompt_goes_on_however_many_short_ones_come(llama: Loaded) -> None:
    session = Session(llama, prefill_step=100, max_batch=64)
    session.submit(0, prompt(400), 1)
    id = 0
    while not session.finish(0):
        for _ in range(3):
            id += 1
            session.submit(id, prompt(15, id), 1)
        session.step()
        assert session.steps < 20
    session.run()
    assert session.generated(0) == greedy(llama, prompt(400), 1)


def test_who_comes_while_a_part_of_a_long_prompt_is_read_does_not_wait_for_the_next(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "launching_waits", lambda: False)
    session = Session(llama, prefill_step=64)
    session.submit(0, prompt(400), 1)
    session.step()
    session.read()
    session.submit(1, prompt(20), 5)
    session.step()
    assert session.read() == 20 + 1
    session.step()
    assert session.read() == 64 + 1
    session.submit(2, prompt(21), 5)
    session.step()
    session.submit(3, prompt(22), 5)
    session.step()  # it comes while none is read, and gets half of the room
    assert session.read() == 21 + 2 + 64 + 3


def test_a_long_prompt_is_read_beside_short_ones_a_token_at_a_time_as_well(llama: Loaded) -> None:
    session = Session(llama, prefill_step=1)
    session.submit(0, prompt(60), 2)
    for id in range(1, 20):
        session.submit(id, prompt(1, id), 2)
        session.step()
    session.run()
    assert [session.finish(id) for id in range(20)] == ["length"] * 20
    assert session.generated(0) == greedy(llama, prompt(60), 2)


def test_an_urgent_long_prompt_is_read_before_one_that_is_not(llama: Loaded) -> None:
    session = Session(llama, prefill_step=32)
    session.submit(0, prompt(300), 1, priority=1)
    session.step()
    session.submit(1, prompt(301), 1, priority=0)
    session.until(lambda: session.finish(1))
    assert not session.finish(0)
    session.run()
    assert session.generated(0) == greedy(llama, prompt(300), 1)


def test_a_newcomer_with_little_to_read_does_not_wait_for_the_prompts_of_many_tokens_before_it(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16)
    for id in range(3):
        session.submit(id, prompt(400, id), 4, owner="many")
    session.step()
    session.submit(3, prompt(60), 4, owner="one")
    before = session.steps
    session.until(lambda: session.deltas(3))
    assert session.steps - before <= 2 * 4
    session.run()
    for id in range(3):
        assert session.generated(id) == greedy(llama, prompt(400, id), 4)


def test_the_oldest_prompt_goes_on_however_many_come_that_have_less_to_read(llama: Loaded) -> None:
    session = Session(llama, prefill_step=16)
    session.submit(0, prompt(160), 1)
    for id in range(1, 40):
        session.submit(id, prompt(40, id), 1)
        session.step()
        if session.finish(0):
            break
    assert session.finish(0)


@pytest.mark.parametrize(
    ("cached", "common", "turns", "expected"),
    [
        (0, 31, (), 0),  # too little to have a pass of its own
        (0, 32, (), 32),
        (20, 51, (), 0),
        (20, 52, (), 52),
        (0, 60, (3, 50, 90), 50),  # where the message begins that differs
        (0, 60, (3, 28), 60),  # within a message that has much in common
        (0, 100, (), 0),  # all of it
        (0, 100, (80,), 80),
        (0, 0, (), 0),
    ],
)
def test_a_prompt_forks_where_it_leaves_what_began_another(
    cached: int, common: int, turns: tuple[int, ...], expected: int
) -> None:
    assert prompts.fork(100, cached, common, turns) == expected


def test_a_part_ends_at_the_fork_and_the_prompt_not_before_it() -> None:
    reading = of(None, prompt(100), turns=(90,))
    reading.fork = 50
    assert prompts.next_to_read([reading], 512, Limits().fitting, oldest=True) == ([], reading)
    assert (reading.part(512), reading.part(32)) == (50, 32)
    reading.done = 50
    assert prompts.next_to_read([reading], 512, Limits().fitting, oldest=True) == ([reading], None)
