"""How hard to think: one effort level, told to each model family in the words of its own chat template.

A template is known by the variables it reads. Levels that a family does not have go to the nearest one it has;
a listed level is never refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from jinja2 import Environment, TemplateError, meta, nodes

from openai_gateway.types import Effort

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

# Rows of (what the template's own text names) → level to say for each of ours. The first row that applies is taken.
_TO_MAX: Mapping[Effort, str] = {"low": "high", "medium": "high", "high": "high", "xhigh": "max", "max": "max"}
_TO_HIGH_OR_NONE: Mapping[Effort, str] = {
    "none": "none", "minimal": "none", "low": "high", "medium": "high", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
_TO_THREE: Mapping[Effort, str] = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


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


@lru_cache(maxsize=64)
def read(source: str) -> Template:
    """What a Jinja chat template reads. Templates with tags of their own are searched as text."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except TemplateError:
        words = frozenset(re.findall(r"\w+", source))
        return Template(words, words & set(HINTS))
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return Template(frozenset(meta.find_undeclared_variables(tree)), frozenset(constants & set(HINTS)))


def plan(effort: Effort | None, template: Template) -> Plan:
    """How to tell the model behind `template` to think that hard; nothing is said when no effort was asked for."""
    if effort is None:
        return Plan()
    kwargs: dict[str, Any] = {name: effort != "none" for name in SWITCHES if name in template.variables}
    if "thinking_budget" in template.variables:
        kwargs["thinking_budget"] = BUDGETS[effort]
    if "reasoning_effort" in template.variables and (level := _level(effort, template)):
        kwargs["reasoning_effort"] = level
    return Plan(kwargs) if kwargs else Plan(hint=HINTS[effort])


def _level(effort: Effort, template: Template) -> str | None:
    if "max" in template.levels:  # GLM, DeepSeek V4: two levels above a switch of their own
        return _TO_MAX.get(effort)
    if "none" in template.levels:  # Mistral: on or off under the name of a level
        return _TO_HIGH_OR_NONE[effort]
    return _TO_THREE[effort]  # gpt-oss prints whatever it is given, and was trained on these three
