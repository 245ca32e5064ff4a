"""A conversation with a gateway: what was said so far, and the next answer as it streams. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import openai

from openai_gateway.types import EFFORTS, Effort

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

Piece = tuple[Literal["reasoning", "content"], str]


def as_effort(text: str) -> Effort:
    """Raises `ValueError`, with the levels there are."""
    for level in EFFORTS:
        if text == level:
            return level
    raise ValueError(f"There is no effort `{text}`; the levels are {', '.join(EFFORTS)}.")


@dataclass
class Answer:
    """One answer, as far as it came. `usage` and `finish` are None where it was stopped."""

    text: str = ""
    usage: CompletionUsage | None = None
    finish: str | None = None
    started: float | None = None
    """When its first piece came, in seconds of the monotonic clock; `ended` is the last one's."""
    ended: float = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first piece; None where that cannot be said."""
        if self.usage is None or self.started is None or self.ended <= self.started:
            return None
        return self.usage.completion_tokens / (self.ended - self.started)


@dataclass
class Conversation:
    client: openai.OpenAI
    model: str
    effort: Effort | None = None
    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions and their answers. A question that got no answer is in `unanswered` instead."""
    unanswered: str | None = None
    answer: Answer = field(default_factory=Answer)
    spent: list[CompletionUsage] = field(default_factory=list)

    @property
    def messages(self) -> list[ChatCompletionMessageParam]:
        found: list[ChatCompletionMessageParam] = []
        if self.system:
            found.append({"role": "system", "content": self.system})
        for question, answer in self.turns:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return found

    def ask(self, question: str) -> Generator[Piece, None, None]:
        """Stream the answer; however it ends, by a break, an interrupt or an error, what was said is kept.

        Raises `openai.OpenAIError`.
        """
        answer = self.answer = Answer()
        self.unanswered = question
        try:
            with self.client.chat.completions.create(
                model=self.model,
                messages=[*self.messages, {"role": "user", "content": question}],
                stream=True,
                stream_options={"include_usage": True},
                reasoning_effort=self.effort or openai.omit,
            ) as stream:
                for chunk in stream:
                    yield from self._read(chunk, answer)
        finally:
            if answer.usage:
                self.spent.append(answer.usage)
            if answer.text:
                self.turns.append((question, answer.text))
                self.unanswered = None

    def _read(self, chunk: ChatCompletionChunk, answer: Answer) -> Iterator[Piece]:
        answer.usage = chunk.usage or answer.usage
        for choice in chunk.choices:
            answer.finish = choice.finish_reason or answer.finish
            extra = choice.delta.model_extra or {}
            reasoning = extra.get("reasoning") or extra.get("reasoning_content")
            if reasoning or choice.delta.content:
                answer.ended = time.monotonic()
                answer.started = answer.started or answer.ended
            if reasoning:
                yield "reasoning", reasoning
            if choice.delta.content:
                answer.text += choice.delta.content
                yield "content", choice.delta.content

    def undo(self) -> str | None:
        """Take back the last question, answered or not; None where there is none."""
        question, self.unanswered = self.unanswered, None
        return question if question is not None or not self.turns else self.turns.pop()[0]

    def clear(self) -> None:
        self.turns, self.unanswered = [], None
