"""The tools of a chat request and whether they must be called, in today's words and in those before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from openai_gateway.api.formats import Name, bounded, schema_text
from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar, Tool, ToolChoice

MOST = 128
TOGETHER = 2**20
"""Characters of all their schemas: a quarter of a million tokens, which take a fifth of a second to look at."""


class Function(BaseModel):
    """A function, as an entry of `tools` or of the deprecated `functions` holds it."""

    model_config = ConfigDict(strict=True)

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self, where: str) -> Tool:
        """The tool; `where` names the function in errors, as `tools[0].function`."""
        source = ""
        if self.parameters:
            what, param, code = f"function '{self.name}'", f"{where}.parameters", "invalid_function_parameters"
            schema = {"type": "object"} | self.parameters
            if schema["type"] != "object":
                raise InvalidRequest(
                    f"Invalid schema for {what}: its 'type' must be \"object\".", param=param, code=code
                )
            source = schema_text(schema, what, param, code)
        return Tool(name=self.name, description=self.description or "", parameters=source, strict=bool(self.strict))


class Definition(BaseModel):
    """A grammar and the language that it is written in."""

    model_config = ConfigDict(strict=True)

    definition: str
    syntax: Literal["lark", "regex"]


class Format(BaseModel):
    """What a custom tool's text must look like."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "grammar"]
    grammar: Definition | None = None


class Custom(BaseModel):
    """A tool that takes a text."""

    model_config = ConfigDict(strict=True)

    name: Name
    description: str | None = None
    format: Format | None = None

    def tool(self, where: str) -> Tool:
        """The tool; `where` names it in errors."""
        format = None
        if self.format is not None and self.format.type == "grammar":
            if (asked := self.format.grammar) is None:
                raise InvalidRequest.missing(f"{where}.format.grammar")
            param = f"{where}.format.grammar.definition"
            format = Grammar(kind=asked.syntax, source=bounded(asked.definition, param), param=param)
        return Tool(name=self.name, kind="custom", description=self.description or "", format=format)


class ToolBody(BaseModel):
    """An entry of `tools`."""

    model_config = ConfigDict(strict=True)

    type: Literal["function", "custom"]
    function: Function | None = None
    custom: Custom | None = None

    def tool(self, where: str) -> Tool:
        """The tool; `where` names the entry in errors, as `tools[0]`."""
        asked = self.function if self.type == "function" else self.custom
        if asked is None:
            raise InvalidRequest.missing(f"{where}.{self.type}")
        return asked.tool(f"{where}.{self.type}")


class Toolbox(BaseModel):
    """The parameters of a body about tools."""

    model_config = ConfigDict(strict=True)

    tools: Annotated[list[ToolBody], Field(max_length=MOST, fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MOST, fail_fast=True)] | None = None
    function_call: Any = None

    @property
    def deprecated(self) -> bool:
        """Whether the client asks in the words before tools, and is to be answered in them: one call at most."""
        return bool(self.functions)

    @property
    def parallel(self) -> bool:
        """Whether an answer may hold more than one call."""
        return self.parallel_tool_calls is not False and not self.deprecated

    def offered(self) -> tuple[Tool, ...]:
        """The tools, each with a name of its own. Raises `InvalidRequest`."""
        if self.tools and self.functions:
            raise InvalidRequest("'functions' is the old name of 'tools': give one of them.", param="functions")
        name = "functions" if self.deprecated else "tools"
        offers: Sequence[Function | ToolBody] = self.functions or self.tools or ()
        tools: dict[str, Tool] = {}
        size = 0
        for place, offer in enumerate(offers):
            where = f"{name}[{place}]"
            tool = offer.tool(where)
            if tool.name in tools:
                raise InvalidRequest(f"There is more than one tool with the name '{tool.name}'.", param=where)
            tools[tool.name] = tool
            size += len(tool.parameters)
            if size > TOGETHER:
                raise InvalidRequest(f"The schemas of '{name}' are longer than {TOGETHER} characters.", param=name)
        return tuple(tools.values())

    def choice(self, tools: tuple[Tool, ...]) -> ToolChoice:
        """Which of the offered tools may or must be called. Raises `InvalidRequest`."""
        asked = {"tools": ("tool_choice", self.tool_choice), "functions": ("function_call", self.function_call)}
        for offer, (param, value) in asked.items():
            if value not in (None, "none", "auto") and not getattr(self, offer):
                raise InvalidRequest(f"'{param}' is only allowed with '{offer}'.", param=param)
        mode, named = _old_choice(self.function_call) if self.deprecated else _choice(self.tool_choice)
        known = {(tool.kind, tool.name) for tool in tools}
        for kind, name in named:
            if (kind, name) not in known:
                param = "function_call" if self.deprecated else "tool_choice"
                raise InvalidRequest(f"'{param}' names the {kind} '{name[:64]}', which is not offered.", param=param)
        return ToolChoice(mode, tuple(dict.fromkeys(name for _, name in named)))


Chosen = tuple[Literal["none", "auto", "required"], list[tuple[str, str]]]
"""Whether to call, and (kind, name) of each tool that a choice names."""


def _choice(asked: Any) -> Chosen:
    match asked:
        case None | "auto":
            return "auto", []
        case "none" | "required":
            return asked, []
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as few}}:
            return mode, [_reference(tool) for tool in few]
        case _:
            return "required", [_reference(asked)]


def _reference(asked: Any) -> tuple[str, str]:
    match asked:
        case {"type": "function", "function": {"name": str(name)}}:
            return "function", name
        case {"type": "custom", "custom": {"name": str(name)}}:
            return "custom", name
    raise InvalidRequest(
        "'tool_choice' must be none, auto, required, the type and name of a tool, or a list of allowed_tools.",
        param="tool_choice",
    )


def _old_choice(asked: Any) -> Chosen:
    match asked:
        case None | "auto":
            return "auto", []
        case "none":
            return "none", []
        case {"name": str(name)}:
            return "required", [("function", name)]
    raise InvalidRequest("'function_call' must be none, auto or have the name of a function.", param="function_call")
