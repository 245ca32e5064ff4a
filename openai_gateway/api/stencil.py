"""JSON of the SDK's own classes, made once with holes in it, so that a chunk costs no more than what is new in it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

HOLE: Any = uuid.uuid4().hex
"""Stands where something is to be set in. Drawn by each process, so that no text that passes through holds it."""

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""JSON in the very bytes that pydantic writes, of texts and of numbers below 1e16."""


class Stencil:
    """Bytes with holes: wherever `HOLE` stands as a JSON string in `rendered`."""

    def __init__(self, rendered: bytes) -> None:
        self._parts = rendered.replace(b'"%b"' % HOLE.encode(), b"\0\0").split(b"\0")

    def filled(self, *values: bytes) -> bytes:
        """The bytes with these JSON values in the holes, from left to right."""
        parts = self._parts.copy()
        parts[1::2] = values
        return b"".join(parts)
