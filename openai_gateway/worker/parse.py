"""From a row's tokens to typed text: content or reasoning, ended by stop strings, with log-probability entries.

Knows no request, no model and no wire format. The channels of gpt-oss are in harmony.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from openai_gateway.worker.detokenize import Detokenizer, TokenTable

Channel = Literal["content", "reasoning", "markup"]
Segment = tuple[Channel, str]
E = TypeVar("E")
NEWLINES: Final = "\r\n"


class Channels(Protocol):
    """Sorts the text of one answer. All its segments together are all the text; markup has segments of its own."""

    @property
    def channel(self) -> Channel:
        """Where the next text goes; "markup" while that is not decided."""

    @property
    def held(self) -> int:
        """Characters that were read and not released yet."""

    def push(self, token: int) -> list[Segment]:
        """The segments this token releases, in order."""

    def finish(self) -> list[Segment]:
        """What was held back until now."""


class Rendered(NamedTuple, Generic[E]):
    """What one token gives the client."""

    content: str
    reasoning: str
    entries: list[E]
    reasoning_token: int
    """Tokens now known to be reasoning: 0 or 1, or a whole header or tag at once when it turns out to be one."""
    stopped: bool


class PlainChannels:
    """All text is content; special tokens are dropped."""

    channel: Channel = "content"
    held = 0

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._is_special = detokenizer.table.is_special

    def push(self, token: int) -> list[Segment]:
        text = "" if self._is_special(token) else self._detokenizer.push(token)
        return [("content", text)] if text else []

    def finish(self) -> list[Segment]:
        text = self._detokenizer.finish()
        return [("content", text)] if text else []


class ThinkChannels:
    """`<think>...</think>` and its relatives, found in the text.

    A thought opens only where nothing but white space has been answered yet, so an answer that speaks of the tags keeps
    them; tags of special tokens are never text and open one anywhere. `inside`: the prompt has opened the thought.
    Newlines at the edges of a thought and before the answer are markup.
    """

    def __init__(self, detokenizer: Detokenizer, start: str, end: str, inside: bool = False) -> None:
        self._detokenizer = detokenizer
        self._start, self._end = start, end
        self._now: Channel = "reasoning" if inside else "content"
        self._tagged = inside  # there was a tag, to which the newlines after it belong
        self._fresh = True  # nothing but white space since the beginning or the last tag
        self._pending = ""
        self._marks: set[str] = set()  # special tokens in _pending: markup, even where they make no tag

    @property
    def channel(self) -> Channel:
        return "markup" if self._pending and self._now == "content" else self._now

    @property
    def held(self) -> int:
        return len(self._pending)

    def push(self, token: int) -> list[Segment]:
        if self._detokenizer.table.is_special(token) and not self._is_tag_part(token):
            return []
        text = self._detokenizer.push(token)
        if self._now == "content" and not (self._fresh or self._pending or self._marks):
            return [("content", text)] if text else []
        self._pending += text
        return self._settle()

    def finish(self) -> list[Segment]:
        self._pending += self._detokenizer.finish()
        segments = self._settle()
        if self._fresh:
            self._open(segments)
        self._release(segments, self._pending)
        return segments

    def _is_tag_part(self, token: int) -> bool:
        mark = self._detokenizer.table.bytes_of(token).decode("utf-8", "replace")
        if mark not in self._start and mark not in self._end:
            return False
        self._marks.add(mark)
        return True

    def _settle(self) -> list[Segment]:
        segments: list[Segment] = []
        moved = True
        while moved and self._pending:
            at_front = self._fresh or self._now == "content"
            moved = self._match(segments) if at_front else self._search(segments)
        return segments

    def _match(self, segments: list[Segment]) -> bool:
        """Takes a tag off the front of what is pending, or finds that there is none. False: wait for more."""
        text = self._pending.lstrip()
        tags: dict[str, Channel] = {self._start: "reasoning"}
        if self._fresh:
            tags[self._end] = "content"  # without a thought to end: only dropped
        for tag, target in tags.items():
            if text.startswith(tag):
                self._switch(segments, len(self._pending) - len(text) + len(tag), target)
                return True
        if any(tag.startswith(text) for tag in tags):
            return False
        if self._fresh:
            self._open(segments)
        if self._now == "content":
            self._release(segments, self._pending)
        return True

    def _search(self, segments: list[Segment]) -> bool:
        """Looks for the end of the thought. False: wait for more."""
        at = self._pending.find(self._end)
        found = at >= 0
        if not found:
            at = len(self._pending) - _overlap(self._pending, self._end)
        self._release(segments, self._pending[:at].rstrip(NEWLINES))
        if found:
            self._switch(segments, self._pending.index(self._end) + len(self._end), "content")
        return found

    def _switch(self, segments: list[Segment], markup: int, target: Channel) -> None:
        segments.append(("markup", self._pending[:markup]))
        self._pending = self._pending[markup:]
        self._now, self._fresh, self._tagged = target, True, True
        self._marks.clear()

    def _open(self, segments: list[Segment]) -> None:
        body = self._pending.lstrip(NEWLINES) if self._tagged else self._pending
        if len(body) < len(self._pending):
            segments.append(("markup", self._pending[: -len(body) or None]))
        self._pending, self._fresh = body, False

    def _release(self, segments: list[Segment], text: str) -> None:
        """Lets out `text`, the front of what is pending."""
        self._pending = self._pending[len(text) :]
        # re.split gives what is between the marks at even places, the marks at odd ones.
        pieces = re.split(f"({'|'.join(map(re.escape, self._marks))})", text) if self._marks else [text]
        segments += [("markup" if n % 2 else self._now, piece) for n, piece in enumerate(pieces) if piece]
        if not self._pending:
            self._marks.clear()


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` may begin with."""
    if tag[0] not in text:
        return 0
    return next((k for k in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:k])), 0)


class StopStrings:
    """Cuts text before the earliest of the stop strings, wherever pieces are cut (Aho-Corasick, so linear)."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._ends = [0]  # length of the longest stop string that ends in this state
        for stop in stops:
            self._add(stop)
        self._fail = self._failures()
        self._first = re.compile(f"[{re.escape(''.join(self._next[0]))}]" if self._next[0] else "(?!)")
        self._state = 0
        self._held = ""
        self._match: int | None = None  # where in _held a stop string begins, while an earlier one may still come
        self.stopped = False

    def push(self, text: str) -> str:
        if self.stopped:
            return ""
        at = len(self._held)
        if not self._state:
            first = self._first.search(text)
            if first is None:
                return text
            at = first.start()
        text = self._held + text
        if self._read(text, at):
            return self._stop(text)
        cut = len(text) - self._depth[self._state]
        if self._match is not None:
            self._match -= cut
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        if self._match is not None and not self.stopped:
            return self._stop(self._held)
        held, self._held = self._held, ""
        return held

    def _read(self, text: str, at: int) -> bool:
        """Runs over text[at:]. True: a stop string is found and none can begin before it."""
        state = self._state
        for end in range(at, len(text)):
            while state and text[end] not in self._next[state]:
                state = self._fail[state]
            state = self._next[state].get(text[end], 0)
            if self._ends[state]:
                begin = end + 1 - self._ends[state]
                self._match = begin if self._match is None else min(begin, self._match)
            if self._match is not None and end + 1 - self._depth[state] >= self._match:
                return True
        self._state = state
        return False

    def _stop(self, text: str) -> str:
        self.stopped = True
        self._held = ""
        return text[: self._match]

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._ends.append(0)
            state = self._next[state][char]
        self._ends[state] = self._depth[state]

    def _failures(self) -> list[int]:
        """For each state the longest proper end of its text that is a state too, nearest states first."""
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            queue.extend(self._next[state].values())
            for char, child in self._next[state].items():
                back = fail[state]
                while back and char not in self._next[back]:
                    back = fail[back]
                fail[child] = self._next[back].get(char, 0)
                self._ends[child] = self._ends[child] or self._ends[fail[child]]
        return fail


class TextPath(Generic[E]):
    """All that happens to the text of one row; `entry` stands for a token's log-probability entry, whatever it is."""

    def __init__(self, channels: Channels, stops: Iterable[str] = (), *, table: TokenTable) -> None:
        stops = tuple(stops)
        self._channels = channels
        self._is_special = table.is_special
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
        return self._render(segments, self._reasoning(before))

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
