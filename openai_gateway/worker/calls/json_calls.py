"""Readers of formats whose calls or arguments are JSON text, which goes to the client as it is written."""

from __future__ import annotations

import json
from typing import Final

from openai_gateway.worker.calls.deltas import Calls
from openai_gateway.worker.calls.jsontext import StringText
from openai_gateway.worker.calls.tape import NoCall, Step, Tape

NAMES: Final = frozenset({"name", "tool_name", "function", "tool"})
ARGUMENTS: Final = frozenset({"arguments", "parameters", "args"})


def objects(tape: Tape, calls: Calls, close: str = "", *, known: bool = False) -> Step[None]:
    """`{"name": …, "arguments": …}`, once, in a list, or several of them with `,` or `;` between; then `close`.

    `known`: only a tool that may be called, with arguments, is a call, as in text without marks.
    """
    end = None
    while True:
        character = yield from tape.space()
        if character == "{":
            yield from envelope(tape, calls, known=known)
            tape.commit()
            end = tape.at
        elif character == "]":
            tape.at += 1
            end = tape.at
        elif character and character in "[,;":
            tape.at += 1
        else:
            break
    closed = close and (yield from tape.accept(close))
    if end is None:
        raise NoCall
    if not closed:
        tape.at = end  # what was read over belongs to the text behind


def envelope(tape: Tape, calls: Calls, *, known: bool = False) -> Step[None]:
    """One object with the name of a tool and its arguments, in either order, among whatever else."""
    yield from tape.expect("{")
    early = name = ""
    given = False
    while (key := (yield from _key(tape))) is not None:
        character = yield from tape.space()
        if key in NAMES and character == '"' and not name:
            name = yield from _name(tape, calls, known=known)
            given = bool(early)
            if given or not known:
                _begin(tape, calls, name, early)
        elif key in ARGUMENTS and name and not given:
            if known:
                _begin(tape, calls, name)
            yield from arguments(tape, calls)
            given = True
        else:
            value = yield from tape.json()
            early = value if key in ARGUMENTS else early
    if not name or (known and not given):
        raise NoCall
    calls.close()


def _key(tape: Tape) -> Step[str | None]:
    """The key of the next member of an object, and the colon behind it; None at the end of the object."""
    mark = ","
    while mark == ",":
        yield from tape.space()
        mark = yield from tape.accept("}", ",")
    if mark:
        return None
    key = yield from string(tape)
    yield from tape.space()
    yield from tape.expect(":")
    return key


def _name(tape: Tape, calls: Calls, *, known: bool) -> Step[str]:
    name = yield from string(tape)
    if not name or (known and calls.offer.name(name) not in calls.offer.callable):
        raise NoCall
    return name


def _begin(tape: Tape, calls: Calls, name: str, arguments: str = "") -> None:
    """`arguments` are those that stood before the name; the call is complete then."""
    calls.open(name)
    tape.commit()
    if arguments:
        calls.arguments(arguments)
        calls.close()


def arguments(tape: Tape, calls: Calls) -> Step[None]:
    """The arguments of the open call, as JSON, or as a string that holds JSON; then it is complete."""
    character = yield from tape.space()
    if character == '"':
        tape.at += 1
        text = StringText()
        yield from tape.json_pieces(lambda piece: calls.arguments(text.push(piece)), in_string=True)
    elif character and character in "{[":
        yield from tape.json_pieces(calls.arguments)
    elif (value := (yield from tape.json())) != "null":
        calls.arguments(value)
    calls.close()


def string(tape: Tape) -> Step[str]:
    """A JSON string."""
    written = yield from tape.json()
    try:
        text = json.loads(written, strict=False)
    except ValueError:
        raise NoCall from None
    if not isinstance(text, str):
        raise NoCall
    return text
