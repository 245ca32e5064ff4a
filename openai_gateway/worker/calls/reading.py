"""Finds the tool calls in an answer, whatever the format: what is none stays content, without the markup of calls."""

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
    none of the content behind a call, nor behind one that broke off, nor anywhere if it is a special token. `marked`: a
    call without marks is a slip, and none of an answer that has a form of its own.
    """

    opens: tuple[str, ...]
    read: Read
    markup: tuple[str, ...]
    bare: str = ""
    marked: bool = True


class Prose(NoCall):
    """It never was meant as one: the opening mark is text, and so is what the reader went over behind it."""


class CallChannels:
    """Channels whose content is looked through for calls. `marks` are those that `channels` turns into text. `begun`:
    the answer goes on with one that the request began.
    """

    def __init__(
        self, channels: Channels, written: Written, marks: Marks, offer: Offer, *, begun: bool = False
    ) -> None:
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
        self._formed = offer.formed
        self._inside = False
        self._after = False
        """Whether there was nothing but white space since the last call."""
        self._broken = False
        """Whether the last one that was meant as a call broke off."""
        self._said = begun
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
            before, failed = calls.complete, None
            try:
                yield from self._written.read(tape, calls, opened)
                tape.commit()
                self._broken = False
            except NoCall as error:
                failed = error
            self._inside = False
            self._after = self._after or calls.complete > before
            if failed is not None:
                self._give_back(opened, failed)
        yield

    def _give_back(self, opened: str, failed: NoCall) -> None:
        """It is no call, or goes on no more as one: what was not read of it may be content."""
        tape, calls = self._tape, self._calls
        if calls.is_open:
            calls.close(whole=calls.by_key and tape.ended and not tape.cut)
            tape.commit()
            self._after = self._broken = True
            return
        if opened in self._bare:
            self._bare, tape.at = (), 0  # a call with marks may stand in it
            return
        text, tape.text, tape.at = tape.text[: tape.at], tape.text[tape.at :], 0
        prose = isinstance(failed, Prose) and not ANY.search(tape.spell(opened))
        self._broken = self._broken or not prose
        for place, piece in enumerate([text] if prose else self._dropped.split(text)):  # marks are at the odd places
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
            elif self._is_text(found[0], tape.text[: found.start()]):
                self._release(found.end(), spaces=True)
            elif opened := self._opens.get(found[0]):
                tape.at = found.end() - self._release(found.start())
                return opened
            else:
                before = self._release(found.start(), spaces=True)
                self._release(found.end() - before, markup=True)

    def _is_text(self, mark: str, before: str = "") -> bool:
        """Whether a mark that stands behind this is none of a call, as where an answer tells how calls are written."""
        if ANY.search(mark):
            return False
        blank = not before.strip()
        if self._formed and (self._said or not blank):
            return True  # a call could only be at the beginning
        return mark not in self._opens and not self._broken and not (self._after and blank)

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
        marks = [mark for mark in self._known if not self._is_text(mark)]
        self._release(len(tape.text) - (tape.begun(*marks) if tape.cut else 0), spaces=True)
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
