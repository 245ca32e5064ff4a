from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.types import Failed, ModelSpec, Sampling, Started
from openai_gateway.worker.admission import Limits
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.memory import Footprint
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.reading import Reading
from tests.worker import tiny
from tests.worker.session import SHAPES, Session, alone, greedy, prompt


def begun(session: Session, ids: range) -> list[int]:
    """The requests in the order in which their prompts are begun."""
    order: list[int] = []
    while session.engine.busy:
        session.step()
        order += [id for id in ids if id not in order and session.paths[id]]
    return order


# Who is next


def test_requests_of_one_owner_begin_in_the_order_in_which_they_came(llama: Loaded) -> None:
    session = Session(llama, max_batch=2)
    for id in range(6):
        session.submit(id, prompt(10 + id), 5)
    assert begun(session, range(6)) == [0, 1, 2, 3, 4, 5]


def test_a_lower_priority_number_begins_first(llama: Loaded) -> None:
    session = Session(llama, max_batch=1)
    for id, priority in enumerate([5, 5, 0, -1, 0]):
        session.submit(id, prompt(10 + id), 3, priority=priority)
    assert begun(session, range(5)) == [3, 2, 4, 0, 1]


def test_an_owner_with_one_request_is_not_stuck_behind_fifty_of_another(llama: Loaded) -> None:
    session = Session(llama, max_batch=4)
    for id in range(50):
        session.submit(id, prompt(10), 6, owner="many")
    session.step()
    session.submit(50, prompt(11), 6, owner="one")
    session.until(lambda: session.finish(50))
    assert sum(session.finish(id) is not None for id in range(50)) <= 8
    session.run()
    assert session.generated(50) == greedy(llama, prompt(11), 6)


def test_two_owners_with_many_requests_share_the_batch(llama: Loaded) -> None:
    session = Session(llama, max_batch=6)
    for id in range(20):
        session.submit(id, prompt(10), 20, owner="first")
    for id in range(20, 40):
        session.submit(id, prompt(10), 20, owner="second")
    session.step()
    assert session.ids == {0, 1, 2, 20, 21, 22}


def test_choices_count_for_their_owner_as_requests_do(llama: Loaded) -> None:
    session = Session(llama, max_batch=8)
    session.submit(0, prompt(10), 20, owner="one", n=4)
    for id in range(1, 5):
        session.submit(id, prompt(10), 20, owner="one")
        session.submit(10 + id, prompt(10), 20, owner="other")
    session.step()
    assert session.ids == {0, 11, 12, 13, 14}


def test_a_request_that_waits_is_told_so_once_and_told_again_when_it_begins(llama: Loaded) -> None:
    session = Session(llama, max_batch=1)
    session.submit(0, prompt(20), 10)
    session.submit(1, prompt(21), 10)
    for _ in range(5):
        session.step()
    assert session.events[1] == [Started(21, queued=True)]
    session.run()
    assert session.started(0) == [Started(20)]
    assert session.started(1) == [Started(21, queued=True), Started(21)]
    assert [type(event) for event in session.events[1][:2]] == [Started, Started]


def test_small_requests_do_not_slip_past_one_that_waits_for_room(llama: Loaded) -> None:
    session = Session(llama, max_batch=4)
    session.submit(0, prompt(10), 30, n=2)
    session.submit(1, prompt(10), 5, n=4)
    for id in range(2, 6):
        session.submit(id, prompt(10), 5)
    assert begun(session, range(6)) == [0, 1, 2, 3, 4, 5]


# Memory


def positions(loaded: Loaded, count: int) -> int:
    """Bytes for so many positions."""
    return count * loaded.footprint.per_token


def put_off(caplog: pytest.LogCaptureFixture) -> int:
    return sum("put off" in record.getMessage() for record in caplog.records)


def real(session: Session) -> int:
    """Bytes that the caches take."""
    return session.engine.stats.kv_bytes


def test_a_request_that_can_never_fit_is_refused_and_no_other_one(llama: Loaded) -> None:
    session = Session(llama, room=llama.footprint.batch(2, 60))
    session.submit(0, prompt(20), 10)
    session.submit(1, prompt(55), 10, n=3)
    session.submit(2, prompt(400), 10)
    session.submit(3, prompt(21), 10)
    session.run()
    for id in (1, 2):
        (event,) = [event for event in session.events[id] if isinstance(event, Failed)]
        assert session.events[id] == [event], "it was told before anything else, and accepted never"
        assert (event.error, event.param) == ("InsufficientMemory", "n")
        assert not session.paths[id]
    assert session.generated(0) == greedy(llama, prompt(20), 10)
    assert session.generated(3) == greedy(llama, prompt(21), 10)


def test_a_refused_request_keeps_nobody_from_beginning(llama: Loaded) -> None:
    session = Session(llama, room=llama.footprint.batch(2, 60))
    session.submit(0, prompt(55), 10, n=3)
    session.submit(1, prompt(20), 10)
    session.step()
    assert isinstance(session.events[0][-1], Failed)
    assert session.ids == {1}


def test_what_runs_never_takes_more_than_its_room(llama: Loaded) -> None:
    room = llama.footprint.batch(4, 300)
    session = Session(llama, prefill_step=32, room=room)
    lengths = [5, 150, 20, 280, 33, 90, 7, 200]
    for id, length in enumerate(lengths):
        session.submit(id, prompt(length), 40, n=1 + id % 2)
        session.step()
        assert real(session) <= room
    while session.engine.busy:
        session.step()
        assert real(session) <= room
    for id, length in enumerate(lengths):
        assert [session.generated(id, index) for index in range(1 + id % 2)] == [
            alone(llama, prompt(length), 40) for _ in range(1 + id % 2)
        ]


def test_a_row_that_grows_while_a_long_prompt_is_read_does_not_outgrow_the_memory(llama: Loaded) -> None:
    room = llama.footprint.batch(1, 260) + llama.footprint.batch(1, 525)
    session = Session(llama, prefill_step=1, room=room)
    session.submit(0, prompt(255), 600)
    session.until(lambda: session.deltas(0))
    session.submit(1, prompt(520), 2)
    session.step()
    assert 1 in session.ids
    while session.engine.busy:
        session.step()
        assert real(session) <= room
    assert session.generated(0) == alone(llama, prompt(255), 600)
    assert session.generated(1) == alone(llama, prompt(520), 2)


ROWS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.1, "seed": 4, "top_p": 0.9, "frequency_penalty": 0.6, "presence_penalty": 0.4},
    {"temperature": 0.9, "seed": 5, "n": 2, "logprobs": 2},
    {"logit_bias": {65: 4.0}, "repetition_penalty": 1.3, "stop": ("zq", "7K"), "logprobs": 0},
    {"temperature": 1.3, "seed": 6, "top_k": 20, "stop": ("QZ",), "presence_penalty": 0.5},
]


@pytest.mark.parametrize(
    ("shape", "prefix_bytes", "first"),
    [
        (shape, prefix_bytes, (2 * n + m) % 5)
        for n, shape in enumerate(SHAPES)
        for m, prefix_bytes in enumerate((0, 1 << 20))
    ],
)
def test_rows_that_are_put_off_go_on_with_the_very_same_tokens(
    shapes: dict[str, Loaded], shape: str, prefix_bytes: int, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, rows = shapes[shape], [*ROWS[first:], *ROWS[:first]]
    caplog.set_level(logging.INFO, "openai_gateway.worker.engine")
    session = Session(loaded, prefill_step=32, prefix_bytes=prefix_bytes, room=loaded.footprint.batch(4, 160))
    session.submit(-1, prompt(9), 200)
    session.until(lambda: len(session.deltas(-1)) >= 40)
    for id, settings in enumerate(rows):
        session.submit(id, prompt(10 + id), 60, **settings)
    session.run()
    assert put_off(caplog) > 0
    for id, settings in enumerate(rows):
        cold = Session(loaded)
        cold.submit(id, prompt(10 + id), 60, **settings)
        cold.run()
        for index in range(settings.get("n", 1)):
            assert session.generated(id, index) == cold.generated(id, index)
            assert session.text(id, index) == cold.text(id, index)
            assert session.finish(id, index) == cold.finish(id, index)
            entries, expected = session.entries(id, index), cold.entries(id, index)
            assert [(entry.raw, len(entry.top)) for entry in entries] == [(e.raw, len(e.top)) for e in expected]
            assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in expected], abs=1e-3)
        assert sum(d.tokens for d in session.deltas(id)) == sum(d.tokens for d in cold.deltas(id))
        assert len(session.started(id)) <= 2  # being put off is not reported


def test_the_least_urgent_and_then_the_last_is_put_off(llama: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openai_gateway.worker.engine")
    session = Session(llama, room=llama.footprint.batch(3, 300))
    session.submit(0, prompt(10), 400, priority=1)
    session.submit(1, prompt(11), 400)
    session.submit(2, prompt(12), 400)
    session.run()
    said = [record.getMessage() for record in caplog.records if "put off" in record.getMessage()]
    assert said[0].startswith("request 0 ")
    assert not any(line.startswith("request 1 ") for line in said)
    assert [session.finish(id) for id in range(3)] == ["length"] * 3


def test_an_owner_with_one_request_is_not_put_off_for_the_many_of_another(
    llama: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openai_gateway.worker.engine")
    session = Session(llama, room=llama.footprint.batch(4, 280))
    for id in range(3):
        session.submit(id, prompt(10 + id), 300, owner="many")
    session.step()
    session.submit(3, prompt(10), 300, owner="one")
    session.until(lambda: session.finish(3))
    said = [record.getMessage() for record in caplog.records if "put off" in record.getMessage()]
    assert said and not any(line.startswith("request 3 ") for line in said)


def test_a_put_off_request_that_is_cancelled_does_not_come_back(
    llama: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openai_gateway.worker.engine")
    session = Session(llama, room=llama.footprint.batch(2, 290))
    session.submit(0, prompt(10), 400)
    session.submit(1, prompt(11), 400)
    session.until(lambda: put_off(caplog))
    session.engine.cancel(1)
    before = len(session.events[1])
    session.run()
    assert len(session.events[1]) == before
    assert session.generated(0) == alone(llama, prompt(10), 400)


# Where rows of unlike lengths go

FOOTPRINT = Footprint(per_token=1000)


def test_short_rows_beside_a_long_one_have_a_batch_of_their_own_where_padding_would_cost_much(llama: Loaded) -> None:
    room = positions(llama, 3000)
    session = Session(llama, prefill_step=512, room=room)
    session.submit(0, prompt(450), 20)
    session.submit(1, prompt(10), 20)
    session.submit(2, prompt(12), 20)
    session.until(lambda: all(session.deltas(id) for id in range(3)))
    together = [{row.job.id for row in batch.rows} for batch in session.engine._running.batches]
    assert together == [{1, 2}, {0}] or together == [{0}, {1, 2}]
    session.run()
    for id, length in enumerate((450, 10, 12)):
        assert session.generated(id) == greedy(llama, prompt(length), 20)


def test_where_there_is_memory_enough_all_rows_share_a_batch(llama: Loaded) -> None:
    session = Session(llama, prefill_step=512)
    for id, length in enumerate((450, 10, 12)):
        session.submit(id, prompt(length), 20)
    session.until(lambda: all(session.deltas(id) for id in range(3)))
    assert len(session.engine._running.batches) == 1


def test_a_failing_choice_takes_those_in_another_batch_with_it(
    llama: Loaded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices of one request come into two batches when one of them is put off."""
    caplog.set_level(logging.INFO, "openai_gateway.worker.engine")
    monkeypatch.setattr(Limits, "place", lambda *_: None)
    session = Session(llama)
    session.submit(0, prompt(10), 60, n=2, temperature=1.0)
    session.until(lambda: len(session.generated(0)) > 3 if session.paths[0] else False)
    session.engine._put_off(session.engine._running.batches[0].rows[1])
    session.until(lambda: len(session.engine._running.batches) == 2)
    push = session.paths[0][0].push

    def explode(token: int, entry: Any = None) -> Any:
        push(token, entry)
        raise ZeroDivisionError

    monkeypatch.setattr(session.paths[0][0], "push", explode)
    session.submit(1, prompt(12), 60)
    session.run()
    assert session.errors(0) == ["GatewayError"]
    assert session.generated(1) == greedy(llama, prompt(12), 60)
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1


# Caches that cannot be joined


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    wide = tiny.LLAMA | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder: Path = tiny.save(tmp_path_factory.mktemp("wide"), wide)
    return load(ModelSpec(id="q", path=str(folder), cache_type="quantized", kv_bits=8, kv_group_size=32))


def test_where_caches_cannot_be_joined_one_row_runs_at_a_time(quantized: Loaded) -> None:
    assert not quantized.batched
    session = Session(quantized, prefix_bytes=1 << 20)
    session.submit(0, prompt(50), 10)
    session.submit(1, prompt(40), 10, n=3)
    session.submit(2, prompt(30), 10, temperature=1.0, seed=3, n=2)
    most = 0
    while session.engine.busy:
        session.step()
        most = max(most, session.rows)
    assert most == 1
    assert max(rows for rows, _ in session.model.shapes) == 1
    assert session.generated(0) == alone(quantized, prompt(50), 10)
    assert [session.generated(1, index) for index in range(3)] == [alone(quantized, prompt(40), 10)] * 3
    assert session.generated(2) != session.generated(2, 1)
    assert session.generated(2) == alone(quantized, prompt(30), 10, temperature=1.0, seed=3)
    assert [type(event) for event in session.events[1]].count(Started) <= 2


def test_choices_that_run_one_after_the_other_read_the_prompt_once_if_it_is_kept(quantized: Loaded) -> None:
    session = Session(quantized, prefix_bytes=1 << 20)
    session.submit(1, prompt(100), 4, n=3)
    session.run()
    assert session.engine.stats.read_tokens == 100 + 2


def test_a_choice_of_its_own_that_fails_takes_those_that_wait_with_it(quantized: Loaded) -> None:
    session = Session(quantized)
    session.submit(1, prompt(20), 4, n=3)
    session.submit(2, prompt(21), 4)
    session.model.failures = 1
    session.run()
    assert session.errors(1) == ["Unavailable"]
    assert not session.deltas(1, 1)
    assert session.generated(2) == alone(quantized, prompt(21), 4)


# Arithmetic


def test_snapshots_of_a_prompt_may_take_what_its_keys_and_values_do_or_a_little_of_the_room_if_it_is_there() -> None:
    reading = Reading(Job(0, [1] * 400, Sampling(), 8, chat=False), [1] * 400, range(1))
    reading.done = 100
    assert Limits(room=1_600_000, footprint=FOOTPRINT).snapshots(reading) == 100_000
    assert Limits(room=6_400_000, footprint=FOOTPRINT).snapshots(reading) == 200_000
    assert Limits(room=430_000, footprint=FOOTPRINT).snapshots(reading) == 30_000


def test_limits_refuse_what_does_not_fit_alone() -> None:
    limits = Limits(room=100_000, footprint=FOOTPRINT)
    assert not limits.refuses(1, 99)
    assert limits.refuses(1, 100)
    assert limits.refuses(2, 50)
