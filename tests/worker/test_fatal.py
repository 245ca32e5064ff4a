from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from openai_gateway.worker.admission import Admission
from openai_gateway.worker.fatal import DeviceFailed, advised, raise_if_fatal
from openai_gateway.worker.keeping import Keeping
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.prefixes import Prefixes
from openai_gateway.worker.spill import Spill
from tests.worker.session import MEGABYTES, Session, greedy, prompt
from tests.worker.test_prefixes import PLENTY, Reader

NO_MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
)
TOO_SLOW = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError(NO_MEMORY)


# What an error says


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (NO_MEMORY, "`memory`"),
        (TOO_SLOW, "`prefill_step`"),
        ("[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors) (00000004).", ""),
        ("[metal::malloc] Resource limit (499000) exceeded.", "`prefix_cache`"),
        ("cudaGraphLaunch(graph_exec, stream_) failed: out of memory", "`memory`"),
        ("cudaMallocAsync(&data, size, stream) failed: an illegal memory access was encountered", ""),
        ("cuLaunchKernelEx(&config, func, params, nullptr) failed: unspecified launch failure", ""),
        ("cublasLtMatmul( handle_, matmul_desc_, encoder.stream()) failed with code: 13.", ""),
    ],
)
def test_a_device_that_failed_is_known_by_what_it_says(text: str, advice: str) -> None:
    with pytest.raises(DeviceFailed) as failure:
        raise_if_fatal(RuntimeError(text))
    said = str(failure.value)
    assert said == text if not advice else said.startswith(text) and advice in said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed."),
        RuntimeError("[malloc] Unable to allocate 99999999999 bytes."),
        RuntimeError("cudaMalloc(&data, size) failed: out of memory"),
        RuntimeError("cut() failed: the cudaGraph is of no use"),
        RuntimeError("There is no Stream(gpu, 1) in current thread."),
        ValueError(NO_MEMORY),
        MemoryError(),
    ],
)
def test_other_errors_are_those_of_a_request(error: Exception) -> None:
    raise_if_fatal(error)


def test_advice_is_given_on_what_a_request_failed_with_as_well() -> None:
    assert "lower `memory`" in advised(RuntimeError("[malloc] Unable to allocate 99999999999 bytes."))


# Where it surfaces


@pytest.mark.parametrize("settings", [{}, {"length": 200}, {"echo": "x", "logprobs": 1}])
def test_a_device_that_fails_in_a_step_fails_the_engine_which_keeps_nothing_of_it(
    llama: Loaded, settings: dict[str, Any]
) -> None:
    session = Session(llama, prefix_bytes=MEGABYTES)
    session.submit(1, prompt(100), 50)
    session.until(lambda: session.deltas(1))
    kept = session.engine._prefixes.nbytes
    session.submit(2, prompt(settings.pop("length", 20)), 5, **settings)
    session.model.failures, session.model.failure = 1, RuntimeError(NO_MEMORY)
    with pytest.raises(DeviceFailed, match="Insufficient Memory"):
        session.run()
    assert not session.errors(1) and not session.errors(2)
    assert session.engine._prefixes.nbytes == kept


def test_a_device_that_fails_while_rows_decode_fails_the_engine(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 50)
    session.until(lambda: session.deltas(1))
    session.model.failures, session.model.failure = 1, RuntimeError(TOO_SLOW)
    with pytest.raises(DeviceFailed, match="Impacting Interactivity"):
        session.step()


def test_what_failed_unnoticed_is_noticed_before_anything_is_kept(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(llama, prefix_bytes=MEGABYTES)
    session.submit(1, prompt(100), 5)
    monkeypatch.setattr(mx, "synchronize", failing)
    with pytest.raises(DeviceFailed):
        session.run()
    assert session.engine._prefixes.nbytes == 0


def test_a_device_that_fails_when_a_request_is_cancelled_fails_the_engine(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(llama, prefix_bytes=MEGABYTES)
    session.submit(1, prompt(100), 50)
    session.until(lambda: session.deltas(1))
    monkeypatch.setattr(session.engine._keeping, "row", failing)
    with pytest.raises(DeviceFailed):
        session.engine.cancel(1)


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path, PLENTY, "this model")


@pytest.fixture
def prefixes(spill: Spill) -> Prefixes:
    """They hold a prompt that is not written yet."""
    reader = Reader("llama")
    prefixes = Prefixes(reader.make_cache, capacity=PLENTY, spill=spill)
    reader.keep(prefixes, prompt(40))
    return prefixes


def test_what_failed_unnoticed_is_noticed_before_anything_is_written(
    spill: Spill, prefixes: Prefixes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "synchronize", failing)
    with pytest.raises(DeviceFailed):
        Keeping(prefixes).idle()
    spill.wait()
    assert not list(tmp_path.iterdir())


def test_a_device_that_fails_while_a_file_is_read_is_not_taken_for_a_damaged_file(
    spill: Spill, prefixes: Prefixes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes.shrink(0)
    spill.wait()
    with monkeypatch.context() as broken:
        broken.setattr(mx, "eval", failing)
        with pytest.raises(DeviceFailed):
            prefixes.find("me", prompt(40))
    assert list(tmp_path.iterdir())
    assert prefixes.find("me", prompt(40)).length


# Steps that fail


def fail(session: Session, id: int) -> None:
    """One step, in which a request fails for a reason that is not the device's."""
    session.model.failures = 1
    session.submit(id, prompt(20 + id), 5)
    session.step()
    assert session.errors(id) == ["Unavailable"]


def test_three_steps_that_fail_in_a_row_fail_the_engine(llama: Loaded) -> None:
    session = Session(llama)
    fail(session, 1)
    fail(session, 2)
    session.model.failures = 1
    session.submit(3, prompt(7), 5)
    with pytest.raises(DeviceFailed, match="3 steps in a row"):
        session.step()


def test_a_step_that_works_makes_good_for_those_that_failed_before(llama: Loaded) -> None:
    session = Session(llama)
    for round in range(3):
        fail(session, 3 * round)
        fail(session, 3 * round + 1)
        assert session.ask(prompt(9), 3) == greedy(llama, prompt(9), 3)


def test_requests_that_nothing_can_be_computed_for_because_of_what_they_are_fail_alone(llama: Loaded) -> None:
    session = Session(llama)
    session.model.failure = ValueError("no such shape")
    for id in range(5):
        fail(session, id)
    assert session.ask(prompt(9), 3) == greedy(llama, prompt(9), 3)


def test_requests_that_fail_beside_one_that_is_answered_fail_alone(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(1, prompt(5), 30)
    session.until(lambda: session.deltas(1))
    for id in range(2, 7):
        fail(session, id)
    session.run()
    assert session.generated(1) == greedy(llama, prompt(5), 30)


def test_steps_that_fail_as_a_whole_fail_the_engine_as_well(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise MemoryError

    session = Session(llama)
    monkeypatch.setattr(Admission, "admit", explode)
    for id in (1, 2):
        session.submit(id, prompt(5), 5)
        session.step()
        assert session.errors(id) == ["Unavailable"]
    session.submit(3, prompt(5), 5)
    with pytest.raises(DeviceFailed):
        session.step()
