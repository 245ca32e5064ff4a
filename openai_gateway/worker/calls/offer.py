"""The tools that one request lets the model call."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openai_gateway.types import ChatRequest, Tool
from openai_gateway.worker.calls.references import resolved

INPUT = "input"
"""The one parameter under which a model writes the text of a custom tool."""


@dataclass(frozen=True)
class Offer:
    """What may be called, and how.

    `tools` are all that the model is shown, so that the prompt stays the same whatever the choice; `callable` are the
    names of those that the choice leaves. `required`: an answer is a call.
    """

    tools: tuple[Tool, ...]
    callable: frozenset[str]
    required: bool = False
    parallel: bool = True
    formed: bool = False
    """Whether an answer that is no call has a form of its own."""

    @classmethod
    def of(cls, request: ChatRequest) -> Offer | None:
        """None where nothing may be called: the tools are not even shown then, as the model could not use them."""
        choice = request.tool_choice
        if not request.tools or choice.mode == "none":
            return None
        names = frozenset(choice.names or (tool.name for tool in request.tools))
        formed = request.grammar is not None
        return cls(request.tools, names, choice.mode == "required", request.parallel_tool_calls, formed)

    @cached_property
    def by_name(self) -> Mapping[str, Tool]:
        """The tools under their names."""
        return {tool.name: tool for tool in self.tools}

    @cached_property
    def callables(self) -> tuple[Tool, ...]:
        """The tools that may be called, in the order in which they were given."""
        return tuple(tool for tool in self.tools if tool.name in self.callable)

    def name(self, written: str) -> str:
        """The tool that a model means: it may put a namespace before its name, or garble it with markup of channels."""
        if written in self.by_name:
            return written
        plain = re.split(r"<\||[\s\"'<>\[\](){}]", written.strip().strip("\"'"))[0]
        last = plain.removeprefix("functions.").removeprefix("tools.")
        return next((name for name in (plain, last, last.rpartition(".")[2]) if name in self.by_name), last)

    def parameters(self, name: str) -> Parameters:
        """Those of a tool; none for a tool that nobody offered."""
        tool = self.by_name.get(name)
        return Parameters({}) if tool is None else Parameters.of(tool)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a tool takes, one by one."""

    named: Mapping[str, Any]
    """Schemas, under the names of parameters."""
    required: Collection[str] = ()
    others: Any = None
    """The schema of those that may have any name; None where there are none."""

    @classmethod
    def of(cls, tool: Tool) -> Parameters:
        """As its schema says, which is free in what it does not name only where it names nothing."""
        root = schema_of(tool)
        schema = resolved(root, root)
        schema = schema if isinstance(schema, dict) else {}
        if properties := schema.get("properties"):
            named = {key: resolved(value, root) for key, value in properties.items()}
            return cls(named, schema.get("required") or ())
        others = schema.get("additionalProperties", "properties" not in schema)
        if isinstance(others, bool):
            others = {} if others else None
        return cls({}, others=resolved(others, root))

    def schema(self, key: str) -> Any:
        """That of a parameter; None where there is none."""
        return self.named.get(key, self.others)


def schema_of(tool: Tool) -> dict[str, Any]:
    """The JSON Schema of the object that the model writes as a tool's arguments."""
    if tool.kind == "custom":
        text = {"type": "string"}
        return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}
    schema = json.loads(tool.parameters or "{}")
    return schema if isinstance(schema, dict) and schema else {"type": "object", "properties": {}}


def described(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it. Those of gpt-oss and others fail without a description."""
    function = {"name": tool.name, "description": tool.description, "parameters": schema_of(tool)}
    return {"type": "function", "function": function}
