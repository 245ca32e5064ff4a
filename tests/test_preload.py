from __future__ import annotations

import ctypes.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_gateway import blas, preload
from tests.support import MODEL, running
from tests.test_blas import BUNDLED, origin

pytestmark = pytest.mark.skipif(not blas.replaceable(), reason="only processes on a Linux CPU have anything preloaded")

JEMALLOC = ctypes.util.find_library("jemalloc")
needs_jemalloc = pytest.mark.skipif(JEMALLOC is None, reason="needs jemalloc")


@pytest.fixture(autouse=True)
def _forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test chooses anew, where nothing is preloaded yet and no environment has a library."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    preload.choose.cache_clear()
    yield
    preload.choose.cache_clear()


def chosen(allocator: str = "auto", wanted: str = "none") -> blas.Choice:
    choice = preload.choose(wanted, allocator)
    assert choice is not None
    return choice


@needs_jemalloc
def test_mlx_takes_its_memory_from_jemalloc_where_there_is_one() -> None:
    choice = chosen()
    assert Path(origin(choice.environment, "malloc")).name.startswith("libjemalloc")
    assert choice.summary.endswith(f"and takes memory from {JEMALLOC}")


@needs_jemalloc
def test_the_one_of_the_environment_comes_before_the_systems(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "libjemalloc.so.2"
    library.parent.mkdir()
    shutil.copyfile(origin({"LD_PRELOAD": str(JEMALLOC)}, "malloc"), library)
    assert chosen().environment == {"LD_PRELOAD": str(library)}


def test_a_file_that_is_no_such_library_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: str(BUNDLED) if name == "jemalloc" else None)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libjemalloc.so.2").write_text("no library")
    assert chosen().environment == {}
    assert preload.ADVICE in chosen().summary


def test_none_preloads_nothing_and_says_so() -> None:
    assert chosen("none").environment == {}
    assert chosen("none").summary.endswith("the system's malloc, as `allocator: none` asks")


@needs_jemalloc
def test_it_comes_behind_the_blas_and_what_is_preloaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libgcc_s.so.1")
    assert chosen().environment["LD_PRELOAD"] == f"libgcc_s.so.1:{JEMALLOC}"
    assert chosen(wanted=str(BUNDLED)).environment["LD_PRELOAD"] == f"{BUNDLED}:libgcc_s.so.1:{JEMALLOC}"


@pytest.mark.parametrize("allocator", ["auto", "none"])
def test_an_operators_own_allocator_stays_the_only_one(allocator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc_minimal.so.4")
    assert chosen(allocator).environment == {}
    assert chosen(allocator).summary.endswith("takes memory from what LD_PRELOAD names")


@needs_jemalloc
def test_workers_are_started_with_it_and_the_log_says_so(tmp_path: Path) -> None:
    with running(tmp_path, blas="none") as server:
        preloaded = server.worker().environ()["LD_PRELOAD"]
        assert Path(preloaded).name.startswith("libjemalloc")
        assert f"takes memory from {preloaded}" in server.log.read_text()
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
