"""Readers of formats that write each parameter of a call between tags, as in XML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.worker.calls.deltas import Calls
from openai_gateway.worker.calls.json_calls import objects
from openai_gateway.worker.calls.offer import Parameters
from openai_gateway.worker.calls.reading import Prose, Written
from openai_gateway.worker.calls.tape import LONGEST_NAME, NoCall, Step, Tape
from openai_gateway.worker.calls.values import as_json, is_text

NAMED: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))(.*)""", re.DOTALL)
ATTRIBUTE: Final = re.compile(r"""([\w-]+)\s*=\s*["']?([^"'\s]*)""")
CDATA: Final = ("<![CDATA[", "]]>")


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of a format. Those of a call and of a parameter begin so; then come its name and `ends`."""

    call: tuple[str, str]
    parameter: tuple[str, str]
    section: tuple[str, str] | None = None
    """Around all calls, or around each."""
    ends: str = ">"
    padding: str = ""
    """Stands at both ends of a value, and is none of it."""
    cdata: bool = False
    """Whether a text may stand in such a block."""
    json: tuple[str, str] | None = None
    """Around arguments that are written as JSON."""

    @property
    def written(self) -> Written:
        """What finds and reads its calls."""
        pairs = (self.section, self.call, self.parameter, self.json)
        markup = tuple(mark for pair in pairs if pair is not None for mark in pair)
        opens = (self.section[0], self.call[0]) if self.section is not None else (self.call[0],)
        return Written(opens, self.read, markup)

    @property
    def behind(self) -> tuple[str, ...]:
        """The tags of which one stands behind a value: another call's, too, where this one was left open."""
        return (*(self.section or ()), *self.call, self.parameter[0], *(self.json or ())[:1])

    @property
    def within(self) -> tuple[str, ...]:
        """The tags of which one stands behind that of a call, and behind each parameter."""
        return (self.parameter[0], self.call[1], *(self.json or ())[:1], *(self.section or ())[1:])

    def read(self, tape: Tape, calls: Calls, opened: str) -> Step[None]:
        """One call, or all of a section."""
        closing = (self.section[1],) if self.section is not None else ()
        if opened == self.call[0]:
            if closing:
                yield from self._meant(tape, calls)
            yield from self._call(tape, calls)
            end = tape.at
            yield from tape.space()
            if not closing or not (yield from tape.accept(*closing)):
                tape.at = end
            return
        while True:
            yield from tape.space()
            if (yield from tape.expect(self.call[0], *closing)) in closing:
                return
            if (yield from self._call(tape, calls)) in closing:
                return

    def _meant(self, tape: Tape, calls: Calls) -> Step[None]:
        """Goes over the tag of a call that has no section, and back: no grammar led to it, so it may be none.

        Raises `Prose` where nothing of a call stands behind it, and `NoCall` for a tool that may not be called.
        """
        start = tape.at
        try:
            name, _ = yield from self._tag(tape)
        except NoCall:
            raise NoCall if tape.cut else Prose from None
        may_be = calls.offer.name(name) in calls.offer.callable
        yield from tape.space()
        found = yield from tape.accept(*self.within)
        rest = tape.text[tape.at :]
        tape.at = start
        if not found and not (may_be and any(tape.spell(mark).startswith(rest) for mark in self.within)):
            raise Prose
        if not may_be:
            raise NoCall

    def _call(self, tape: Tape, calls: Calls) -> Step[str]:
        """Returns the tag that it ended with: its own, or that of the section."""
        name, _ = yield from self._tag(tape)
        calls.open(name, by_key=True)
        tape.commit()
        parameters = calls.offer.parameters(calls.name)
        while True:
            yield from tape.space()
            mark = yield from tape.expect(*self.within)
            tape.commit()
            if mark == self.parameter[0]:
                yield from self._parameter(tape, calls, parameters)
            elif self.json is not None and mark == self.json[0]:
                yield from tape.until(self.ends, longest=LONGEST_NAME)
                yield from tape.space()
                yield from tape.json_pieces(calls.arguments)
                yield from tape.space()
                yield from tape.accept(self.json[1])
            else:
                calls.close()
                return mark

    def _tag(self, tape: Tape, known: Collection[str] = ()) -> Step[tuple[str, dict[str, str]]]:
        """The name in a tag, and what else it says. Those that are `known` may have anything in them."""
        forms = (("", self.ends), ('"', self.ends), ('"', " "))
        exact = {f"{quote}{name}{quote}{end}": (name, end) for name in known for quote, end in forms}
        if exact and (written := (yield from tape.accept(*exact))):
            name, end = exact[written]
            tape.at -= len(tape.spell(end))
            inside, _ = yield from tape.until(self.ends, longest=LONGEST_NAME)
            return name, dict(ATTRIBUTE.findall(inside))
        inside, _ = yield from tape.until(self.ends, longest=LONGEST_NAME)
        found = NAMED.match(inside)
        name = html.unescape(found[1] or found[2] or found[3] or "") if found else ""
        if not name:
            raise NoCall
        return name, dict(ATTRIBUTE.findall(found[4])) if found else {}

    def _parameter(self, tape: Tape, calls: Calls, parameters: Parameters) -> Step[None]:
        key, said = yield from self._tag(tape, parameters.named)
        kind = said.get("type") or {"true": "string", "false": "any"}.get(said.get("string", ""), "")
        schema = parameters.schema(key)
        if kind == "string":
            schema = {"type": "string"}
        elif kind and is_text(schema):
            schema = {}
        calls.key(key)
        end = Until(self.parameter[1], self.behind, self.padding)
        yield from value(tape, calls, end, schema, cdata=self.cdata)


@dataclass(frozen=True, slots=True)
class Keys:
    """The tags of a format that has keys and values in tags of their own, behind the name of the tool."""

    call: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]

    @property
    def written(self) -> Written:
        """What finds and reads its calls."""
        return Written((self.call[0],), self.read, (*self.call, *self.key, *self.value))

    @property
    def behind(self) -> tuple[str, ...]:
        """The tags of which one stands behind a value."""
        return (*self.call, self.key[0])

    def read(self, tape: Tape, calls: Calls, opened: str) -> Step[None]:
        """One call; some models write JSON in its place."""
        if (yield from tape.space()) == "{":
            yield from objects(tape, calls, self.call[1])
            return
        name, mark = yield from tape.until(self.key[0], self.call[1], "\n", longest=LONGEST_NAME)
        if not name.strip():
            raise NoCall
        calls.open(name.strip(), by_key=True)
        tape.commit()
        parameters = calls.offer.parameters(calls.name)
        while mark != self.call[1]:
            if mark == self.key[0]:
                key, _ = yield from tape.until(self.key[1], longest=LONGEST_NAME)
                yield from tape.space()
                yield from tape.expect(self.value[0])
                tape.commit()
                calls.key(key.strip())
                yield from value(tape, calls, Until(self.value[1], self.behind), parameters.schema(key.strip()))
            yield from tape.space()
            mark = yield from tape.expect(self.key[0], self.call[1])
            tape.commit()
        calls.close()


@dataclass(frozen=True, slots=True)
class Until:
    """The end of a value: `close`, with one of these tags `behind` it, and `padding` before it."""

    close: str
    behind: tuple[str, ...]
    padding: str = ""


def value(tape: Tape, calls: Calls, end: Until, schema: Any, *, cdata: bool = False) -> Step[None]:
    """A value and its end: a text as it comes, anything else as JSON once it is all there."""
    if end.padding:
        yield from tape.accept(end.padding)
    if not is_text(schema):
        yield from _whole(tape, calls, end, schema)
        return
    calls.begin_string()
    if cdata and (yield from tape.accept(CDATA[0])):
        yield from tape.run(CDATA[1], calls.string, (end.close, *end.behind))
        yield from tape.until(end.close, behind=end.behind)
    else:
        text = Unpadded(end.padding, calls.string)
        yield from tape.run(end.close, text.push, end.behind)
    calls.end_string()
    tape.commit()


def _whole(tape: Tape, calls: Calls, end: Until, schema: Any) -> Step[None]:
    try:
        written = yield from _up_to(tape, end)
    except NoCall:
        written = tape.rest(end.close).removesuffix(end.padding)
        tape.cut = tape.cut or end.close in written  # as where a text runs on to the end
        calls.arguments(written if tape.cut else as_json(written, schema))
        raise
    if written.startswith(CDATA[0]):
        written = written.removeprefix(CDATA[0]).removesuffix(CDATA[1])
    calls.arguments(as_json(written.removesuffix(end.padding), schema))
    tape.commit()


def _up_to(tape: Tape, end: Until) -> Step[str]:
    """A value up to its closing tag, which strings in JSON may hold as well."""
    start = tape.at
    if (yield from tape.space()) in ("{", "[", '"'):
        try:
            written = yield from tape.json()
            between, _ = yield from tape.until(end.close, behind=end.behind)
            if not between.strip():
                return written
        except NoCall:
            pass
    tape.at = start
    written, _ = yield from tape.until(end.close, behind=end.behind)
    return written


class Unpadded:
    """Hands on a text without the padding at its end."""

    def __init__(self, padding: str, take: Callable[[str], None]) -> None:
        self._padding = padding
        self._take = take
        self._held = ""

    def push(self, piece: str) -> None:
        """The next piece; what may be the padding is held back."""
        text = self._held + piece
        self._held = self._padding if self._padding and text.endswith(self._padding) else ""
        self._take(text.removesuffix(self._padding))
