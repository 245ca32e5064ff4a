"""From a row's tokens to typed text: content, reasoning or calls, ended by stop strings, with log-probability entries.

Knows no request, no model and no wire format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from openai_gateway.types import CallDelta
from openai_gateway.worker.channels import Channel, Channels, Piece
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.stops import StopStrings

E = TypeVar("E")


class Rendered(NamedTuple, Generic[E]):
    """What one token gives the client."""

    content: str
    reasoning: str
    entries: list[E]
    reasoning_token: int
    """Tokens now known to be reasoning: 0 or 1, or a whole header or tag at once when it turns out to be one."""
    stopped: bool
    calls: tuple[CallDelta, ...] = ()


class TextPath(Generic[E]):
    """All that happens to the text of one row; `entry` stands for a token's log-probability entry, whatever it is."""

    def __init__(
        self,
        channels: Channels,
        stops: Iterable[str] = (),
        *,
        table: TokenTable,
        special: bool = False,
        one_call: bool = False,
    ) -> None:
        """`special`: tokens without any text have their entries released as well, at once. `one_call`: the first
        complete tool call ends the text.
        """
        stops = tuple(stops)
        self._channels = channels
        self._is_special = table.is_special
        self._special = special
        self._one_call = one_call
        self._stops = StopStrings(stops) if stops else None
        self._entries: _Entries[E] | None = None
        self._undecided = 0
        self._stopped = False

    @property
    def calls(self) -> int:
        """Tool calls that are complete."""
        return self._channels.calls

    def push(self, token: int, entry: E | None = None) -> Rendered[E]:
        if self._stopped:
            return Rendered("", "", [], 0, True)
        channels = self._channels
        before = channels.channel
        if entry is not None and self._entries is None:
            self._entries = _Entries()
        if self._entries is None:
            pieces = channels.push(token)
        else:
            begin = self._entries.read + channels.held
            pieces = channels.push(token)
            end = self._entries.read + sum(len(piece[1]) for piece in pieces if isinstance(piece, tuple))
            end += channels.held
            if entry is not None and not self._is_special(token):
                self._entries.add(begin, end, entry)
        rendered = self._render(pieces, self._reasoning(before))
        if entry is not None and self._special and self._is_special(token):
            rendered.entries.append(entry)
        return rendered

    def finish(self, *, cut: bool = False) -> Rendered[E]:
        """What was held back. `cut`: the model had more to say."""
        if self._stopped:
            return Rendered("", "", [], 0, True)
        return self._render(self._channels.finish(cut=cut), 0, last=True)

    def _render(self, pieces: Sequence[Piece], reasoning_tokens: int, *, last: bool = False) -> Rendered[E]:
        content = reasoning = ""
        calls: list[CallDelta] = []
        for piece in pieces:
            if isinstance(piece, CallDelta):
                if not self._stopped and not (self._one_call and piece.index):
                    _add(calls, piece)
                continue
            channel, text = piece
            if self._entries is not None:
                self._entries.pass_by(channel, len(text))
            if channel == "content":
                content += text if self._stops is None else self._stops.push(text)
            elif channel == "reasoning" and not self._stopped:
                reasoning += text
            self._stopped = self._stops is not None and self._stops.stopped
        called = self._one_call and self._channels.calls > 0
        if (last or called) and self._stops is not None and not self._stopped:
            content += self._stops.finish()
            self._stopped = self._stops.stopped
        self._stopped = self._stopped or called
        entries = self._entries.release(len(content)) if self._entries is not None else []
        return Rendered(content, reasoning, entries, reasoning_tokens, self._stopped, tuple(calls))

    def _reasoning(self, before: Channel) -> int:
        """How many tokens the last one showed to be reasoning; `before` is where its text would have gone."""
        after = self._channels.channel
        if before == "reasoning":
            return 1  # the end tag, too
        if after == "markup":
            self._undecided += 1
            return 0
        count = self._undecided + 1 if after == "reasoning" else 0
        self._undecided = 0
        return count


def _add(calls: list[CallDelta], delta: CallDelta) -> None:
    """What goes on with the arguments of the last delta joins it."""
    last = calls[-1] if calls else None
    if last is not None and not last.id and not delta.id:
        calls[-1] = CallDelta(delta.index, last.arguments + delta.arguments)
    else:
        calls.append(delta)


class _Entries(Generic[E]):
    """Keeps entries until the text of their tokens is out; positions count the characters of all segments."""

    def __init__(self) -> None:
        self.read = 0
        self._written = self._out = 0  # characters of content: sorted so far, released so far
        self._tokens: deque[tuple[int, int, E]] = deque()
        self._content: deque[tuple[int, E]] = deque()

    def add(self, begin: int, end: int, entry: E) -> None:
        # A token that only begins a character has no text yet: it goes with what comes at the same place.
        self._tokens.append((begin, end, entry))

    def pass_by(self, channel: Channel, length: int) -> None:
        """A segment is sorted: its tokens' entries are content or they are dropped."""
        past = self.read + length
        while self._tokens and self._tokens[0][0] < past:
            begin, end, entry = self._tokens[0]
            if channel == "content":
                self._content.append((self._written + max(begin - self.read, 0), entry))
            elif end > past:
                break  # the rest of its text is in the next segment
            self._tokens.popleft()
        self.read = past
        if channel == "content":
            self._written += length

    def release(self, length: int) -> list[E]:
        self._out += length
        released = []
        while self._content and self._content[0][0] < self._out:
            released.append(self._content.popleft()[1])
        return released
