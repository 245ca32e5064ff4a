"""Stop strings: text is cut before the earliest of them, and held back only while it may begin one."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable


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
