from __future__ import annotations

from typing import Any

import pytest

from openai_gateway.errors import ContextLengthExceeded
from openai_gateway.types import ChatRequest, CompletionRequest, Message, Request, Tool, ToolCall
from openai_gateway.worker.length import CHARACTERS_PER_TOKEN, HEAD, refuse_hopeless
from openai_gateway.worker.load import Loaded

CONTEXT = 100
ENDLESS = "x" * (CHARACTERS_PER_TOKEN * (CONTEXT + 1))
WORDS = "the quick brown fox " * CONTEXT


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=messages, **more)


def completion(prompt: str, suffix: str | None = None) -> CompletionRequest:
    return CompletionRequest(model="m", prompt=prompt, suffix=suffix)


class Counting:
    """A tokenizer that remembers how much it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str, **kwargs: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **kwargs)


@pytest.fixture
def counting(llama: Loaded) -> Counting:
    return Counting(llama.prompts.tokenizer)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (chat(Message("user", ENDLESS)), "messages"),
        (chat(Message("assistant", tool_calls=(ToolCall("1", "f", ENDLESS),))), "messages"),
        (chat(Message("user", "x"), tools=(Tool(name="f", description=ENDLESS),)), "messages"),
        (completion(ENDLESS), "prompt"),
        (completion("x", ENDLESS), "prompt"),
    ],
)
def test_what_cannot_fit_by_its_size_is_refused_without_any_tokens(request_: Request, param: str) -> None:
    with pytest.raises(ContextLengthExceeded) as refusal:
        refuse_hopeless(request_, None, CONTEXT)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "request_",
    [chat(Message("system", WORDS[:900]), Message("user", WORDS[900:])), completion(WORDS), completion("x", WORDS)],
)
def test_what_does_not_fit_by_its_beginning_is_counted_no_further(counting: Counting, request_: Request) -> None:
    with pytest.raises(ContextLengthExceeded):
        refuse_hopeless(request_, counting, CONTEXT)
    assert counting.characters == HEAD * CONTEXT < len(WORDS)


@pytest.mark.parametrize(
    "request_",
    [
        completion(WORDS[: HEAD * CONTEXT]),
        chat(Message("user", " " * 3000 + "x")),
        chat(Message("assistant", f"<think>{WORDS}</think>"), Message("user", "x")),
        chat(Message("user", "x"), tools=(Tool(name="f", description=WORDS),)),
    ],
)
def test_what_may_fit_when_it_is_rendered_is_not_judged_by_its_beginning(counting: Counting, request_: Request) -> None:
    refuse_hopeless(request_, counting, CONTEXT)
    assert not counting.characters


def test_a_long_text_of_few_tokens_is_not_refused(shapes: dict[str, Loaded]) -> None:
    counting = Counting(shapes["demo"].prompts.tokenizer)
    refuse_hopeless(completion("<|channel|>" * CONTEXT), counting, CONTEXT)
    assert counting.characters == HEAD * CONTEXT
