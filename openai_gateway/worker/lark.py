"""Writes a grammar for llguidance: what the whole output of one choice may be, special tokens included.

An expression is a string in llguidance's Lark syntax (docs/syntax.md of guidance-ai/llguidance): expressions are put
one after the other, joined by `|`, grouped with `(…)`, repeated with `?`, `*` and `+`. A name that a method returns is
an expression, too. Nothing is compiled here, so nothing of it raises but what reads a schema.

    lark = grammars.lark()
    call = f'{lark.mark("<tool_call>")} {lark.text("{")} {lark.json(schema, "function 'f'", "tools")} {lark.text("}")}'
    lark.source(f"{lark.until('</think>')} ({call})+")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llguidance import LLMatcher, regex_to_lark

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar
from openai_gateway.worker.schema import bounded, choices, prepared

ANYTHING = "(?s:.*)"
"""A regular expression: any text, newlines included."""
BLANK = " \t\r\n"
"""White space as it may be between two pieces of markup."""
SPACES = f"[{BLANK}]*"
"""A regular expression: as much of it as there is."""


@dataclass(frozen=True, slots=True)
class Part:
    """A grammar that the request brought, to be compiled by itself when the whole is refused: whose fault was it?"""

    title: str
    """As an error begins: `Invalid schema for response_format 'person'`."""
    param: str
    grammar: str
    """In the form that llguidance reads."""

    @property
    def alone(self) -> str:
        """A grammar of nothing else."""
        return _joined("@g0", [self.grammar])


@dataclass(slots=True)
class Lark:
    """A grammar in the making. `cut` takes a text apart into special tokens, by their ids, and what is between them."""

    cut: Callable[[str], Sequence[int | str]]
    parts: list[Part] = field(default_factory=list)
    _rules: dict[str, str] = field(default_factory=dict)
    """Names, by what they stand for."""

    def text(self, literal: str) -> str:
        """Exactly this text, which may be empty."""
        return json.dumps(literal)

    def mark(self, text: str) -> str:
        """A piece of markup: the special tokens that are in it, and the text that is not."""
        pieces = self.cut(text) or [""]
        return " ".join(self.text(piece) if isinstance(piece, str) else f"<[{piece}]>" for piece in pieces)

    def is_text(self, mark: str) -> bool:
        """Whether a piece of markup begins with text, which free text may do as well."""
        return isinstance(self.cut(mark)[0], str)

    def begun(self, mark: str) -> str:
        """White space, and a piece of markup that is text, in one: free text has no white space to take from it."""
        return self.regex(SPACES + _literal(mark))

    def regex(self, pattern: str, but: str = "") -> str:
        """What a regular expression (of Rust's `regex`) matches, as far as that goes; nothing that `begun` says of
        `but`, a piece of markup that is text."""
        return self._terminal(_but(_regex(pattern), but))

    def until(self, mark: str, text: str = ANYTHING, but: str = "") -> str:
        """Free text, and the first `mark` behind it. A special token cannot be inside; a text is the end at once.
        `but` is that of `regex`."""
        first, *rest = self.cut(mark)
        if not isinstance(first, str):
            return f"{self.regex(text, but)} {self.mark(mark)}"
        if rest:  # what stands before the special token is text like any other until that comes
            return f"{self.regex(text + _literal(first), but)} {self.mark(mark.removeprefix(first))}"
        return self.rule(self.regex(text + _literal(mark), but), "[lazy]")

    def up_to(self, close: str, mark: str, marks: Sequence[str], text: str = ANYTHING, padding: str = "") -> str:
        """Free text, `padding`, `close` and `mark`, which is the first of these `marks` that stands behind a `close`.

        White space may be between the two. None of them has a special token in it.
        """
        ended = _literal(close) + SPACES
        early = f"{ANYTHING}{ended}(?:{'|'.join(map(_literal, marks))})(?s:.+)"
        whole = _regex(text + _literal(padding) + ended + _literal(mark))
        return self.rule(self._terminal(f"{whole} & ~{_regex(early)}"), "[lazy]")

    def json(self, source: str, title: str, param: str, *, lenient: bool = False) -> str:
        """JSON of a schema. `title` and `param` say whose it is, in errors: "function 'add'", "tools".

        `lenient` leaves out keywords that cannot be kept to; else they are an error when the grammar is compiled.
        Raises `InvalidRequest` for a schema that is none or too large.
        """
        return self._part("schema", title, param, lambda: f'{{"json_schema": {prepared(source, lenient=lenient)}}}')

    def grammar(self, grammar: Grammar, title: str) -> str:
        """What a grammar of the request asks for. Raises as `json` does."""
        source, param = grammar.source, grammar.param
        match grammar.kind:
            case "json":
                return self.json(source, title, param, lenient=grammar.lenient)
            case "lark":
                return self._part("grammar", title, param, lambda: _lark(bounded(source)))
            case "regex":
                return self._part("regular expression", title, param, lambda: _start(_regex(bounded(source))))
            case "choice":
                return self._part("choice", title, param, lambda: _start(" | ".join(map(self.text, choices(source)))))

    def rule(self, body: str, options: str = "") -> str:
        """A name for an expression; `options` as in `[lazy]`, for a rule of one regular expression."""
        return self._name("r", f"{options}: {body}")

    def source(self, start: str) -> str:
        """The whole, as llguidance reads it: an output must be what `start` says."""
        rules = (f"{name}{definition}" for definition, name in self._rules.items())
        return _joined("\n".join([start, *rules]), [part.grammar for part in self.parts])

    def _terminal(self, body: str) -> str:
        return self._name("T", f": {body}")

    def _name(self, kind: str, definition: str) -> str:
        return self._rules.setdefault(definition, f"{kind}{len(self._rules)}")

    def _part(self, what: str, title: str, param: str, grammar: Callable[[], str]) -> str:
        title = f"Invalid {what} for {title}"
        try:
            self.parts.append(Part(title, param, grammar()))
        except ValueError as error:
            raise InvalidRequest(f"{title}: {error}.", param=param, code="invalid_value") from None
        return f"@g{len(self.parts) - 1}"


def compiles(pattern: str) -> bool:
    """Whether texts can be held to a regular expression: not if it looks around or back."""
    return not LLMatcher.validate_grammar(f'{{"grammars": [{_start(_regex(pattern))}]}}')


def _joined(rules: str, parts: list[str]) -> str:
    """Rules, the first of them without its name, and the grammars that they refer to as `@g0`, `@g1` …"""
    # Forced text would be cut into tokens ahead of the model: slow where much is forced, as in `x{1000000}`.
    output = _lark(f'%llguidance {{"no_forcing": true}}\nstart: {rules}')
    grammars = [_named("output", output), *(_named(f"g{n}", part) for n, part in enumerate(parts))]
    return f'{{"grammars": [{", ".join(grammars)}]}}'


def _lark(source: str) -> str:
    return json.dumps({"lark_grammar": source})


def _start(expression: str) -> str:
    return _lark(f"start: {expression}")


def _named(name: str, grammar: str) -> str:
    return f'{{"name": "{name}", {grammar[1:]}'


def _regex(pattern: str) -> str:
    """A regular expression as Lark writes it."""
    return f"/{regex_to_lark(pattern, '')}/"


def _but(expression: str, mark: str) -> str:
    """The same without what begins with a mark."""
    return f"{expression} & ~{_regex(SPACES + _literal(mark) + ANYTHING)}" if mark else expression


def _literal(text: str) -> str:
    """A text as a regular expression. `re.escape` writes a few escapes that Rust's `regex` does not read."""
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$&-~#" else char for char in text)
