"""What the engine keeps of prompts and answers, and what that spares those who come after."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from openai_gateway.types import Started
from openai_gateway.worker.engine import FETCHING
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.prefixes import RUN
from openai_gateway.worker.spill import Spill
from tests.worker.session import MEGABYTES, SHAPES, Session, alone, greedy, prompt

RESUMABLE = {"gpt_oss": 1, "demo": 1, "recurrent": 0}
"""Models that can only go on from a snapshot, and how far before the end of a prompt its last one is.

There is one after each part of a prompt as well, and one at the end of the answer."""
TRIMMABLE = sorted(SHAPES.keys() - RESUMABLE.keys())


def keeping(loaded: Loaded, *, prefill_step: int = 64, shared: bool = False, nbytes: int = MEGABYTES) -> Session:
    return Session(loaded, prefill_step=prefill_step, prefix_bytes=nbytes, shared=shared)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_the_next_turn_reads_only_what_is_new(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    session = keeping(loaded)
    text = prompt(100)
    text += session.ask(text, 40)
    session.read()
    text += prompt(20, 1)
    expected = greedy(loaded, text, 6)
    assert session.ask(text, 6) == expected
    # The last token of the first answer was reported and never read; five of six are read to generate the next.
    assert session.read() == 21 + 5
    assert session.started(1)[-1].cached_tokens == 139
    text += expected
    text += prompt(50, 2)
    assert session.ask(text, 6) == greedy(loaded, text, 6)
    assert session.started(2)[-1].cached_tokens >= 139 + 20


@pytest.mark.parametrize(("length", "cached"), [(100, 111), (20, 0)])
def test_a_short_answer_is_kept_where_it_would_be_work_to_read_it_again(
    llama: Loaded, length: int, cached: int
) -> None:
    session = keeping(llama)
    text = prompt(length)
    text += session.ask(text, 12)
    session.ask([*text, *prompt(5, 1)], 1)
    assert session.started(1)[-1].cached_tokens == cached


@pytest.mark.parametrize("shape", [*TRIMMABLE, "gpt_oss", "demo"])
def test_a_prompt_sent_again_reads_its_last_token_only(shapes: dict[str, Loaded], shape: str) -> None:
    session = keeping(shapes[shape])
    first = session.ask(prompt(100), 1)
    session.read()
    assert session.ask(prompt(100), 1) == first
    assert session.read() == 1
    assert session.started(1)[-1].cached_tokens == 99


def test_a_recurrent_model_goes_on_from_before_the_last_part_of_a_prompt_sent_again(shapes: dict[str, Loaded]) -> None:
    session = keeping(shapes["recurrent"], prefill_step=32)
    first = session.ask(prompt(100), 1)
    session.read()
    assert session.ask(prompt(100), 1) == first
    assert session.read() == 4
    assert session.started(1)[-1] == Started(100, 96, 100)


@pytest.mark.parametrize("shape", ["gpt_oss", "demo", "recurrent"])
def test_what_two_short_prompts_begin_with_is_not_read_for_the_third(shapes: dict[str, Loaded], shape: str) -> None:
    """Also where it can only be entered at a snapshot, and prompts are too short to be read in parts."""
    loaded = shapes[shape]
    session = keeping(loaded, prefill_step=512)
    texts = [prompt(50) + prompt(12, seed) for seed in (1, 2, 3, 4)]
    for text in texts:
        assert session.ask(text, 4) == greedy(loaded, text, 4)
    assert [session.started(id)[-1].cached_tokens for id in range(4)] == [0, 0, 50, 50]


def test_of_those_that_come_together_one_makes_the_others_way_shorter(shapes: dict[str, Loaded]) -> None:
    session = keeping(shapes["gpt_oss"], prefill_step=512)
    session.ask(prompt(50) + prompt(12, 1), 4)
    session.read()
    for id in range(1, 5):
        session.submit(id, prompt(50) + prompt(12, 1 + id), 4)
    session.step()
    session.step()
    assert [shape for shape in session.model.shapes if shape[1] > 1][:2] == [(3, 62), (1, 50)]  # three as ever
    session.run()
    for id in range(1, 5):
        assert session.generated(id) == greedy(shapes["gpt_oss"], prompt(50) + prompt(12, 1 + id), 4)
    session.ask(prompt(50) + prompt(12, 9), 4)
    assert session.started(5)[-1].cached_tokens == 50


def test_who_has_much_in_common_with_one_that_forks_waits_for_it(shapes: dict[str, Loaded]) -> None:
    session = keeping(shapes["gpt_oss"], prefill_step=512)
    session.ask(prompt(200) + prompt(12, 1), 4)
    for id in (1, 2):
        session.submit(id, prompt(200) + prompt(12, 1 + id), 4)
    session.run()
    assert [session.started(id)[-1].cached_tokens for id in (1, 2)] == [0, 200]


@pytest.mark.parametrize("diverged", [1, 15, 16, 17, 31, 32, 33, 50, 63, 64, 65, 95, 96, 97, 99, 100, 110, 139, 140])
@pytest.mark.parametrize("shape", ["llama", "gpt_oss", "recurrent"])
def test_a_prompt_that_leaves_a_kept_one_anywhere_is_answered_as_by_a_cold_engine(
    shapes: dict[str, Loaded], shape: str, diverged: int
) -> None:
    loaded = shapes[shape]
    session = keeping(loaded, prefill_step=32)
    text = prompt(100)
    text += session.ask(text, 40)
    other = [*text[:diverged], *prompt(20, 7)]
    assert other[diverged : diverged + 1] != text[diverged : diverged + 1]
    expected = greedy(loaded, other, 20)
    assert session.ask(other, 20) == expected
    started = session.started(1)[-1]
    common = min(diverged, 139)  # the last token of the answer was not read
    resumable = range(140) if shape in TRIMMABLE else (0, 32, 64, 96, 100 - RESUMABLE[shape], 139)
    newest = max(n for n in resumable if n <= common)
    assert (started.diverged_at, started.cached_tokens) == (common, newest)
    # What the first conversation left has not suffered.
    text += prompt(5, 9)
    assert session.ask(text, 10) == greedy(loaded, text, 10)


def test_on_the_embedded_model_a_diverging_conversation_reads_a_part(shapes: dict[str, Loaded]) -> None:
    loaded = shapes["demo"]
    session = keeping(loaded, prefill_step=128)
    text = prompt(500)
    session.ask(text, 20)
    for diverged in (150, 300, 499):
        session.read()
        other = [*text[:diverged], *prompt(30, diverged)]
        assert session.ask(other, 4) == greedy(loaded, other, 4)
        assert session.read() <= 128 + 30 + 8


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_a_cancelled_prefill_is_kept_and_the_retry_goes_on_where_it_stopped(
    shapes: dict[str, Loaded], shape: str
) -> None:
    session = keeping(shapes[shape], prefill_step=32)
    text = prompt(200)
    session.submit(0, text, 5)
    session.until(lambda: session.stopped_at >= 128)
    stopped = session.stopped_at
    session.engine.cancel(0)
    session.engine.settle()
    session.read()
    expected = greedy(shapes[shape], text, 5)
    assert session.ask(text, 5) == expected
    assert session.started(1)[-1] == Started(200, stopped, stopped)
    assert session.read() == 200 - stopped + 4


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_a_cancelled_answer_is_kept(shapes: dict[str, Loaded], shape: str, beside: bool, n: int) -> None:
    loaded = shapes[shape]
    session = keeping(loaded)
    if beside:
        session.submit(9, prompt(70, 3), 200)
    session.submit(0, prompt(50), 1000, n=n)
    session.until(lambda: len(session.generated(0)) >= 60 if session.paths[0] else False)
    said = list(session.generated(0))
    session.engine.cancel(0)
    session.engine.settle()
    text = [*prompt(50), *said, *prompt(3, 1)]
    session.submit(1, text, 5)
    session.until(lambda: session.finish(1))
    assert session.generated(1) == greedy(loaded, text, 5)
    assert session.started(1)[-1].cached_tokens >= len(text) - 3 - RESUMABLE.get(shape, 0)
    session.engine.cancel(9)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_prompts_read_together_are_kept_one_by_one(shapes: dict[str, Loaded], shape: str) -> None:
    session = keeping(shapes[shape], prefill_step=256)
    lengths = (50, 50, 50) if shape == "recurrent" else (40, 50, 60)
    prompts = [prompt(length, seed) for seed, length in enumerate(lengths)]
    for id, text in enumerate(prompts):
        session.submit(id, text, 3)
    session.run()
    assert max(rows for rows, columns in session.model.shapes if columns > 1) == 3
    for text in prompts:
        longer = [*text, *prompt(7, 1)]
        assert session.ask(longer, 4) == greedy(shapes[shape], longer, 4)
        assert session.started(max(session.events))[-1].cached_tokens >= len(text) - 1


def test_g23_an_owner_does_not_find_what_another_one_asked(llama: Loaded) -> None:
    session = keeping(llama)
    session.ask(prompt(100), 4, owner="one")
    session.ask(prompt(100), 4, owner="other")
    assert session.started(1)[-1] == Started(100, 0, None)
    session.ask(prompt(100), 4, owner="one")
    assert session.started(2)[-1] == Started(100, 99, 100)


def test_shared_prefixes_are_found_by_all(llama: Loaded) -> None:
    session = keeping(llama, shared=True)
    session.ask(prompt(100), 4, owner="one")
    session.ask(prompt(100), 4, owner="other")
    assert session.started(1)[-1] == Started(100, 99, 100)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_eight_prompts_alike_submitted_at_once_are_read_once(shapes: dict[str, Loaded], shape: str) -> None:
    session = keeping(shapes[shape])
    expected = greedy(shapes[shape], prompt(300), 4)
    for id in range(8):
        session.submit(id, prompt(300), 4)
    session.run()
    assert [session.generated(id) for id in range(8)] == [expected] * 8
    again = 300 - 256 if shape == "recurrent" else 1
    assert session.engine.stats.read_tokens == 300 + 7 * again
    assert session.engine.stats.cached_tokens == 7 * (300 - again)


def test_prompts_alike_of_two_owners_do_not_wait_for_each_other(llama: Loaded) -> None:
    session = keeping(llama)
    session.submit(0, prompt(300), 4, owner="one")
    session.submit(1, prompt(300), 4, owner="other")
    session.step()
    assert session.ids == {0, 1}
    session.run()
    assert session.engine.stats.read_tokens == 600


def begun_in_first_step(session: Session, id: int) -> bool:
    while not any(reading.job.id == 0 for reading in session.engine._prefill.readings):
        session.step()
    session.submit(id, prompt(140) + prompt(10, seed=1), 2)
    session.step()
    return bool(session.deltas(id)) or id in session.ids


@pytest.mark.parametrize(("length", "priority", "waits"), [(160, 0, True), (400, 0, False), (160, 9, False)])
def test_nobody_waits_for_much_more_than_it_spares_nor_for_work_that_can_wait(
    llama: Loaded, length: int, priority: int, waits: bool
) -> None:
    session = keeping(llama, prefill_step=8)
    session.submit(0, prompt(140) + prompt(length - 140, seed=2), 2, priority=priority)
    assert begun_in_first_step(session, 1) is not waits
    session.run()
    assert session.generated(1) == greedy(llama, prompt(140) + prompt(10, seed=1), 2)


def test_with_windows_nobody_waits_where_no_snapshot_will_be_left(shapes: dict[str, Loaded]) -> None:
    session = keeping(shapes["gpt_oss"], prefill_step=150)
    session.submit(0, prompt(140) + prompt(60, seed=2), 2)
    assert begun_in_first_step(session, 1)


def test_who_waits_behind_a_prompt_that_is_cancelled_goes_on_from_where_that_one_was(llama: Loaded) -> None:
    session = keeping(llama, prefill_step=32)
    session.submit(0, prompt(300), 4)
    session.submit(1, prompt(300), 4)
    session.until(lambda: session.stopped_at >= 160)
    stopped = session.stopped_at
    assert session.ids == {0}
    session.engine.cancel(0)
    session.engine.settle()
    session.run()
    assert session.generated(1) == greedy(llama, prompt(300), 4)
    assert session.started(1)[-1] == Started(300, stopped, stopped)


def test_who_waits_behind_a_prompt_that_fails_reads_it_alone(llama: Loaded) -> None:
    session = keeping(llama, prefill_step=32)
    session.submit(0, prompt(300), 4)
    session.submit(1, prompt(300), 4)
    session.step()
    session.model.failures = 1
    session.run()
    assert session.errors(0) == ["Unavailable"]
    assert session.generated(1) == greedy(llama, prompt(300), 4)


def test_without_bytes_nothing_is_kept_and_nobody_waits_behind_anybody(llama: Loaded) -> None:
    session = keeping(llama, nbytes=0)
    for id in range(3):
        session.submit(id, prompt(300), 4)
    session.step()
    assert session.ids == {0, 1, 2}
    session.run()
    assert session.engine.stats.read_tokens == 900
    assert session.engine.stats.prefix_bytes == 0
    assert all(started == Started(300) for id in range(3) for started in session.started(id))


class SlowDisk(Spill):
    """One that reads a run in the time that a step has for reading, and counts the runs."""

    runs = 0

    def read(self, name: str) -> dict[str, mx.array]:
        time.sleep(FETCHING)
        self.runs += 1
        return super().read(name)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    disk = SlowDisk(tmp_path / "prefixes", 1 << 30, "a model")
    yield disk
    disk.close()


def on_disk(loaded: Loaded, disk: Spill, tokens: list[int], *, nbytes: int = MEGABYTES) -> Session:
    """An engine that has read these tokens, and has them on disk only."""
    session = Session(loaded, prefill_step=512, prefix_bytes=nbytes, spill=disk)
    session.ask(tokens, 1)
    session.engine._prefixes.shrink(0)
    disk.wait()
    return session


@pytest.mark.parametrize("shape", ["llama", "gpt_oss", "recurrent"])
def test_a_long_prefix_comes_from_disk_while_others_are_answered(
    shapes: dict[str, Loaded], shape: str, disk: SlowDisk
) -> None:
    session = on_disk(shapes[shape], disk, prompt(4 * RUN) + prompt(8, 1))
    text = prompt(4 * RUN) + prompt(8, 2)
    session.submit(1, prompt(20), 30)
    session.until(lambda: session.deltas(1))
    session.submit(2, text, 4)
    session.step()
    session.submit(3, prompt(30), 1)
    while not session.started(2):
        runs, tokens = disk.runs, len(session.generated(1))
        session.step()
        assert disk.runs <= runs + 1
        assert len(session.generated(1)) == tokens + 1
    assert session.finish(3) == "length"  # it has not waited for the disk
    assert disk.runs >= 4
    session.run()
    assert session.started(2)[-1].cached_tokens >= 4 * RUN
    assert session.generated(2) == alone(shapes[shape], text, 4)


def test_a_prefix_that_memory_has_no_room_for_is_used_as_far_as_it_has(llama: Loaded, disk: SlowDisk) -> None:
    text = prompt(4 * RUN) + prompt(8, 1)
    session = on_disk(llama, disk, text, nbytes=600_000)  # two of its runs, and not a third
    session.submit(1, text, 4)
    session.run()
    assert session.started(1)[-1].cached_tokens == 2 * RUN
    assert disk.runs == 5  # the third was tried before, while and after the prompt was read, and not for ever
    assert session.generated(1) == greedy(llama, text, 4)


@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_when_all_is_done_only_prefixes_hold_memory_and_they_give_it_back(
    shapes: dict[str, Loaded], shape: str
) -> None:
    session = keeping(shapes[shape])
    session.ask(prompt(20), 4)
    session.engine._prefixes.shrink(0)
    gc.collect()
    before = mx.get_active_memory()
    for id in range(1, 12):
        session.submit(id, prompt(10 * id), 20, n=1 + id % 2, temperature=1.0)
        session.step()
    session.engine.cancel(3)
    session.run()
    assert session.engine.stats.prefix_bytes > 0
    session.engine._prefixes.shrink(0)
    gc.collect()
    assert session.engine.stats.prefix_bytes == session.engine.stats.kv_bytes == 0
    assert mx.get_active_memory() - before < 40_000
