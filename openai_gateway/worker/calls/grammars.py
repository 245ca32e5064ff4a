"""The grammar of each format: calls of the tools that may be called, with arguments that their schemas allow.

What a model says before its first call is none of this: see `openai_gateway.worker.answers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.types import Tool
from openai_gateway.worker.answers import Calls
from openai_gateway.worker.calls.arguments import (
    End,
    as_object,
    as_text,
    either,
    head,
    listed,
    members,
    parameters,
    repeated,
    value,
)  # fmt: skip
from openai_gateway.worker.calls.literals import BARE, Gemma
from openai_gateway.worker.calls.offer import Offer
from openai_gateway.worker.calls.tagged import Keys, Tags
from openai_gateway.worker.calls.values import types_of
from openai_gateway.worker.lark import ANYTHING, BLANK, SPACES, Lark

LIMITED: Final = frozenset({"minItems", "maxItems", "uniqueItems", "prefixItems", "contains", "enum", "const"})
"""What a list can be held to only as JSON."""

Form = Callable[[Lark, Offer], Calls]
"""Writes the grammar of the calls that an offer allows."""
One = Callable[[Lark, Tool], str]
"""Writes that of one call."""

DEEPEST: Final = 4
"""Levels of Gemma's own way of writing values; what is deeper is JSON."""


@dataclass(frozen=True, slots=True)
class Calling:
    """Calls between marks: all of them, or (`each`) every one."""

    one: One
    opens: str
    closes: str = ""
    line: str = ""
    """Behind `opens` and before `closes`."""
    opening: str = ""
    """Behind `opens` alone."""
    between: str = ""
    each: bool = False

    def __call__(self, lark: Lark, offer: Offer) -> Calls:
        call = either(self.one(lark, tool) for tool in offer.callables)
        # A line that might be that before the next call is read by itself.
        line, closes = _mark(lark, self.line + self.opening), f"{_mark(lark, self.line)} {_mark(lark, self.closes)}"
        more = f"{_mark(lark, self.opens)} {line} {call} {closes}" if self.each else call
        again = f"({_mark(lark, self.between)} {more})*" if offer.parallel else ""
        body = f"{line} {call} {closes} {again}" if self.each else f"{line} {call} {again} {closes}"
        return begun(lark, offer, self.opens, body)


def begun(lark: Lark, offer: Offer, opens: str, body: str) -> Calls:
    """Calls that begin with a mark."""
    pieces = lark.cut(opens)
    if len(pieces) > 1 and isinstance(pieces[0], str) and not offer.required:
        # Free text may end with what stands before the special token, which is what tells the beginning.
        opens = opens.removeprefix(pieces[0])
    return Calls(body, opens, required=offer.required)


def _mark(lark: Lark, text: str) -> str:
    return lark.mark(text) if text else ""


# One call


def envelope(name: str = "name", arguments: str = "arguments", more: str = "") -> One:
    """A JSON object with the name and the arguments; `more`, a regular expression, may stand behind them."""

    def one(lark: Lark, tool: Tool) -> str:
        head = lark.text(f'{{"{name}": {json.dumps(tool.name)}, "{arguments}": ')
        extra = f"({lark.regex(more)})?" if more else ""
        return f"{head} {as_object(lark, tool)} {extra} {lark.text('}')}"

    return one


def as_named(before: str, after: str, closes: str = "") -> One:
    """The name, and then the arguments as JSON."""

    def one(lark: Lark, tool: Tool) -> str:
        return f"{lark.mark(before + tool.name + after)} {as_object(lark, tool)} {_mark(lark, closes)}"

    return one


def counted(before: str, after: str, closes: str) -> One:
    """The name, which call it is, and the arguments as JSON."""

    def one(lark: Lark, tool: Tool) -> str:
        head = f"{lark.mark(f'{before}{tool.name}:')} {lark.regex('[0-9]{1,3}')} {lark.mark(after)}"
        return f"{head} {as_object(lark, tool)} {_mark(lark, closes)}"

    return one


def tagged(
    tags: Tags,
    *,
    quote: str = '"',
    line: str = "\n",
    said: Callable[[Any], str] = lambda schema: "",
    index: str = "",
) -> One:
    """Parameters between tags. `said` is what the tag of one says of its schema, `index` (a regular expression) what
    that of a call says behind the name; `line` stands behind tags.
    """

    def one(lark: Lark, tool: Tool) -> str:
        def named(key: str | None, schema: Any) -> str:
            return head(lark, quote, key, f"{quote}{said(schema)}{tags.ends}{tags.padding}")

        # Without a section, calls begin with the tag of the first.
        opens = tags.call[0] if tags.section is not None else ""
        parts = [lark.mark(f"{opens}{quote}{tool.name}{quote}"), lark.regex(index) if index else ""]
        parts += [lark.mark(tags.ends), parameters(lark, tool, end, tags.parameter[0], tags.call[1], named)]
        return " ".join(parts)

    end = End(tags.parameter[1], tags.padding, line, tags.behind)
    return one


def keyed(keys: Keys) -> One:
    """Keys and values in tags of their own, and what closes the call."""

    def one(lark: Lark, tool: Tool) -> str:
        def named(key: str | None, schema: Any) -> str:
            return head(lark, "", key, f"{keys.key[1]}\n{keys.value[0]}")

        end = End(keys.value[1], line="\n", tags=keys.behind)
        return f"{lark.text(tool.name)} {parameters(lark, tool, end, keys.key[0], keys.call[1], named)}"

    return one


def python(lark: Lark, tool: Tool) -> str:
    """A call with keywords; JSON's values are Python's, but for three names that are read as well."""
    comma = lark.text(", ")
    parts = [
        (repeated(f"{head(lark, '', key, '=')} {value(lark, tool, schema)}", key, comma), required)
        for key, schema, required in members(tool)
    ]
    return f"{lark.text(f'{tool.name}(')} {listed(lark, parts, comma)} {lark.text(')')}"


def gemma(form: Gemma) -> Form:
    """Gemma's own notation. An answer that begins as a call without its first mark is one."""

    def calls(lark: Lark, offer: Offer) -> Calls:
        marked = Calling(one, *form.call, each=True)(lark, offer)
        if offer.required or offer.formed:
            return marked
        names = [BARE % tool.name for tool in offer.callables]
        free = f"{SPACES}(?:{not_beginning([*names, *BLANK])})?"
        return Calls(f"({lark.until(marked.trigger, free)})? {marked.body}", free=free)

    def one(lark: Lark, tool: Tool) -> str:
        parts = [
            (repeated(f"{head(lark, '', key, ':')} {written(lark, tool, schema, 0)}", key, '","'), required)
            for key, schema, required in members(tool)
        ]
        return f"{lark.text(f'call:{tool.name}{{')} {listed(lark, parts)} {lark.text('}')}"

    def written(lark: Lark, tool: Tool, schema: Any, depth: int) -> str:
        if depth < DEEPEST and isinstance(schema, dict) and types_of(schema) == {"string"}:
            return f"{lark.mark(form.quote)} {as_text(lark, tool, schema, End(form.quote))}"
        items = schema.get("items") if types_of(schema) == {"array"} and not LIMITED & schema.keys() else None
        if depth < DEEPEST and isinstance(items, dict):
            definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
            inner = written(lark, tool, items | definitions, depth + 1)
            return f'"[" ({inner} ("," {inner})*)? "]"'
        return value(lark, tool, schema)

    return calls


# Formats that need more


def harmony(lark: Lark, offer: Offer) -> Calls:
    """One message to a function; its name stands in either part of the header."""

    def one(tool: Tool) -> str:
        if tool.format is not None and tool.format.kind == "lark":
            return f"{lark.mark('<|message|>')} {lark.grammar(tool.format, f'custom tool {tool.name!r}')}"
        return f"{lark.mark(' <|constrain|>json<|message|>')} {as_object(lark, tool)}"

    channel = "<|channel|>commentary"
    heads = (f"{channel} to=functions.{{}}", f" to=functions.{{}}{channel}")
    calls = [f"{either(lark.mark(head.format(tool.name)) for head in heads)} {one(tool)}" for tool in offer.callables]
    return Calls(either(calls), required=offer.required)


def llama3(lark: Lark, offer: Offer) -> Calls:
    """Objects at the beginning of an answer. What begins as one with the name of a tool is a call.

    So is what begins so in an answer with a form of its own, if the form lets it name a tool and arguments.
    """
    one = envelope(arguments="parameters")
    call = either(one(lark, tool) for tool in offer.callables)
    more = f"({lark.text('; ')} {call})*" if offer.parallel else ""
    body = f"({lark.mark('<|python_tag|>')})? {call} {more}"
    names = [f'{{"name": {json.dumps(tool.name)}' for tool in offer.callables]
    return Calls(body, required=offer.required, free=not_beginning(names))


def not_beginning(texts: Sequence[str]) -> str:
    """A regular expression for texts that do not begin with any of these."""
    if "" in texts:
        return "[^\\s\\S]"
    following = sorted({text[0] for text in texts})
    others = f"[^{''.join(map(_escaped, following))}]{ANYTHING}"
    deeper = (
        f"{_escaped(char)}(?:{not_beginning([text[1:] for text in texts if text[0] == char])})?"
        for char in following
        if char not in texts
    )
    return "|".join([others, *deeper])


def _escaped(char: str) -> str:
    return f"\\{char}" if char in r"\.+*?()|[]{}^$&-~#" else char
