"""The form of all that a model may say to one request: thinking, then an answer or calls of tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

from openai_gateway.reasoning import THINK, Tags
from openai_gateway.types import Grammar
from openai_gateway.worker.channels import Channels, PlainChannels, ThinkChannels
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.grammar import Grammars
from openai_gateway.worker.guide import Budget, Form
from openai_gateway.worker.harmony import HarmonyChannels, HarmonyTokens
from openai_gateway.worker.lark import ANYTHING, Lark
from openai_gateway.worker.thinking import HARMONY_ANSWER


@dataclass(frozen=True, slots=True)
class Calls:
    """What calls of tools look like, as expressions of one `Lark`."""

    body: str
    """All calls of an answer, behind `trigger`. In harmony, what follows `<|start|>assistant`."""
    trigger: str = ""
    """The markup by which they begin: wherever it comes, calls follow. Empty where the beginning of an answer tells, or
    `body` has what may come before them; what is no call matches `free` then."""
    required: bool = False
    """Whether there must be one."""
    free: str = ANYTHING
    """A regular expression for an answer without calls."""


def plain(lark: Lark, answer: Grammar | None, calls: Calls | None = None, but: str = "") -> str:
    """The output of a model that does not think, or not any more. Where anything may be said, it does not begin with
    `but`, a piece of markup."""
    form = None if answer is None else lark.grammar(answer, title(answer))
    if calls is None:
        return form or f"{lark.regex(ANYTHING)}?"
    called = f"{lark.mark(calls.trigger)} {calls.body}" if calls.trigger else calls.body
    if calls.required:
        return called
    if form is not None:
        return f"({called} | {form})"
    if calls.trigger:
        called = f"{lark.until(calls.trigger, but=but)} {calls.body}"
    return f"({called} | {lark.regex(calls.free, but)}?)"


def tagged(lark: Lark, tags: Tags, answer: Grammar | None, calls: Calls | None, *, inside: bool) -> str:
    """The output of a model that thinks between tags, of which the prompt may have opened one (`inside`)."""
    newlines = lark.regex("[\r\n]{1,4}")
    thought = f"{lark.until(tags.end)} {newlines}?"

    def said(text: str) -> str:
        if not tags.answer:
            return text
        opener, *closers = map(lark.mark, tags.answer)
        return " ".join([f"({opener} {newlines}?)? {text}", *(f"({newlines}? {closer})?" for closer in closers)])

    rest = said(plain(lark, answer, calls))
    if inside:
        return f"{thought} {rest}"
    if answer is not None or not lark.is_text(tags.start):
        return f"({lark.mark(tags.start)} {thought})? {rest}"
    # Else a thought would be free text as well, in which a call that it only names begins.
    return f"({lark.begun(tags.start)} {thought} {rest} | {said(plain(lark, answer, calls, tags.start))})"


def harmony(lark: Lark, answer: Grammar | None, calls: Calls | None = None) -> str:
    """The output of gpt-oss, from within the assistant's header on: thoughts, then a final message or a call.

    It may say what it is about to do before a call. Format: docs/format.md of openai/harmony.
    """
    head, message = lark.mark("<|channel|>"), lark.mark("<|message|>")
    text = f"{lark.regex(ANYTHING)}?"
    again = f"{lark.mark('<|end|><|start|>assistant')}"
    thought = f'({head} "analysis" {message} {text} {again})'
    if calls is not None and calls.required:
        # Once: a model that would rather answer than call thinks again and again, for that is the only way around it.
        return f"{thought}? {calls.body}"
    thoughts = f"{thought}*"
    form = text if answer is None else lark.grammar(answer, title(answer))
    kind = f'(" "? {lark.mark("<|constrain|>json")})?' if answer is not None and answer.kind == "json" else ""
    final = f'{head} "final" {kind} {message} {form}'
    if calls is None:
        return f"{thoughts} {final}"
    remark = f'({head} "commentary" {message} {text} {again})?'
    return f"{thoughts} ({final} | {remark} {calls.body})"


def title(grammar: Grammar) -> str:
    """What a grammar is called in errors."""
    return f"{grammar.param} '{grammar.name}'" if grammar.name else grammar.param


@dataclass(frozen=True, slots=True)
class Endings:
    """The tokens that end a thought."""

    answer: tuple[int, ...] = ()
    """So that an answer follows."""
    any: tuple[int, ...] = ()
    """So that an answer or, in harmony, a call follows."""

    @classmethod
    def of(cls, encode: Callable[[str], list[int]], tags: Tags | None, *, harmony: bool) -> Endings:
        """Those of a model that thinks between `tags`, or in harmony's channels; `encode` makes tokens of markup."""
        if harmony:
            header = "<|end|><|start|>assistant"
            return cls(tuple(encode(header + HARMONY_ANSWER)), tuple(encode(header)))
        if tags is None:
            return cls()
        # `</think>` as the templates of its families write it.
        text = f"\n{tags.end}\n\n" if tags.end == THINK.end else "".join([tags.end, *tags.answer[:1]])
        ending = tuple(encode(text))
        return cls(ending, ending)


@dataclass(frozen=True)
class Forms:
    """Makes the forms of one model's answers, on any thread; `tags` and `ids` say how it thinks."""

    grammars: Grammars
    table: TokenTable
    endings: Endings
    tags: Tags | None = None
    ids: HarmonyTokens | None = None

    def of(
        self,
        *,
        chat: bool,
        start_in: str | None = None,
        answer: Grammar | None = None,
        calls: Callable[[Lark], Calls] | None = None,
        budget: int | None = None,
        given: list[int] | None = None,
    ) -> Form | None:
        """None where the model may say anything.

        `start_in` is the channel that the prompt leaves open, `given` the tokens of the answer's beginning that it
        holds already. Raises `InvalidRequest` for what cannot be kept to.
        """
        form = Form(self.table)
        if answer is not None or calls is not None:
            lark = self.grammars.lark()
            offered = None if calls is None else calls(lark)
            matcher = self.grammars.compiled(lark, self._output(lark, chat, start_in, answer, offered, given))
            param = "tools" if answer is None else answer.param
            form = Form(self.table, self.grammars.behind(matcher, given or ()), ends=self.grammars.eos, param=param)
        if budget is not None and chat and start_in != "final" and (self.tags or self.ids):
            return replace(form, budget=self._budget(budget, start_in, tools=calls is not None))
        return form if form.matcher is not None else None

    def _output(
        self,
        lark: Lark,
        chat: bool,
        start_in: str | None,
        answer: Grammar | None,
        calls: Calls | None,
        given: list[int] | None,
    ) -> str:
        if chat and self.ids is not None and start_in is None:
            return harmony(lark, answer, calls)
        calls = None if start_in == "final" else calls
        if chat and self.tags is not None and given is None:
            return tagged(lark, self.tags, answer, calls, inside=start_in == "analysis")
        rest = plain(lark, answer, calls)
        if given is not None:
            return rest
        # Of a text whose first space is dropped, the space is no part of the form.
        return f'" " {rest}' if self.table.trims(chat=chat) else rest

    def _budget(self, limit: int, start_in: str | None, *, tools: bool) -> Budget:
        channels = partial(self._channels, start_in)
        ending = self.endings.any if tools else self.endings.answer
        if self.ids is None:
            return Budget(limit, ending, channels)
        return Budget(limit, ending, channels, self.ids.channel, self._thoughts)

    def _channels(self, start_in: str | None) -> Channels:
        if self.ids is not None:
            return HarmonyChannels(self.table, self.ids, start_in=start_in)
        text = self.table.stream(trim_leading_space=True)
        if self.tags is None:
            return PlainChannels(text)
        return ThinkChannels(text, self.tags.start, self.tags.end, inside=start_in == "analysis")

    @cached_property
    def _thoughts(self) -> frozenset[int]:
        """The tokens by which the name of harmony's channel for thoughts may begin."""
        words = ((id, self.table.bytes_of(id).strip()) for id in range(len(self.table)))
        name = b"analysis"
        return frozenset(id for id, word in words if word and (name.startswith(word) or word.startswith(name)))
