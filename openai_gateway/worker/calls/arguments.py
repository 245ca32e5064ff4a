"""What a tool's arguments may be, as expressions of a grammar: JSON as a whole, or one by one, in text or in code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar, Tool
from openai_gateway.worker.calls.offer import INPUT, Parameters, schema_of
from openai_gateway.worker.calls.references import apart, resolved
from openai_gateway.worker.calls.values import types_of
from openai_gateway.worker.lark import ANYTHING, Lark, compiles

NARROWING: Final = frozenset({"enum", "const", "pattern", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "not"})
JOINT: Final = frozenset({"anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "propertyNames"})
"""What a schema says of an object as a whole."""
LONGEST: Final = 2000
"""Characters that are counted; a bound above that is left to the model."""
KEY: Final = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
"""A regular expression for the name of a parameter that the model may choose."""
FLAGS: Final = re.compile(r"(?:\(\?[isu]+\))?")
"""Those in front of a pattern, which are for all of it."""
PIECE: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]?|.", re.DOTALL)
"""Of a pattern: a character, or what takes the meaning from some."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a value that has no quotes of its own."""

    close: str
    padding: str = ""
    """Stands before `close`."""
    line: str = ""
    """Stands behind it."""
    tags: tuple[str, ...] = ()
    """Where there are any, a `close` without one of these behind it is text like any other."""
    then: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    """What may stand behind it: tags, and what comes behind each of them."""

    def mark(self, lark: Lark) -> str:
        """That of a value that cannot run over it."""
        return self._either({tag: lark.mark(self.padding + self.close + self.line + tag) for tag in self.then})

    def text(self, lark: Lark, text: str = ANYTHING, padding: str = "") -> str:
        """A free text, which is what a regular expression matches, and its end, with this padding."""
        if self._is_text(lark, self.close, *self.then):
            tags = [tag for tag in self.tags if self._is_text(lark, tag)]
            return self._either({tag: lark.up_to(self.close, tag, tags, text, padding) for tag in self.then})
        behind = self._either({tag: lark.mark(self.line + tag) for tag in self.then})
        return f"{lark.until(padding + self.close, text)} {behind}"

    def _is_text(self, lark: Lark, *marks: str) -> bool:
        return bool(self.tags) and all(lark.cut(mark) == [mark] for mark in marks)

    def _either(self, marks: Mapping[str, str]) -> str:
        return either(f"{marks[tag]} {rest}" for tag, rest in self.then.items())


def either(expressions: Iterable[str]) -> str:
    """One of them."""
    return f"({' | '.join(expressions)})"


def title(tool: Tool) -> str:
    """What a tool is called in errors."""
    return f"function '{tool.name}'" if tool.kind == "function" else f"custom tool '{tool.name}'"


def as_object(lark: Lark, tool: Tool) -> str:
    """All arguments as one JSON object. Raises `InvalidRequest` for a schema that cannot be held to."""
    schema = schema_of(tool)
    if tool.format is not None and tool.format.kind == "lark":
        raise InvalidRequest(
            f"This model writes the text of {title(tool)} as JSON, which a Lark grammar cannot describe; a regular "
            "expression can.",
            param="tools",
        )
    if tool.format is not None:
        schema["properties"][INPUT]["pattern"] = f"^(?:{tool.format.source})$"
    return lark.json(json.dumps(schema), title(tool), "tools", lenient=tool.kind == "function" and not tool.strict)


def members(tool: Tool) -> Iterator[tuple[str | None, Any, bool]]:
    """Each parameter: its name, its schema with all that this refers to, and whether it must be there.

    The name is None for any number of parameters, of whatever name. Raises `InvalidRequest` where a strict schema says
    something of all of them together.
    """
    root, parameters = schema_of(tool), Parameters.of(tool)
    whole = resolved(root, root)
    if tool.strict and isinstance(whole, dict) and (joint := sorted(JOINT & whole.keys())):
        raise InvalidRequest(
            f"Invalid schema for {title(tool)}: this model writes parameters one by one, which cannot be held to "
            f"{', '.join(joint)} at the root of a schema. Say it of a parameter, or leave `strict` out.",
            param="tools",
        )
    for key, schema in parameters.named.items():
        yield key, apart(schema, root), key in parameters.required
    if parameters.others is not None:
        yield None, apart(parameters.others, root), False


def head(lark: Lark, before: str, key: str | None, behind: str) -> str:
    """The name of a parameter, between two pieces of markup."""
    if key is None:
        return f"{lark.mark(before)} {lark.regex(KEY)} {lark.mark(behind)}"
    return lark.mark(f"{before}{key}{behind}")


def repeated(parameter: str, key: str | None, comma: str = "") -> str:
    """A parameter, or as many as may have any name."""
    return parameter if key is not None else f"{parameter} ({comma} {parameter})*"


def as_text(lark: Lark, tool: Tool, schema: Any, end: End) -> str:
    """A value without quotes and its end: a text, or the JSON of anything else."""
    if tool.format is not None:
        text = lark.grammar(tool.format, title(tool))
        if tool.format.kind == "regex":  # which would go on over a tag that is text
            return end.text(lark, f"(?:{tool.format.source})", end.padding)
        return f"{text} {end.mark(lark)}"
    if _is_free(schema):
        return end.text(lark)
    if types_of(schema) == {"string"}:
        if choices := _choices(schema):
            return f"{either(map(lark.text, choices))} {end.mark(lark)}"
        return end.text(lark, _matching(lark, tool, schema), end.padding)
    return f"{value(lark, tool, schema)} {end.mark(lark)}"


def parameters(
    lark: Lark, tool: Tool, end: End, opens: str, closes: str, head: Callable[[str | None, Any], str]
) -> str:
    """All of a call, in their order, and the tag that closes the call.

    `opens` is the tag of each; `head` writes the rest of that, for its name and schema, up to the value.
    """
    then = {closes: ""}
    for key, schema, required in reversed([*members(tool)]):
        one = f"{head(key, schema)} {as_text(lark, tool, schema, replace(end, then=then))}"
        if key is None:
            again = as_text(lark, tool, schema, replace(end, then={opens: ""}))
            one = f"({head(key, schema)} {again})* {one}"
        without = [] if required or opens not in then else [then[opens]]
        rest = lark.rule(" | ".join([one, *without]))
        then = {opens: rest} | ({} if required or closes not in then else {closes: ""})
    return either(f"{lark.mark(end.line + tag)} {rest}" for tag, rest in then.items())


def value(lark: Lark, tool: Tool, schema: Any) -> str:
    """A value as JSON."""
    return lark.json(json.dumps(schema), title(tool), "tools", lenient=not tool.strict)


def listed(lark: Lark, parts: Sequence[tuple[str, bool]], comma: str = '","') -> str:
    """Expressions in their order, with a comma between those that are there; each with whether it must be."""
    first, later = '""', '""'
    for expression, required in reversed(parts):
        begun = f"{expression} {later}"
        first = lark.rule(begun if required else f"{begun} | {first}")
        later = lark.rule(f"{comma} {begun}" if required else f"{comma} {begun} | {later}")
    return first


def _matching(lark: Lark, tool: Tool, schema: Mapping[str, Any]) -> str:
    """A regular expression for a text. Raises `InvalidRequest` where there can be none."""
    if "pattern" in schema:
        pattern = _whole(schema["pattern"])
        if tool.strict or compiles(pattern):
            # By itself as well, so that errors name the tool.
            lark.grammar(Grammar(kind="regex", source=pattern, param="tools"), title(tool))
            return pattern
    least, most = max(schema.get("minLength", 0), 0), schema.get("maxLength")
    if most is not None and most < least:
        raise InvalidRequest(
            f"Invalid schema for {title(tool)}: no text has a minLength of {least} and a maxLength of {most}.",
            param="tools",
            code="invalid_value",
        )
    if least > LONGEST:
        return ANYTHING
    return f"(?s:.{{{least},{most if most is not None and most <= LONGEST else ''}}})"


def _is_free(schema: Any) -> bool:
    """Whether any text will do; `null` may be one of them."""
    if not isinstance(schema, dict):
        return False
    options: Sequence[Any] = schema.get("anyOf", ())
    if options and all(map(_is_free_or_null, options)):
        return any(map(_is_free, options))
    return _is_free_or_null(schema) and "string" in types_of(schema)


def _is_free_or_null(schema: Any) -> bool:
    return isinstance(schema, dict) and bool(types_of(schema)) and types_of(schema) <= {"string", "null"} and not (
        NARROWING & schema.keys()
    )  # fmt: skip


def _choices(schema: Mapping[str, Any]) -> list[str]:
    texts = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return [text for text in texts if text and isinstance(text, str)]


def _whole(pattern: str) -> str:
    """A pattern of JSON Schema, which may match anywhere in a text, as one of the whole text."""
    flags = FLAGS.findall(pattern)[0]
    alternatives: list[list[str]] = [[]]
    depth = 0
    for piece in PIECE.findall(pattern.removeprefix(flags)):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            alternatives.append([])
        else:
            alternatives[-1].append(piece)
    return f"(?:{flags}{'|'.join(map(_unanchored, alternatives))})"


def _unanchored(pieces: Sequence[str]) -> str:
    begin, end = pieces[:1] == ["^"], pieces[-1:] == ["$"]
    inner = "".join(pieces[begin : len(pieces) - end])
    return f"{'' if begin else ANYTHING}(?:{inner}){'' if end else ANYTHING}"
