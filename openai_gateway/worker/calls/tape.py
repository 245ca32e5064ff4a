"""The text of an answer while a reader goes over it, piece by piece as it comes.

A reader is a generator that runs until it needs more text than there is. It decides nothing before it is sure, so that
it finds the same wherever the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final, TypeVar

from openai_gateway.worker.calls.jsontext import JsonEnd
from openai_gateway.worker.calls.marks import ANY
from openai_gateway.worker.channels import Piece
from openai_gateway.worker.lark import BLANK

T = TypeVar("T")
Step = Generator[None, None, T]
"""A part of a reader that returns T; each yield waits for more text."""

TELLING: Final = 3
"""So many characters of a mark are no accident: what ends within a mark ends before it."""
LONGEST_NAME: Final = 256
"""Characters. What is longer is no name of a tool or a parameter."""
NAME: Final = re.compile(r"[\w.:/-]*")
SPACES: Final = re.compile(r"\s*")


class NoCall(Exception):
    """What the reader has before it makes no call, or the text ended within one."""


class Tape:
    """Text that was received and is not sorted yet, and what was sorted out of it.

    `at` is where the reader stands; `pieces` is what it has let out. `spell` writes a marker as the text has it.
    """

    def __init__(self, spell: Callable[[str], str] = str) -> None:
        self.spell = spell
        self.text = ""
        self.at = 0
        self.ended = self.cut = False
        self.pieces: list[Piece] = []

    def wait(self) -> Step[None]:
        """Until there is more text. Raises `NoCall` when there will be none."""
        if self.ended:
            raise NoCall
        yield

    def commit(self) -> None:
        """What was read is part of a call for certain."""
        if self.at:
            self.pieces.append(("markup", self.text[: self.at]))
            self.text, self.at = self.text[self.at :], 0

    def peek(self) -> Step[str]:
        """The next character."""
        while self.at == len(self.text):
            yield from self.wait()
        return self.text[self.at]

    def space(self) -> Step[str]:
        """Reads over white space; the character behind it, "" at the end."""
        while True:
            found = SPACES.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            yield

    def accept(self, *options: str) -> Step[str]:
        """Reads over the longest of the options that comes next, and returns it; "" where none does."""
        spelled = {self.spell(option): option for option in options}
        while True:
            rest = self.text[self.at : self.at + max(map(len, spelled), default=0)]
            if self.ended or not any(mark != rest and mark.startswith(rest) for mark in spelled):
                mark = max(filter(rest.startswith, spelled), key=len, default="")
                self.at += len(mark)
                return spelled.get(mark, "")
            yield

    def expect(self, *options: str) -> Step[str]:
        """As `accept`, and raises `NoCall` where none of them comes."""
        found = yield from self.accept(*options)
        if not found:
            raise NoCall
        return found

    def name(self) -> Step[str]:
        """Reads a name, which may be empty, up to the first character that none has."""
        while True:
            found = NAME.match(self.text, self.at)
            end = found.end() if found else self.at
            if end - self.at > LONGEST_NAME:
                raise NoCall
            if end < len(self.text) or self.ended:
                name, self.at = self.text[self.at : end], end
                return name
            yield

    def known(self, names: Iterable[str], mark: str) -> Step[str]:
        """Reads one of these names and `mark`, a character that stands behind it; "" where none comes."""
        start = self.at
        name = yield from self.accept(*names)
        if name and (yield from self.space()) == mark:
            self.at += 1
            return name
        self.at = start
        return ""

    def until(self, *ends: str, longest: int | None = None, behind: Sequence[str] = ()) -> Step[tuple[str, str]]:
        """Reads up to the first of the ends and over it: (text before it, which it was). `behind` as in `run`."""
        spelled = {self.spell(end): end for end in ends}
        seen = self.at
        while True:
            found = [(*self._place(mark, seen, behind), mark) for mark in spelled]
            seen = min(place for place, _, _ in found)
            if longest is not None and seen - self.at > longest:
                raise NoCall
            if places := [(place, mark) for place, there, mark in found if there]:
                place, mark = min(places)
                text, self.at = self.text[self.at : place], place + len(mark)
                return text, spelled[mark]
            yield from self.wait()

    def run(self, end: str, take: Callable[[str], None], behind: Sequence[str] = ()) -> Step[None]:
        """Hands out the text before `end` as it comes, and reads over `end`. What the text ends with goes out too.

        With `behind`, only an `end` counts that has one of these next to it, or nothing at all, but for white space.
        """
        mark = self.spell(end)
        passed = False
        while True:
            stop, there = self._place(mark, self.at, behind)
            if stop > self.at:
                passed = passed or mark in self.text[self.at : stop]
                take(self.text[self.at : stop])
                self.at = stop
                self.commit()
            if there:
                self.at += len(mark)
                return
            # Where no end counts, one of those that were passed over was it: the rest is no part of a whole value.
            self.cut = self.cut or (self.ended and passed)
            yield from self.wait()

    def _place(self, mark: str, start: int, behind: Sequence[str]) -> tuple[int, bool]:
        """Up to where there is no such mark from `start` on, and whether there is one."""
        place = self.text.find(mark, start)
        while place >= 0:
            # A special token cannot stand in a text.
            sure = not behind or ANY.search(mark) or self._begins(self.text[place + len(mark) :], behind)
            if sure is not False:
                return place, bool(sure)
            place = self.text.find(mark, place + 1)
        return max(start, len(self.text) - self.begun(mark)), False

    def _begins(self, text: str, marks: Sequence[str]) -> bool | None:
        """Whether a text begins with one of the marks, but for white space; None while that is open."""
        text, spelled = text.lstrip(BLANK), [self.spell(mark) for mark in marks]
        if text.startswith(tuple(spelled)):
            return True
        if any(mark.startswith(text) for mark in spelled):
            return True if self.ended else None
        return False

    def rest(self, end: str) -> str:
        """Reads all that there is, but what begins `end`."""
        text = self.text[self.at : len(self.text) - overlap(self.text, (self.spell(end),))]
        self.at = len(self.text)
        return text

    def begun(self, *marks: str) -> int:
        """How many of the last characters may be the beginning of a mark, or are, where there will be no more."""
        length = overlap(self.text, marks)
        return length if length > TELLING or not self.ended else 0

    def json(self) -> Step[str]:
        """Reads one JSON value, whatever it is."""
        end, start = JsonEnd(), self.at
        while not (yield from self._json_part(end)):
            pass
        return self.text[start : self.at]

    def json_pieces(self, take: Callable[[str], None], *, in_string: bool = False) -> Step[None]:
        """Hands out one JSON value as it comes, as it is written; `in_string`, that of a string behind its quote."""
        end = JsonEnd(in_string=in_string)
        done = False
        while not done:
            before = self.at
            try:
                done = yield from self._json_part(end)
            finally:
                if self.at > before:
                    take(self.text[before : self.at])
                    self.commit()

    def _json_part(self, end: JsonEnd) -> Step[bool]:
        if self.at == len(self.text):
            if self.ended and end.may_end:
                return True
            yield from self.wait()
        self.at = end.read(self.text, self.at)
        if end.broken:
            raise NoCall
        return end.done


def overlap(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of `text` that one of the marks may begin with."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
