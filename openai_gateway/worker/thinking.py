"""Where one model's thinking begins and ends: what a request asks of it, the marks around it, and what a prompt opens.

Which family wants what stands in the table of `openai_gateway.reasoning`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from openai_gateway import reasoning
from openai_gateway.reasoning import Plan, Tags, Template
from openai_gateway.types import ChatRequest, Effort, Message
from openai_gateway.worker.templates import TEMPLATE_ERRORS
from openai_gateway.worker.turns import without_past_reasoning

HARMONY_ANSWER = "<|channel|>final<|message|>"
"""What an assistant turn of harmony begins with when it answers without thinking, or goes on with a given text."""

OPENED = re.compile(r"\s*(?:<[^<>/]+>)?\s*")
"""What may stand behind the mark that opens a thought: Seed-OSS opens another one in it."""


QUESTION = [{"role": "user", "content": "question"}]


class Opening(NamedTuple):
    """How an answer begins: with a text that is added to the prompt, and in which channel."""

    text: str = ""
    start_in: str | None = None
    budget: int | None = None
    """Most tokens of reasoning; None where there is no bound, or nothing left to be bound."""


def tried(tokenizer: Any, template: Template) -> Template:
    """The same with what the model does when nothing is said of thinking. `tokenizer` is mlx-lm's wrapper."""

    def prompt(**kwargs: Any) -> str:
        # Past the wrapper, which always says something.
        inner = tokenizer._tokenizer
        return str(inner.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True, **kwargs))

    try:
        return replace(template, thinks=prompt() != prompt(**template.off)) if template.off else template
    except TEMPLATE_ERRORS:
        return template


@dataclass(frozen=True, slots=True)
class Thinking:
    """How one model thinks. `tags` are None where it does not, or in channels (`harmony`)."""

    template: Template
    tags: Tags | None
    harmony: bool = False

    @classmethod
    def of(cls, tokenizer: Any, template: Template, *, harmony: bool) -> Thinking:
        """`tokenizer` is mlx-lm's wrapper: what it found in the vocabulary goes before what the family has."""
        tags = template.family.tags
        if tokenizer.has_thinking:
            tags = (tags or Tags("", ""))._replace(start=tokenizer.think_start, end=tokenizer.think_end)
        return cls(template, None if harmony else tags, harmony)

    def plan(self, request: ChatRequest, default: Effort | None, max_tokens: int | None) -> Plan:
        """What to tell the model; `default` is its effort where the request has none, `max_tokens` its most in all."""
        kwargs, others = self._keywords(request)
        effort, budget = request.effort or _effort(others, default) or default, request.thinking_budget
        own = kwargs.get("thinking_budget")
        if isinstance(own, int) and not isinstance(own, bool):
            # What the template is told goes before everything else, and holds for the bound as well.
            effort, budget = None, own if own >= 0 else None
        plan = reasoning.plan(effort, self.template, budget, max_tokens)
        plan = replace(plan, kwargs=plan.kwargs | kwargs)
        return plan if self.tags or self.harmony else replace(plan, budget=None)

    def _keywords(self, request: ChatRequest) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those for the template, and those that it does not read."""
        known, others = dict[str, Any](), dict[str, Any]()
        for name, value in request.template_kwargs.items():
            (known if name in self.template.variables else others)[name] = value
        return known, others

    def shown(self, request: ChatRequest) -> tuple[Message, ...]:
        """The messages, with as much past reasoning as the model is to see."""
        if self.template.forgets:
            return request.messages
        return without_past_reasoning(request.messages, self.template.family.since)

    def opening(self, request: ChatRequest, end: str, budget: int | None) -> Opening:
        """How to go on behind a prompt of which `end` is the last text."""
        answers = request.continue_final
        if self.harmony:
            # With tools an answer may be a call as well, which has a channel of its own.
            tools = request.tools and request.tool_choice.mode != "none"
            at_once = answers or (budget == 0 and not tools)
            return Opening(HARMONY_ANSWER, "final") if at_once else Opening(budget=budget)
        if self.tags is None:
            return Opening(budget=budget)
        if self.tags.answer and end.endswith(self.tags.answer[0]):
            return Opening(start_in="final")
        if not self._is_open(end, self.tags):
            return Opening(budget=budget)
        if not answers and budget != 0:
            return Opening(start_in="analysis", budget=budget)
        # The answer begins now, so the thinking that the template opened ends before it.
        return Opening(
            self.tags.end + "".join(self.tags.answer[:1] or ("\n\n",)), "final" if self.tags.answer else None
        )

    def _is_open(self, end: str, tags: Tags) -> bool:
        _, opened, rest = end.rpartition(tags.start)
        return bool(opened) and tags.end not in rest and OPENED.fullmatch(rest) is not None


def _effort(keywords: dict[str, Any], default: Effort | None) -> Effort | None:
    """What keywords of other templates mean for one that does not read them."""
    if (named := keywords.get("reasoning_effort")) is not None:
        return cast(Effort, named)
    switches = [keywords[name] for name in reasoning.SWITCHES if name in keywords]
    if False in switches:
        return "none"
    return "medium" if switches and default == "none" else None
