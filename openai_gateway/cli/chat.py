"""`openai-gateway chat`: talk to a running gateway, from a terminal or from a script."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from openai_gateway.cli.client import BaseUrlOption, clean, connect, console, explain, fail, listed

if TYPE_CHECKING:
    from openai import OpenAI

    from openai_gateway.cli.conversation import Conversation

ModelOption = Annotated[str | None, typer.Option("--model", help="Model to ask; by default the gateway's first one.")]
EffortOption = Annotated[str | None, typer.Option("--effort", help="How hard it thinks: none, low, medium, high, ...")]
SystemOption = Annotated[str | None, typer.Option("--system", help="What the model is told before the conversation.")]
ReasoningOption = Annotated[bool, typer.Option(" /--no-reasoning", show_default=False, help="Hide what it thinks.")]


def chat(
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    effort: EffortOption = None,
    system: SystemOption = None,
    reasoning: ReasoningOption = True,
) -> None:
    """Talk to a model, or ask it what comes from a pipe."""
    from openai_gateway.cli.conversation import Conversation, as_effort
    from openai_gateway.cli.terminal import Terminal

    try:
        level = as_effort(effort) if effort else None
    except ValueError as error:
        fail(str(error), 2)
    question = None if sys.stdin is not None and sys.stdin.isatty() else _question()
    with connect(base_url, retries=2) as client:
        conversation = Conversation(client, model or _first(client), level, system)
        if question is not None:
            _pipe(conversation, question)
        else:
            with contextlib.suppress(ImportError):  # some builds of Python come without it
                import readline  # noqa: F401 -- gives input() its history and line editing
            Terminal(conversation, console(), input, show_reasoning=reasoning).run()


def _question() -> str:
    try:
        question = sys.stdin.buffer.read().decode().strip("\n") if sys.stdin is not None else ""
    except UnicodeDecodeError:
        fail("What came from the pipe is not UTF-8 text.", 2)
    return question or fail("Nothing came from the pipe: there is nothing to ask.", 2)


def _first(client: OpenAI) -> str:
    """The gateway lists its default model first."""
    found = listed(client)
    return found[0].id if found else fail(f"{client.base_url} serves no model.")


def _pipe(conversation: Conversation, question: str) -> None:
    """Print the answer and nothing else, as it comes."""
    import openai

    terminal = sys.stdout.isatty()
    try:
        for kind, text in conversation.ask(question):
            if kind == "content":
                sys.stdout.write(clean(text) if terminal else text)
                sys.stdout.flush()
    except openai.OpenAIError as error:
        fail(explain(error, conversation.client))
    finally:
        if conversation.answer.text and not conversation.answer.text.endswith("\n"):
            sys.stdout.write("\n")
