"""The second tier of the prefix cache: runs of tokens as safetensors files in a folder, capped in bytes.

One file holds one run with its keys and values, its snapshot if it has one, and in its metadata whose it is (a hash),
the run's tokens and a digest of all tokens before it, by which runs are chained again after a restart. A file's name
is a digest of all that. Knows nothing of the tree.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
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

logger = logging.getLogger(__name__)

FORMAT: Final = "openai-gateway prefix 1"
NAME: Final = re.compile(r"[0-9a-f]{32}(\.part)?\.safetensors")
MAX_HEADER: Final = 2**20
USUAL_HEADER: Final = 2**16


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


class Spill:
    """Files of one model in `folder`, which is made if need be and belongs to that model alone; OSError if it cannot.

    `fingerprint` says which model, with which weights and which kind of cache: files with another one are deleted.
    Failures to write or to delete a file are logged, not raised.
    """

    def __init__(self, folder: Path, capacity: int, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # these are people's conversations
        self.nbytes = 0
        self._folder = folder
        self._capacity = capacity
        self._fingerprint = fingerprint
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._stamp = 0
        self._warned = False

    def scan(self) -> dict[str, Record]:
        """All usable files by name, the least recently used first; reads headers only. The others are deleted."""
        found: list[tuple[int, str, int, Record]] = []
        for entry in os.scandir(self._folder):
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
        """The name of the new file; None if it could not be written, or is larger than the whole capacity."""
        if sum(x.nbytes for x in arrays.values()) > self._capacity:
            return None
        name = self._name(record)
        part = self._folder / name.replace(".", ".part.")
        metadata = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "owner": record.owner,
            "before": record.before,
            "start": str(record.start),
            "run": base64.b64encode(record.run).decode(),
            "snapshot": str(int(record.snapshot)),
        }
        try:
            mx.save_safetensors(str(part), arrays, metadata | {"crc32": str(_checksum(arrays))})
            size = part.stat().st_size
            part.replace(self._folder / name)
        except (OSError, RuntimeError) as error:  # mlx raises the latter on a full disk
            if not self._warned:
                logger.warning("prefixes cannot be kept on disk: %s", error)
            self._warned = True
            self._unlink(part.name)
            return None
        self._warned = False
        self.nbytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        return name

    def read(self, name: str) -> dict[str, mx.array]:
        """The arrays of a file, evaluated. ValueError if it is not as it was written."""
        try:
            loaded: tuple[dict[str, mx.array], dict[str, str]] = mx.load(str(self._folder / name), return_metadata=True)  # type: ignore[assignment]
            arrays, metadata = loaded
            mx.eval(arrays)
            if metadata.get("crc32") != str(_checksum(arrays)):
                raise ValueError("its checksum is wrong")
        except (OSError, RuntimeError) as error:
            raise ValueError(error) from error
        return arrays

    def touch(self, name: str) -> None:
        """This file is used now; remembered in its time of change."""
        self._sizes.move_to_end(name)
        self._stamp = max(self._stamp + 1, time.time_ns())
        try:
            os.utime(self._folder / name, ns=(self._stamp, self._stamp))
        except OSError as error:
            logger.debug("cannot touch the kept prefix %s: %s", name, error)

    def delete(self, name: str) -> None:
        self.nbytes -= self._sizes.pop(name, 0)
        self._unlink(name)

    def excess(self) -> str | None:
        """The least recently used file, if there are too many bytes."""
        return next(iter(self._sizes)) if self.nbytes > self._capacity else None

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit without deleting anything."""
        return self.nbytes + nbytes + USUAL_HEADER <= self._capacity

    def _name(self, record: Record) -> str:
        parts = [FORMAT, self._fingerprint, record.owner, record.before, str(record.start), str(record.snapshot)]
        return digest(["\0".join(parts).encode(), record.run]) + ".safetensors"

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
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot delete the kept prefix %s: %s", name, error)


def digest(parts: Iterable[Any]) -> str:
    """One digest for all these bytes, wherever they are divided."""
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def _checksum(arrays: dict[str, mx.array]) -> int:
    value = 0
    for name, x in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {x.dtype} {x.shape}".encode(), value)
        if x.size:
            raw: Any = x.flatten().view(mx.uint8)  # a buffer, which its stubs do not say
            value = zlib.crc32(raw, value)
    return value
