"""The second tier of the prefix cache: runs of tokens as safetensors files in a folder, capped in bytes.

One file holds one run with its keys and values, its snapshot if it has one, and in its metadata whose it is (a hash),
the run's tokens and a digest of all tokens before it, by which runs are chained again after a restart. A file's name
is a digest of all that. Knows nothing of the tree.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import queue
import re
import threading
import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
from safetensors import TensorSpec, serialize

from openai_gateway.worker.fatal import raise_if_fatal

logger = logging.getLogger(__name__)

FORMAT: Final = "openai-gateway prefix 2"
NAME: Final = re.compile(r"[0-9a-f]{32}(\.part)?\.safetensors")
MAX_HEADER: Final = 2**20
USUAL_HEADER: Final = 2**16
MOST_UNWRITTEN: Final = 2**28
"""Bytes that may wait to be written; what comes on top of them is not kept."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says of itself. `owner` is a hash, `before` the digest of the `start` tokens before the run.

    `snapshot`: whether there is one for the end of the run.
    """

    owner: str
    before: str
    start: int
    run: array[int]
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array as plain bytes: the name of its type, as mlx and safetensors have it, its shape, and what it holds."""

    dtype: str
    shape: tuple[int, ...]
    raw: np.ndarray


class Spill:
    """Files of one model in `folder`, which is made if need be and belongs to that model alone; OSError if it cannot.

    Where another process has the folder now, or another of these in this one, it is `folder`-2, or `folder`-3 …

    `fingerprint` says which model, with which weights and which kind of cache: files with another one are deleted.
    Failures to write or to delete a file are logged, not raised.

    Files are written by a thread of their own, which gets plain bytes: mlx's arrays stay on the thread that owns them.
    """

    def __init__(self, folder: Path, capacity: int, fingerprint: str) -> None:
        self.folder, self._claim = _claim(folder)
        self.nbytes = 0
        self._capacity = capacity
        self._fingerprint = fingerprint
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._stamp = 0
        self._warned = False
        self._lock = threading.Condition()
        """Held to read or change the sizes, what is unwritten, and which files there are."""
        self._unwritten: dict[str, tuple[int, int]] = {}
        """Bytes and time of the last use, by name."""
        self._queue: queue.Queue[tuple[str, dict[str, Tensor], dict[str, str]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write_all, name="spill", daemon=True)
        self._thread.start()

    def scan(self) -> dict[str, Record]:
        """All usable files by name, the least recently used first; reads headers only. The others are deleted."""
        found: list[tuple[int, str, int, Record]] = []
        for entry in os.scandir(self.folder):
            if not NAME.fullmatch(entry.name):
                continue  # not ours
            try:
                about = entry.stat()
                found.append((about.st_mtime_ns, entry.name, about.st_size, self._header(Path(entry.path))))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                logger.warning("ignoring the kept prefix %s: %s", entry.name, error)
                self._unlink(entry.name)
        found.sort(key=lambda item: item[0])
        self._sizes = OrderedDict((name, size) for _, name, size, _ in found)
        self.nbytes = sum(self._sizes.values())
        return {name: record for _, name, _, record in found}

    def write(self, record: Record, arrays: dict[str, mx.array]) -> str | None:
        """The name of the file that is being written; None if it is too large, too much waits already, or there is no
        memory for a copy.

        What cannot be written after all is found missing when it is read. Raises what the device has failed in.
        """
        mx.synchronize()  # else a wrong prefix would be kept for good, with a checksum that is right
        nbytes = sum(x.nbytes for x in arrays.values())
        with self._lock:
            if nbytes > self._capacity or sum(size for size, _ in self._unwritten.values()) + nbytes > MOST_UNWRITTEN:
                return None
        try:
            tensors = {name: _tensor(x) for name, x in arrays.items()}
        except (MemoryError, RuntimeError) as error:
            raise_if_fatal(error)
            self._warn(error)
            return None
        name, metadata = self._name(record), self._metadata(record)
        with self._lock:
            self._unwritten[name] = nbytes, self._now()
            # No less than it will be, so that there are never too many bytes.
            self._account(name, nbytes + len(metadata["run"]) + 1024 + 160 * len(arrays))
        self._queue.put((name, tensors, metadata))
        return name

    def wait(self) -> None:
        """Returns when everything is written."""
        self._queue.join()

    def close(self) -> None:
        """Returns when everything is written, and the folder is anybody's. No other method may be called then."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._claim)

    def read(self, name: str) -> dict[str, mx.array]:
        """The arrays of a file, evaluated, when it is written. ValueError if it is not as it was meant to be."""
        with self._lock:
            self._lock.wait_for(lambda: name not in self._unwritten)
        try:
            loaded: tuple[dict[str, mx.array], dict[str, str]] = mx.load(str(self.folder / name), return_metadata=True)  # type: ignore[assignment]
            arrays, metadata = loaded
            mx.eval(arrays)
            if metadata.get("crc32") != str(_checksum({name: _tensor(x) for name, x in arrays.items()})):
                raise ValueError("its checksum is wrong")
        except (OSError, RuntimeError) as error:
            raise_if_fatal(error)
            raise ValueError(error) from error
        return arrays

    def touch(self, name: str) -> None:
        """This file is used now; remembered in its time of change."""
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
            if name in self._unwritten:
                self._unwritten[name] = self._unwritten[name][0], self._now()
                return
            _set_time(self.folder / name, self._now())

    def delete(self, name: str) -> None:
        with self._lock:
            self._unwritten.pop(name, None)  # so it will not come to be
            self._account(name, None)
            self._unlink(name)
            self._lock.notify_all()

    def excess(self) -> str | None:
        """The least recently used file, if there are too many bytes."""
        with self._lock:
            return next(iter(self._sizes)) if self.nbytes > self._capacity else None

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit without deleting anything."""
        return self.nbytes + nbytes + USUAL_HEADER <= self._capacity

    def _now(self) -> int:
        """Nanoseconds, more each time."""
        self._stamp = max(self._stamp + 1, time.time_ns())
        return self._stamp

    def _account(self, name: str, size: int | None) -> None:
        """A file has this size now, None: it is gone."""
        self.nbytes -= self._sizes.pop(name, 0)
        if size is not None:
            self.nbytes += size
            self._sizes[name] = size

    def _write_all(self) -> None:
        """The writing thread."""
        while (item := self._queue.get()) is not None:
            name, tensors, metadata = item
            part = self.folder / name.replace(".", ".part.")
            size = None
            try:
                _save(part, tensors, metadata | {"crc32": str(_checksum(tensors))})
                size = part.stat().st_size
                self._warned = False
            except Exception as error:  # whatever it is: a reader that waits for the file must not wait for ever
                self._warn(error)
            del item, tensors  # the queue may be empty for long
            self._finish(name, part, size)
            self._queue.task_done()

    def _warn(self, error: Exception) -> None:
        """Say it once, until something is written again."""
        if not self._warned:
            logger.warning("prefixes cannot be kept on disk: %s", error)
        self._warned = True

    def _finish(self, name: str, part: Path, size: int | None) -> None:
        with self._lock:
            wanted = self._unwritten.pop(name, None)
            try:
                if wanted and size is not None:
                    _set_time(part, wanted[1])
                    part.replace(self.folder / name)
                else:
                    self._unlink(part.name)
            except OSError as error:
                logger.warning("cannot keep the prefix %s: %s", name, error)
                size = None
            if wanted and size is None:
                self._account(name, None)
            elif wanted and size is not None:
                self.nbytes += size - self._sizes[name]
                self._sizes[name] = size
            self._lock.notify_all()

    def _name(self, record: Record) -> str:
        parts = [FORMAT, self._fingerprint, record.owner, record.before, str(record.start), str(record.snapshot)]
        return digest(["\0".join(parts).encode(), record.run]) + ".safetensors"

    def _metadata(self, record: Record) -> dict[str, str]:
        return {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "owner": record.owner,
            "before": record.before,
            "start": str(record.start),
            "run": base64.b64encode(record.run).decode(),
            "snapshot": str(int(record.snapshot)),
        }

    def _header(self, path: Path) -> Record:
        """ValueError and its like if the file is not one of ours, whole and for this model."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_HEADER:
                raise ValueError("it has no safetensors header")
            header: dict[str, Any] = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        metadata = header.pop("__metadata__")
        if size != 8 + length + max((int(x["data_offsets"][1]) for x in header.values()), default=0):
            raise ValueError("it is not whole")
        if (metadata["format"], metadata["fingerprint"]) != (FORMAT, self._fingerprint):
            raise ValueError("it belongs to another model or version")
        run = array("I", base64.b64decode(metadata["run"], validate=True))
        record = Record(metadata["owner"], metadata["before"], int(metadata["start"]), run, metadata["snapshot"] == "1")
        if not run or self._name(record) != path.name:
            raise ValueError("it is not what its name says")
        return record

    def _unlink(self, name: str) -> None:
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot delete the kept prefix %s: %s", name, error)


def digest(parts: Iterable[Any]) -> str:
    """One digest for all these bytes, wherever they are divided."""
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def _claim(folder: Path) -> tuple[Path, int]:
    """The first of `folder`, `folder`-2 … that nobody else has, and what holds it as long as this process lives."""
    own, number = folder, 1
    while (claim := _lock(own)) is None:
        number += 1
        own = folder.with_name(f"{folder.name}-{number}")
    return own, claim


def _lock(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # these are people's conversations
    claim = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return None
    except OSError as error:  # some network file systems have no locks
        logger.warning("whether %s is in use already cannot be told: %s", folder, error)
    return claim


def _set_time(path: Path, stamp: int) -> None:
    try:
        os.utime(path, ns=(stamp, stamp))
    except OSError as error:
        logger.debug("cannot touch the kept prefix %s: %s", path.name, error)


def _tensor(x: mx.array) -> Tensor:
    """A copy of an evaluated array."""
    raw: Any = x.flatten().view(mx.uint8)
    return Tensor(str(x.dtype).removeprefix("mlx.core."), tuple(x.shape), np.array(raw, dtype=np.uint8))


def _checksum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name, x in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {x.dtype} {x.shape}".encode(), value)
        value = zlib.crc32(x.raw.data, value)
    return value


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """OSError or SafetensorError if that fails."""
    specs = {
        name: TensorSpec(dtype=x.dtype, shape=x.shape, data_ptr=x.raw.ctypes.data, data_len=x.raw.nbytes)
        for name, x in tensors.items()
    }
    path.write_bytes(serialize(specs, metadata))
