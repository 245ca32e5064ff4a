"""Log-probabilities in the two forms of OpenAI's API: entries for chat, parallel arrays for completions.

The fields stand in the order of the SDK's classes. An answer can hold a hundred thousand alternatives, for which those
classes take seconds.
"""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import astuple, fields, replace

from openai_gateway.api.stencil import HOLE, Stencil, encode
from openai_gateway.types import AT_ONCE, Delta, TokenLogprob

FLOOR = -9999.0
"""Stands for the log of zero: minus infinity is no JSON."""


class Alternative(Struct, gc=False):
    token: str
    bytes: list[int]
    logprob: float


class Entry(Struct, gc=False):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[Alternative]


def entries(logprobs: Sequence[TokenLogprob]) -> list[Entry]:
    """What `choice.logprobs.content` holds."""
    return [
        Entry(
            entry.token,
            list(entry.raw),
            max(entry.logprob or 0.0, FLOOR),
            [Alternative(token, list(raw), max(value, FLOOR)) for token, raw, value in entry.top],
        )
        for entry in logprobs
    ]


async def all_entries(logprobs: Sequence[TokenLogprob]) -> bytes:
    """The JSON of `entries`, made with pauses in which others are served."""
    pieces = []
    for piece in in_pieces(logprobs):
        pieces.append(encode(entries(piece))[1:-1])
        await asyncio.sleep(0)
    return b"[%b]" % b",".join(pieces)


def in_pieces(logprobs: Sequence[TokenLogprob]) -> Iterator[Sequence[TokenLogprob]]:
    """Those of a whole answer, in pieces that can be rendered at once."""
    return (logprobs[start : start + AT_ONCE] for start in range(0, len(logprobs), AT_ONCE))


def sliced(delta: Delta) -> Iterator[Delta]:
    """A delta in parts that can be rendered at once: all of its text in the first, its end in the last."""
    part = delta
    while len(part.logprobs) > AT_ONCE:
        yield replace(part, logprobs=part.logprobs[:AT_ONCE], finish=None)
        part = replace(part, content="", reasoning="", logprobs=part.logprobs[AT_ONCE:])
    yield part


class Arrays(Struct):
    """`choice.logprobs` of a completion."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


WHOLE = Stencil(encode(Arrays(HOLE, HOLE, HOLE, HOLE)))


class Layout:
    """Makes the arrays of one choice; offsets go on from one piece to the next."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def arrays(self, entries: Sequence[TokenLogprob], text: str) -> Arrays:
        """Arrays for these tokens of `text`; `text_offset` counts characters from the start of the choice's text."""
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            # A token that begins a prompt without standing in it was put there by the tokenizer. Of the tokens that
            # make up one character, the last one has it.
            if entry.logprob is not None or _starts(text, entry.raw):
                self._offset += len(self._decoder.decode(entry.raw))
        return Arrays(
            text_offset=offsets,
            token_logprobs=[None if e.logprob is None else max(e.logprob, FLOOR) for e in entries],
            tokens=[_spelled(entry.token, entry.raw) for entry in entries],
            top_logprobs=[_top(entry) for entry in entries],
        )

    async def all_arrays(self, pieces: Iterable[Sequence[TokenLogprob]], text: str) -> bytes:
        """The JSON of the same for a whole answer, with pauses in which others are served."""
        columns: list[list[bytes]] = [[] for _ in fields(Arrays)]
        for piece in filter(None, pieces):
            for column, values in zip(columns, astuple(self.arrays(piece, text)), strict=True):
                column.append(encode(values)[1:-1])
            await asyncio.sleep(0)
        return WHOLE.filled(*(b"[%b]" % b",".join(column) for column in columns))


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and always the actual one as well: lm-eval-harness compares the two."""
    if entry.logprob is None:
        return None
    top = {_spelled(token, raw): max(value, FLOOR) for token, raw, value in reversed(entry.top)}
    return top | {_spelled(entry.token, entry.raw): max(entry.logprob, FLOOR)}


def _spelled(token: str, raw: bytes) -> str:
    """A token's text. A part of a character is `bytes:` and its bytes, as in OpenAI's old models.

    The arrays hold no bytes besides, and as text all such tokens are the same.
    """
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + raw.decode("ascii", "backslashreplace")
    return token


def _starts(text: str, raw: bytes) -> bool:
    """Whether a text begins with a token, which may be a part of its first character."""
    return text[: len(raw)].encode(errors="replace").startswith(raw)
