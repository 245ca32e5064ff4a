"""Finds the tool calls in an answer, whatever the format: what is none stays content, without any markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openai_gateway.worker.calls.deltas import Calls
from openai_gateway.worker.calls.marks import ANY, Marks
from openai_gateway.worker.calls.offer import Offer
from openai_gateway.worker.calls.tape import NoCall, Step, Tape
from openai_gateway.worker.channels import Channel, Channels, Piece

Read = Callable[[Tape, Calls, str], Step[None]]
"""Reads a call, or a section of them; the tape stands behind the opening mark, which is the last argument."""


@dataclass(frozen=True, slots=True)
class Written:
    """How calls are written in text.

    They begin with one of `opens`, or, if `bare` is set, where an answer begins with that, in which `%s` stands for the
    name of a tool that may be called; `read` goes on from there (for `bare`, in front of it). What `markup` names is
    none of the content, wherever it stands. `marked`: a call without marks is a slip, and none of an answer that has a
    form of its own.
    """

    opens: tuple[str, ...]
    read: Read
    markup: tuple[str, ...]
    bare: str = ""
    marked: bool = True


class CallChannels:
    """Channels whose content is looked through for calls. `marks` are those that `channels` turns into text."""

    def __init__(self, channels: Channels, written: Written, marks: Marks, offer: Offer) -> None:
        self._channels = channels
        self._written = written
        bare = "" if offer.formed and written.marked else written.bare
        self._bare = tuple({bare.replace("%s", name) for name in offer.callable}) if bare else ()
        self._tape = Tape(marks.spell)
        self._calls = Calls(offer, self._tape.pieces.append)
        self._opens = {marks.spell(mark): mark for mark in written.opens}
        markup = list(map(marks.spell, written.markup))
        self._known = [*self._opens, *markup]
        self._mark = _any_of(self._known)
        self._dropped = _any_of(markup)
        self._inside = False
        self._after = False
        """Whether there was nothing but white space since the last call."""
        self._said = False
        """Whether there was content."""
        self._reader = self._read()

    @property
    def calls(self) -> int:
        return self._calls.complete

    @property
    def channel(self) -> Channel:
        inner = self._channels.channel
        if inner != "content" or (not self._tape.text and not self._inside):
            return inner
        return "call" if self._inside else "markup"

    @property
    def held(self) -> int:
        return self._channels.held + len(self._tape.text)

    def push(self, token: int) -> Sequence[Piece]:
        return self._sorted(self._channels.push(token))

    def finish(self, *, cut: bool = False) -> Sequence[Piece]:
        pieces = self._sorted(self._channels.finish(cut=cut))
        self._end(cut=cut)
        return pieces + self._taken()

    def _sorted(self, pieces: Sequence[Piece]) -> list[Piece]:
        out: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, tuple) and piece[0] == "content":
                self._tape.text += piece[1]
                next(self._reader)
                out += self._taken()
            else:
                # A thought or a tag: what was content before it does not go on behind it.
                self._end(cut=False)
                out += [*self._taken(), piece]
        return out

    def _taken(self) -> list[Piece]:
        pieces = self._tape.pieces.copy()
        self._tape.pieces.clear()
        return pieces

    def _end(self, *, cut: bool) -> None:
        """What was read is all of it; what may come then is read afresh."""
        tape = self._tape
        tape.ended, tape.cut = True, cut
        next(self._reader)
        tape.ended = False
        self._reader = self._read()

    def _read(self) -> Step[None]:
        tape, calls = self._tape, self._calls
        while opened := (yield from self._content()):
            self._inside = True
            before = calls.complete
            try:
                yield from self._written.read(tape, calls, opened)
                tape.commit()
            except NoCall:
                self._give_back()
            self._inside = False
            self._after = self._after or calls.complete > before
        yield

    def _give_back(self) -> None:
        """It is no call, or goes on no more as one: what was not read of it may be content."""
        tape, calls = self._tape, self._calls
        if calls.is_open:
            calls.close(whole=calls.by_key and tape.ended and not tape.cut)
            tape.commit()
            self._after = True
            return
        text, tape.text, tape.at = tape.text[: tape.at], tape.text[tape.at :], 0
        for place, piece in enumerate(self._dropped.split(text)):  # marks are at the odd places
            self._let_out(piece, markup=bool(place % 2))

    # Between calls

    def _content(self) -> Step[str]:
        """Lets content out, up to where a call may begin and over its mark: which it was, "" at the end."""
        tape = self._tape
        while True:
            front = "" if self._said else tape.text.lstrip()
            if front.startswith(self._bare):
                tape.at = len(tape.text) - len(front)
                return next(filter(front.startswith, self._bare))
            if front and not tape.ended and any(bare.startswith(front) for bare in self._bare):
                yield
                continue
            found = self._mark.search(tape.text)
            settled = len(tape.text) - (0 if tape.ended else tape.begun(*self._known))
            if found is None or found.start() >= settled:
                if tape.ended:
                    self._last()
                    return ""
                self._release(settled)
                yield
            elif opened := self._opens.get(found[0]):
                tape.at = found.end() - self._release(found.start())
                return opened
            else:
                before = self._release(found.start(), spaces=True)
                self._release(found.end() - before, markup=True)

    def _release(self, length: int, *, spaces: bool = False, markup: bool = False) -> int:
        """Lets out the front of the text, without white space at its end, unless `spaces`; how much that was."""
        tape = self._tape
        front = tape.text[:length]
        front = front if spaces or markup else front.rstrip()
        tape.text = tape.text[len(front) :]
        self._let_out(front, markup=markup)
        return len(front)

    def _last(self) -> None:
        """Lets out all that is left."""
        tape = self._tape
        self._release(len(tape.text) - (tape.begun(*self._known) if tape.cut else 0), spaces=True)
        self._release(len(tape.text), markup=True)

    def _let_out(self, text: str, *, markup: bool) -> None:
        # White space around a call belongs to it, but where it parts two texts.
        spaces = 0 if not self._after or (self._said and text.strip()) else len(text) - len(text.lstrip())
        spaces = len(text) if markup else spaces
        if spaces:
            self._tape.pieces.append(("markup", text[:spaces]))
        if body := text[spaces:]:
            self._tape.pieces.append(("content", body))
        if body.strip():
            self._said, self._after = True, False


def _any_of(marks: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile(f"({'|'.join([*map(re.escape, longest_first), ANY.pattern])})")
