"""How hard to think: one effort level, told to each model family in the words of its own chat template.

A template is known by the variables it reads. Levels that a family does not have go to the nearest one it has;
a listed level is never refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from openai_gateway.types import EFFORTS, Effort

SWITCHES = ("enable_thinking", "thinking")
BUDGETS: Mapping[Effort, int] = {
    "none": 0, "minimal": 512, "low": 512, "medium": 2048, "high": -1, "xhigh": -1, "max": -1,
}  # fmt: skip
"""Seed-OSS: thinking tokens, -1 for no bound."""

HINTS: Mapping[Effort, str] = {
    "none": "Answer at once, without any reasoning.",
    "minimal": "Answer briefly, with as little reasoning as possible.",
    "low": "Think only briefly before you answer.",
    "medium": "Think step by step where it helps, then answer.",
    "high": "Think carefully, step by step, and check your reasoning before you answer.",
    "xhigh": "Think very carefully, step by step, consider alternatives, and check every step before you answer.",
    "max": "Think as long and as carefully as you can: explore alternatives and verify every step before you answer.",
}

GPT_OSS_LEVELS: tuple[Effort, ...] = ("low", "medium", "high")
"""Named by no template: gpt-oss' prints whatever it is given, and the model was trained on these three."""


@dataclass(frozen=True, slots=True)
class Template:
    """What a chat template reads: its variables, and the effort levels that its text names."""

    variables: frozenset[str] = frozenset()
    levels: frozenset[str] = frozenset()

    @property
    def kind(self) -> Literal["effort", "switch", "hint"]:
        """How effort reaches this model; a thinking budget counts as a switch."""
        if "reasoning_effort" in self.variables:
            return "effort"
        return "switch" if self.variables & {*SWITCHES, "thinking_budget"} else "hint"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to tell a model: keywords for its template, or a sentence for its system prompt."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    hint: str | None = None


class Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: transformers' mark around an assistant's words, for training."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def read(source: str) -> Template:
    """What a Jinja chat template reads; nothing where it is none that transformers can render either."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(source)
        constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        variables = _read_first(tree, set())
        variables &= meta.find_undeclared_variables(tree)  # last, for it folds lists of constants into one
    except TemplateError:
        return Template()
    return Template(frozenset(variables), frozenset(constants & set(HINTS)))


def _read_first(node: nodes.Node, assigned: set[str]) -> set[str]:
    """Names that are read before anything is assigned to them, which are those that the caller can set.

    `jinja2.meta.find_undeclared_variables` knows macros and globals, but also names what one branch assigns and reads.
    """
    if isinstance(node, nodes.Name):
        if node.ctx != "load":
            assigned.add(node.name)
        return set() if node.name in assigned else {node.name}
    if isinstance(node, nodes.Macro | nodes.For | nodes.CallBlock):
        assigned = set(assigned)  # a scope of its own
    children = [*node.iter_child_nodes()]
    if isinstance(node, nodes.Assign):
        children.reverse()  # the value is read before the name has it
    return {name for child in children for name in _read_first(child, assigned)}


def plan(effort: Effort | None, template: Template) -> Plan:
    """How to tell the model behind `template` to think that hard; nothing is said when no effort was asked for."""
    if effort is None:
        return Plan()
    kwargs: dict[str, Any] = dict.fromkeys(_switches(template), effort != "none")
    if "thinking_budget" in template.variables:
        kwargs["thinking_budget"] = BUDGETS[effort]
    if "reasoning_effort" in template.variables and (level := _level(effort, template)):
        kwargs["reasoning_effort"] = level
    return Plan(kwargs) if kwargs else Plan(hint=HINTS[effort])


def _switches(template: Template) -> list[str]:
    return [name for name in SWITCHES if name in template.variables]


def _level(effort: Effort, template: Template) -> Effort | None:
    """The nearest level that the template names, of two equally near ones the higher; None where none is to be said."""
    levels = [level for level in EFFORTS if level in template.levels]
    if len(levels) < 2:
        levels = [*GPT_OSS_LEVELS]
    place = EFFORTS.index(effort)
    lowest = EFFORTS.index(levels[0])
    if place < lowest and ("thinking" in template.variables or (effort == "none" and _switches(template))):
        # The switch says it all: it is off, or (DeepSeek V4) every level stands for more than plain thinking.
        return None
    return max(levels, key=lambda level: (-abs(EFFORTS.index(level) - place), EFFORTS.index(level)))
