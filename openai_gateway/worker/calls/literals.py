"""Readers of formats that write a call as code: Python's, and the one of Gemma."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from openai_gateway.worker.calls.deltas import Calls
from openai_gateway.worker.calls.reading import Written
from openai_gateway.worker.calls.tape import LONGEST_NAME, NoCall, Step, Tape
from openai_gateway.worker.calls.values import as_json, literal

BARE: Final = "call:%s{"
"""How a call begins whose first mark was left out."""
DEEPEST: Final = 64
"""Values within values. What is deeper is no call."""


@dataclass(frozen=True, slots=True)
class Gemma:
    """`call:name{key:value,…}` with keys that have no quotes, and quotes that are markup."""

    call: tuple[str, str]
    quote: str

    @property
    def written(self) -> Written:
        """What finds and reads its calls."""
        return Written((self.call[0],), self.read, (*self.call, self.quote), BARE)

    def read(self, tape: Tape, calls: Calls, opened: str) -> Step[None]:
        """One call, or several of them."""
        yield from tape.space()
        yield from tape.expect("call:")
        while True:
            name, _ = yield from tape.until("{", longest=LONGEST_NAME)
            if not name.strip():
                raise NoCall
            calls.open(name.strip())
            tape.commit()
            yield from self._object(tape, calls, 0)
            calls.close()
            yield from tape.space()
            if (yield from tape.accept(self.call[1], ",", "call:")) != "call:":
                return

    def _object(self, tape: Tape, calls: Calls, depth: int) -> Step[None]:
        between = "{"
        names = () if depth else calls.offer.parameters(calls.name).named
        while True:
            yield from tape.space()
            key = yield from tape.known(names, ":")
            if not key:
                mark = yield from tape.accept("}", ",", self.quote, '"')
                if mark == "}":
                    calls.arguments("{}" if between == "{" else "}")
                    return
                if mark == ",":
                    continue
                key, _ = yield from tape.until(mark or ":", longest=LONGEST_NAME)
                if mark:
                    yield from tape.space()
                    yield from tape.expect(":")
            calls.arguments(f"{between}{json.dumps(key.strip(), ensure_ascii=False)}: ")
            between = ", "
            yield from self._value(tape, calls, depth)

    def _list(self, tape: Tape, calls: Calls, depth: int) -> Step[None]:
        calls.arguments("[")
        between = ""
        while True:
            yield from tape.space()
            yield from tape.peek()
            mark = yield from tape.accept("]", ",")
            if mark == "]":
                calls.arguments("]")
                return
            if mark != ",":
                calls.arguments(between)
                between = ", "
                yield from self._value(tape, calls, depth)

    def _value(self, tape: Tape, calls: Calls, depth: int) -> Step[None]:
        if depth > DEEPEST:
            raise NoCall
        yield from tape.space()
        match (yield from tape.accept(self.quote, '"', "{", "[")):
            case "{":
                yield from self._object(tape, calls, depth + 1)
            case "[":
                yield from self._list(tape, calls, depth + 1)
            case '"':
                calls.arguments('"')
                yield from tape.json_pieces(calls.arguments, in_string=True)
            case self.quote:
                calls.begin_string()
                yield from tape.run(self.quote, calls.string)
                calls.end_string()
            case _:
                yield from self._bare(tape, calls)
        tape.commit()

    def _bare(self, tape: Tape, calls: Calls) -> Step[None]:
        try:
            text, _ = yield from tape.until(",", "}", "]")
        except NoCall:
            calls.arguments(tape.rest(self.call[1]))
            raise
        tape.at -= 1
        calls.arguments(as_json(text, {}) if text.strip() else "null")


PYTHON: Final = ("<|tool_call_start|>", "<|tool_call_end|>")


def pythonic(tape: Tape, calls: Calls, opened: str) -> Step[None]:
    """`[name(key=value, …), …]`, argument by argument."""
    yield from tape.space()
    yield from tape.accept("[")
    while True:
        yield from tape.space()
        name = yield from tape.name()
        yield from tape.expect("(")
        if not name:
            raise NoCall
        calls.open(name, by_key=True)
        tape.commit()
        yield from _keywords(tape, calls)
        calls.close()
        yield from tape.space()
        if (yield from tape.accept(",", "]")) != ",":
            break
    end = tape.at
    yield from tape.space()
    if not (yield from tape.accept(PYTHON[1])):
        tape.at = end


def _keywords(tape: Tape, calls: Calls) -> Step[None]:
    parameters = calls.offer.parameters(calls.name)
    while True:
        yield from tape.space()
        mark = yield from tape.accept(")", ",")
        tape.commit()
        if mark == ")":
            return
        if mark == ",":
            continue
        key = yield from tape.known(parameters.named, "=")
        if not key:
            key = yield from tape.name()
            yield from tape.space()
            yield from tape.expect("=")
        if not key:
            raise NoCall
        calls.key(key)
        written = yield from _python(tape, calls)
        calls.arguments(_said(written, parameters.schema(key)))
        tape.commit()


def _said(written: str, schema: object) -> str:
    try:
        return json.dumps(literal(written.strip()), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return as_json(written.strip(), schema)


def _python(tape: Tape, calls: Calls) -> Step[str]:
    """The text of a value, up to the comma or bracket behind it."""
    start, at, end = tape.at, tape.at, LiteralEnd()
    while not end.done:
        at = end.read(tape.text, at)
        if not end.done:
            try:
                yield from tape.wait()
            except NoCall:
                calls.arguments(tape.rest(PYTHON[1]))
                raise
    tape.at = at
    return tape.text[start:at]


class LiteralEnd:
    """Finds the end of a Python literal that stands among others."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quote = ""

    def read(self, text: str, at: int) -> int:
        """Goes on at `text[at]`; returns the place of what ends it, or where to go on."""
        while at < len(text):
            char = text[at]
            if self._quote:
                at += char == "\\"  # and over what it escapes
                self._quote = "" if char == self._quote else self._quote
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._depth += 1
            elif char in ")]},":
                if not self._depth:
                    self.done = True
                    return at
                self._depth -= char != ","
            at += 1
        return at
