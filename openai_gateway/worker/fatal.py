"""What a worker cannot go on after, and what is to be done about it.

A GPU runs behind our back: what fails there is stored in its stream, and thrown once, as a plain RuntimeError, out of
whatever waits for the stream next (mlx 0.32: `error.h`, `scheduler.h`). Whose work it was is not said, so nothing that
was computed since the last wait can be trusted; and after several of these, Metal's driver ignores all that the process
submits. Texts are those of mlx 0.32's Metal and CUDA libraries.
"""

from __future__ import annotations

import re

MOST = 3
"""Steps in a row that may fail."""

STATUS = 70
"""What a worker exits with that cannot go on: EX_SOFTWARE of sysexits.h."""

# Not here, for the allocator throws them before anything is submitted: "[metal::malloc] Attempting to allocate" more
# than one buffer holds, and "[malloc] Unable to allocate".
LASTING = re.compile(
    r"\[METAL\]"  # what was submitted: no memory, too slow for the display, a fault, ignored after others
    r"|\[metal::malloc\] Resource limit"  # each later allocation fails as well
    r"|\[metal::CommandEncoder\]|\[Event::Event\]"
    r"|^(?!cudaMalloc\w*\(.*out of memory)cu(da|blas|dnn|solver|[A-Z])\w*\(.*\) failed"
)

ADVICE = (
    (r"resource limit", "Metal has no more buffers; lower `prefix_cache`, whose runs take many"),
    (r"insufficient memory|unable to allocate|out ?of ?memory", "there is too little memory; lower `memory`"),
    (
        r"interactivity|timeout",
        "macOS ends what holds the display up; lower `prefill_step`, or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1",
    ),
)


class DeviceFailed(BaseException):
    """Nothing can be computed any more, and the process has to end. No request's own failure, hence no Exception."""


def raise_if_fatal(error: Exception) -> None:
    """Raises `DeviceFailed` if no later computation can be trusted; to be asked wherever mlx's errors are caught."""
    if isinstance(error, RuntimeError) and LASTING.search(str(error)):
        raise DeviceFailed(advised(error)) from error


def advised(error: Exception) -> str:
    """What an error says, and what to do about it where that is known."""
    text = str(error)
    advice = next((advice for pattern, advice in ADVICE if re.search(pattern, text, re.IGNORECASE)), None)
    return text if advice is None else f"{text} ({advice})"


class Failures:
    """Counts the steps in a row in which something could not be computed, and of which nothing else came."""

    def __init__(self) -> None:
        self._failed = False
        self._steps = 0

    def add(self, error: Exception, *, of_all: bool = False) -> None:
        """What a part of a step failed with, or the step itself. Raises `DeviceFailed` if no other can go on."""
        raise_if_fatal(error)
        # These are mlx's; any other is of one request alone.
        self._failed |= of_all or isinstance(error, RuntimeError | MemoryError)

    def end_step(self, *, fruitful: bool) -> None:
        """Raises `DeviceFailed` when that was the last one to be tried."""
        self._steps = self._steps + 1 if self._failed and not fruitful else 0
        self._failed = False
        if self._steps == MOST:
            raise DeviceFailed(f"{MOST} steps in a row have failed")
