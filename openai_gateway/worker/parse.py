"""From a row's tokens to typed text: content or reasoning, ended by stop strings, with log-probability entries.

Knows no request, no model and no wire format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from openai_gateway.worker.channels import Channel, Channels, Segment
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


class TextPath(Generic[E]):
    """All that happens to the text of one row; `entry` stands for a token's log-probability entry, whatever it is."""

    def __init__(
        self, channels: Channels, stops: Iterable[str] = (), *, table: TokenTable, special: bool = False
    ) -> None:
        """`special`: tokens without any text have their entries released as well, at once."""
        stops = tuple(stops)
        self._channels = channels
        self._is_special = table.is_special
        self._special = special
        self._stops = StopStrings(stops) if stops else None
        self._entries: _Entries[E] | None = None
        self._undecided = 0
        self._stopped = False

    def push(self, token: int, entry: E | None = None) -> Rendered[E]:
        if self._stopped:
            return Rendered("", "", [], 0, True)
        channels = self._channels
        before = channels.channel
        if entry is not None and self._entries is None:
            self._entries = _Entries()
        if self._entries is None:
            segments = channels.push(token)
        else:
            begin = self._entries.read + channels.held
            segments = channels.push(token)
            end = self._entries.read + sum(len(text) for _, text in segments) + channels.held
            if entry is not None and not self._is_special(token):
                self._entries.add(begin, end, entry)
        rendered = self._render(segments, self._reasoning(before))
        if entry is not None and self._special and self._is_special(token):
            rendered.entries.append(entry)
        return rendered

    def finish(self) -> Rendered[E]:
        if self._stopped:
            return Rendered("", "", [], 0, True)
        return self._render(self._channels.finish(), 0, last=True)

    def _render(self, segments: list[Segment], reasoning_tokens: int, *, last: bool = False) -> Rendered[E]:
        content = reasoning = ""
        for channel, text in segments:
            if self._entries is not None:
                self._entries.pass_by(channel, len(text))
            if channel == "content":
                content += text if self._stops is None else self._stops.push(text)
            elif channel == "reasoning" and not self._stopped:
                reasoning += text
            self._stopped = self._stops is not None and self._stops.stopped
        if last and self._stops is not None and not self._stopped:
            content += self._stops.finish()
            self._stopped = self._stops.stopped
        entries = self._entries.release(len(content)) if self._entries is not None else []
        return Rendered(content, reasoning, entries, reasoning_tokens, self._stopped)

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
