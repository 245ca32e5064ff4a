"""JSON Schemas of requests, made ready for llguidance: bounded, and told how JSON may be written.

What llguidance takes of JSON Schema, and where it departs from it, is in docs/json_schema.md of guidance-ai/llguidance.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

from llguidance import LLMatcher

from openai_gateway.worker.calls.references import missing

MOST = 128 * 1024
"""Characters of one schema or grammar: 5000 properties, which take almost 2 s to compile. OpenAI takes 120,000."""
DEEPEST = 64
"""Levels of nesting; llguidance's own reader gives up at 128."""
TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"
DIGITS = 4
"""Of a `multipleOf`: one of five takes a second to compile and 100 MB, one of seven minutes."""
CHOICES = 10_000
"""Texts to choose from."""

WRITING = {
    # Without a bound, a model that has nothing to say writes white space until its tokens are used up.
    "whitespace_pattern": r" |\r?\n( {0,40}|\t{0,16})",
    # No \u: half of a surrogate pair is no text, and lengths are counted in characters.
    "json_allowed_escapes": 'nrbtf\\"',
}
FORMATS = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"
})  # fmt: skip
"""Those that are held to. Any other is a remark, as JSON Schema has it."""
LEAP = "(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
DATES = f"^(?:{LEAP}-02-29|{YEAR}-(?:02-(?:[01]|2[0-8])|0[13-9]|1))"
"""What llguidance's own form of a date leaves out: leap years, and that no calendar of Python has a year 0."""
SECONDS = r"[^.]*(?:\.[0-9]{1,9}[^0-9].*)?$"
"""And of a time: a bound on the digits of its seconds. Some models never come to the end of them."""
PATTERNS = {"date": DATES, "time": f"^{SECONDS}", "date-time": DATES + SECONDS}
"""What is asked of texts of these formats besides."""
VALUES = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords with plain values behind them."""
JOINING = frozenset({"anyOf", "oneOf", "$ref", "not", "if", "dependentSchemas"})
"""Keywords that put another schema beside what the others say of an object."""
SPEAKING = frozenset({
    "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties",
    "dependentRequired", "const", "enum",
})  # fmt: skip
"""Keywords of an object that say, or imply, which properties it may have besides those that it names."""
NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Keywords with schemas behind them under names of the user's own."""


def prepared(source: str, *, lenient: bool = False) -> str:
    """The JSON text of a schema as llguidance takes it.

    Raises ValueError, with the reason, for what is no JSON Schema or too large. `lenient`: keywords that cannot be kept
    to are ignored; else they are an error when the schema is compiled.
    """
    schema = _read(source)
    if schema is True:
        schema = {}
    if schema is False:
        raise ValueError("it allows no value at all")
    if not isinstance(schema, dict):
        raise ValueError("it must be a JSON object")
    if _depth(schema) > DEEPEST:
        raise ValueError(TOO_DEEP)
    # Servers of tools cut definitions off; what they were for may then be anything.
    tidied = _tidied(schema, Tidying(not _joins(schema), lenient, missing(schema) if lenient else frozenset()))
    tidied["x-guidance"] = WRITING | {"lenient": True} if lenient else WRITING
    return json.dumps(tidied)


def choices(source: str) -> list[str]:
    """The texts of a `choice`, from the JSON list that they come as. Raises ValueError, with the reason."""
    texts = _read(source)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("a list of texts is expected, none of them empty")
    if len(texts) > CHOICES:
        raise ValueError(f"there are more than {CHOICES} texts")
    return texts


def bounded(source: str) -> str:
    """A text of a request, if it is not too long. Raises ValueError."""
    if len(source) > MOST:
        raise ValueError(f"it is longer than {MOST} characters")
    return source


def _read(source: str) -> Any:
    try:
        return json.loads(bounded(source), parse_constant=_refuse)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted without recursion."""
    depth, level = 0, [value]
    while level := [child for one in level for child in _children(one)]:
        depth += 1
    return depth


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def readable(pattern: str) -> bool:
    """Whether texts can be held to a pattern: not if it looks around or back, as Zod's own for e-mail does."""
    return not LLMatcher.validate_grammar(f'{{"grammars": [{{"json_schema": {json.dumps({"pattern": pattern})}}}]}}')


class Tidying(NamedTuple):
    """How a schema is tidied."""

    closing: bool
    """Objects that name their properties and say nothing of others have no others. They might, but who wrote the schema
    does not expect any, and a weak model once astray makes up one after the other."""
    lenient: bool
    missing: frozenset[str]
    """References that lead nowhere, and are left out."""


def _tidied(schema: Any, how: Tidying) -> Any:
    """A copy without formats that nobody knows, and without demands that demand nothing or (`lenient`) too much."""
    if isinstance(schema, list):
        return [_tidied(one, how) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if _is_told_apart(schema):  # llguidance does not see that of references
        schema = {"anyOf" if key == "oneOf" else key: value for key, value in schema.items()}
    kept = {key: value for key, value in schema.items() if not _is_remark(key, value, how)}
    copy = {key: _kept(key, value, how) for key, value in kept.items()}
    if isinstance(form := schema.get("format"), str) and form in PATTERNS:
        copy.setdefault("pattern", PATTERNS[form])
    return copy | {"additionalProperties": False} if how.closing and _is_silent(schema) else copy


def _kept(key: str, value: Any, how: Tidying) -> Any:
    if key in VALUES:
        return value
    if key == "multipleOf" and _is_long(value):
        raise ValueError(f"'multipleOf' has more than {DIGITS} digits")
    if key in NAMED and isinstance(value, dict):
        return {name: _tidied(one, how) for name, one in value.items()}
    return _tidied(value, how)


def _joins(schema: Any) -> bool:
    """Whether an object may have to be of several schemas at once: what one does not name, another may.

    Of `oneOf` it may have to be none but one: what would be two of them if they were open must not be said.
    """
    if not isinstance(schema, dict):
        return isinstance(schema, list) and any(map(_joins, schema))
    keys = schema.keys()
    joined = bool(JOINING & keys) and len(keys & (JOINING | SPEAKING | {"properties", "required"})) > 1
    joined = joined or keys >= {"properties", "patternProperties"} or "allOf" in keys
    return joined or ("oneOf" in keys and not _is_told_apart(schema)) or any(map(_joins, schema.values()))


def _is_told_apart(schema: dict[str, Any]) -> bool:
    """Whether the alternatives of a `oneOf` are never true together: OpenAPI's word, which Pydantic writes."""
    return "oneOf" in schema and "anyOf" not in schema and isinstance(schema.get("discriminator"), dict)


def _is_silent(schema: dict[str, Any]) -> bool:
    """Whether an object names its properties, demands no others, and does not say what they may be."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list) or SPEAKING & schema.keys():
        return False
    return all(name in named for name in required)


def _is_remark(key: str, value: Any, how: Tidying) -> bool:
    if key == "$ref":
        return isinstance(value, str) and value in how.missing
    if how.lenient and key in ("pattern", "multipleOf"):
        return _is_long(value) or (isinstance(value, str) and not readable(value))
    if key == "format":
        return isinstance(value, str) and value not in FORMATS
    return key == "uniqueItems" and value is False


def _is_long(value: Any) -> bool:
    return isinstance(value, int | float) and len(Decimal(str(value)).normalize().as_tuple().digits) > DIGITS
