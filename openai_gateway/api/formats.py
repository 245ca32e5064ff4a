"""The form that an answer must have: OpenAI's `response_format`, and vLLM's names for it and for other forms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from openai_gateway.errors import InvalidRequest, UnsupportedParameter
from openai_gateway.types import Grammar
from openai_gateway.worker.schema import DEEPEST, MOST, VALUES

KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"), dict),
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"), list),
    **dict.fromkeys(("pattern", "format", "$ref"), str),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), int),
    "type": (str, list),
}
"""What the value of a keyword must be: chat templates and readers of tool calls look into schemas as well."""

TOO_LONG = f"it is longer than {MOST} characters"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


class JsonSchema(BaseModel):
    """`response_format.json_schema`. Without `strict`, answers are held to as much of the schema as can be kept to."""

    model_config = ConfigDict(strict=True)

    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's parameter. A `json_object` may bring a schema, as llama.cpp and others have it."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def form(self) -> Grammar | None:
        """What holds the answer to it; None for plain text. Raises `InvalidRequest`."""
        param = "response_format"
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json", source=schema_text({"type": "object"} | (self.schema_ or {}), param, param))
        if (asked := self.json_schema) is None:
            if self.schema_ is None:
                raise InvalidRequest.missing("response_format.json_schema")
            asked = JsonSchema(name="response", schema=self.schema_)  # as llama.cpp has it
        schema = {"type": "object"} if asked.schema_ is None else asked.schema_
        source = schema_text(schema, f"response_format '{asked.name}'", param)
        description, lenient = asked.description or "", not asked.strict
        return Grammar(kind="json", source=source, name=asked.name, description=description, lenient=lenient)


class StructuredOutputs(BaseModel):
    """vLLM's parameter: one of these forms."""

    model_config = ConfigDict(strict=True, extra="allow")

    json_: Any = Field(None, alias="json")
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def forms(self) -> Iterator[Grammar]:
        """Every form that is asked for; a request may have one. Raises `InvalidRequest`."""
        unknown = ("whitespace_pattern", "structural_tag", "disable_any_whitespace", "disable_additional_properties")
        for name in unknown:
            if (self.model_extra or {}).get(name) not in (None, False):
                param = f"structured_outputs.{name}"
                raise UnsupportedParameter(f"This server does not support '{param}'; leave it out.", param=param)
        if self.json_object:
            yield Grammar(kind="json", source='{"type":"object"}', param="structured_outputs.json_object")
        params = [f"structured_outputs.{name}" for name in ("json", "regex", "choice", "grammar")]
        yield from _forms(params, self.json_, self.regex, self.choice, self.grammar)


class Forms(BaseModel):
    """The parameters of a body that say which form the answer must have."""

    model_config = ConfigDict(strict=True)

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Texts | None = None
    guided_grammar: str | None = None

    def form(self) -> Grammar | None:
        """The one form that is asked for. Raises `InvalidRequest` where there are several, or it is none."""
        params = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        asked = [
            *_forms(params, self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar),
            *(self.structured_outputs.forms() if self.structured_outputs else ()),
        ]
        if self.response_format and (form := self.response_format.form()):
            asked.insert(0, form)
        if len(asked) > 1:
            first, param = asked[0].param, asked[1].param
            raise InvalidRequest(f"An answer has one form: give either '{first}' or '{param}'.", param=param)
        return asked[0] if asked else None


def _forms(
    params: Sequence[str], schema: Any, regex: str | None, choice: list[str] | None, lark: str | None
) -> Iterator[Grammar]:
    """Those that are there; `params` are their names in the request, in the same order."""
    if schema is not None:
        source = schema_text(_schema(schema, params[0]), params[0], params[0])
        yield Grammar(kind="json", source=source, param=params[0])
    if regex is not None:
        yield Grammar(kind="regex", source=bounded(regex, params[1]), param=params[1])
    if choice is not None:
        source = bounded(json.dumps(choice, ensure_ascii=False), params[2])
        yield Grammar(kind="choice", source=source, param=params[2])
    if lark is not None:
        yield Grammar(kind="lark", source=bounded(lark, params[3]), param=params[3])


def _schema(value: Any, param: str) -> dict[str, Any]:
    """A schema that may also come as JSON text."""
    if isinstance(value, str):
        try:
            value = pydantic_core.from_json(value)
        except ValueError as error:
            raise InvalidRequest(f"Invalid schema for {param}: {error}.", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{param}' must be a JSON Schema: an object, or its JSON text.", param=param)
    return value


def bounded(text: str, param: str) -> str:
    """A grammar as it is. Raises `InvalidRequest` for one that is empty, or too long to be looked at."""
    if not text or len(text) > MOST:
        raise InvalidRequest(f"'{param}' must have between 1 and {MOST} characters.", param=param)
    return text


def schema_text(schema: dict[str, Any], what: str, param: str, code: str | None = None) -> str:
    """The JSON text of a schema, its keys in their order. Raises `InvalidRequest` for one that is too large.

    LangChain knows a refused schema by the words `Invalid schema for response_format`.
    """
    try:
        return _text(schema)
    except ValueError as error:
        raise InvalidRequest(f"Invalid schema for {what}: {error}.", param=param, code=code) from None


def _text(schema: dict[str, Any]) -> str:
    """The same; raises ValueError, with the reason. Its size comes first: the event loop waits for every look at it."""
    if _depth(schema) > DEEPEST:
        raise ValueError(f"it is more than {DEEPEST} levels deep")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError:
        raise ValueError("it holds a number that is not finite") from None
    if len(text) > MOST:
        raise ValueError(TOO_LONG)
    if (keyword := _misused(schema)) is not None:
        raise ValueError(f"'{keyword}' has a value of the wrong type")
    return text


def _misused(schema: Any) -> str | None:
    """A keyword with a value of another type than JSON Schema has for it."""
    if isinstance(schema, list):
        return next((found for one in schema if (found := _misused(one))), None)
    members: dict[str, Any] = schema if isinstance(schema, dict) else {}
    for key, value in members.items():
        kind = KINDS.get(key)
        if kind is not None and not isinstance(value, kind):
            return key
        if key in ("type", "required") and not all(isinstance(name, str) for name in value):
            return key
        inner = list(value.values()) if kind is dict else value
        if key not in VALUES and (found := _misused(inner)):
            return found
    return None


def _depth(schema: Any) -> int:
    """Levels of it. Raises ValueError for more values than it may have characters: each takes one at least."""
    depth, size, level = 0, 0, [schema]
    while level:
        depth, size = depth + 1, size + len(level)
        if size > MOST:
            raise ValueError(TOO_LONG)
        inner = (child for value in level for child in _inner(value))
        level = list(islice(inner, MOST + 1 - size))
    return depth


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
