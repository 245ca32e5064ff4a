"""The interactive side of `chat`: reads messages and commands, shows answers as they stream."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import openai
from rich.text import Text

from openai_gateway.cli.client import clean, explain
from openai_gateway.cli.conversation import as_effort
from openai_gateway.settings_kinds import expanded

if TYPE_CHECKING:
    from rich.console import Console

    from openai_gateway.cli.conversation import Conversation

HELP = '''\
/effort LEVEL   how hard the model thinks: none, minimal, low, medium, high, xhigh, max
/model ID       ask another model
/system TEXT    what the model is told before the conversation; without TEXT, nothing
/clear          forget the conversation
/undo           take back the last question and its answer
/retry          ask the last question again
/save FILE      write the conversation to a new file, as JSON messages if it ends in .json, else as Markdown
/usage          tokens of this session
/quit           leave, as does Ctrl-D; Ctrl-C stops an answer
A line that ends in \\ goes on in the next one; so does everything between """ and """.'''


class Terminal:
    """`read` is `input` or something like it: takes a prompt, gives a line, raises EOFError at the end."""

    def __init__(
        self, conversation: Conversation, console: Console, read: Callable[[str], str], *, show_reasoning: bool = True
    ) -> None:
        self.conversation = conversation
        self.console = console
        self.read = read
        self.show_reasoning = show_reasoning
        self.shown = ""
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.note(HELP),
            "/effort": self.set_effort,
            "/model": self.set_model,
            "/system": self.set_system,
            "/clear": self.clear,
            "/undo": self.undo,
            "/retry": self.retry,
            "/save": self.save,
            "/usage": self.usage,
            "/quit": self.leave,
        }

    def run(self) -> None:
        """Until the input ends."""
        self.note(f"{self.conversation.model} at {self.conversation.client.base_url}; /help says more")
        with contextlib.suppress(EOFError):
            while True:
                try:
                    self.take(self.read("> "))
                except KeyboardInterrupt:
                    self.console.print()
                except UnicodeDecodeError:
                    self.complain("That is not UTF-8 text.")

    def take(self, line: str) -> None:
        """One line: a command, or the beginning of a message."""
        if not line.startswith("/"):
            message = self.whole(line)
            if message.strip():
                self.say(message)
            return
        name, _, argument = line.partition(" ")
        command = self.commands.get(name)
        if command is None:
            self.complain(f"There is no command {name}; /help lists them. A message may begin with a space.")
        else:
            command(argument.strip())

    def whole(self, line: str) -> str:
        """The message that begins with `line`."""
        if line.lstrip().startswith('"""'):
            text = line.lstrip()[3:]
            while not text.rstrip().endswith('"""'):
                text += "\n" + self.read("... ")
            return text.rstrip()[:-3].strip("\n")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read("... ")
        return line

    def say(self, question: str) -> None:
        """Ask, and show the answer as it comes. Ctrl-C stops it."""
        try:
            self.show(question)
        except KeyboardInterrupt:
            self.end_line()
            self.note("stopped")
        except openai.OpenAIError as error:
            self.end_line()
            self.complain(explain(error, self.conversation.client))
        else:
            self.end_line()
            self.note(self.summary())

    def show(self, question: str) -> None:
        self.shown = ""
        before = None
        # Closing it at once, and not when it is collected, is what hangs up on an interrupt.
        with contextlib.closing(self.conversation.ask(question)) as pieces:
            for kind, text in pieces:
                if kind == "reasoning" and not self.show_reasoning:
                    continue
                if before not in (None, kind):
                    self.end_line()
                before, self.shown = kind, text
                self.console.print(Text(clean(text), style="dim" if kind == "reasoning" else ""), end="")

    def end_line(self) -> None:
        if self.shown and not self.shown.endswith("\n"):
            self.console.print()
        self.shown = ""

    def summary(self) -> str:
        """What the last answer cost, and how fast it came."""
        answer = self.conversation.answer
        parts = {"length": ["cut at the token limit"]}.get(answer.finish or "", [])
        if not answer.text:
            parts = ["no answer", *parts]
        if answer.usage:
            parts = [*parts, f"{answer.usage.completion_tokens} tokens"]
        if answer.rate:
            parts = [*parts, f"{answer.rate:.1f} tokens/s"]
        return ", ".join(parts)

    def note(self, text: str) -> None:
        if text:
            self.console.print(clean(text), style="dim")

    def complain(self, text: str) -> None:
        self.console.print(clean(text), style="red")

    def set_effort(self, level: str) -> None:
        try:
            self.conversation.effort = as_effort(level) if level else None
        except ValueError as error:
            self.complain(str(error))
        else:
            self.note(f"effort: {level or 'as the model likes'}")

    def set_model(self, name: str) -> None:
        self.conversation.model = name or self.conversation.model
        self.note(f"model: {self.conversation.model}")

    def set_system(self, text: str) -> None:
        self.conversation.system = text or None
        self.note(f"system: {text or 'nothing'}")

    def clear(self, _: str) -> None:
        self.conversation.clear()
        self.note("forgotten")

    def undo(self, _: str) -> None:
        question = self.conversation.undo()
        self.note("there is nothing to undo" if question is None else f"taken back: {question}")

    def retry(self, _: str) -> None:
        question = self.conversation.undo()
        if question is None:
            self.note("there is nothing to retry")
        else:
            self.say(question)

    def save(self, name: str) -> None:
        messages = self.conversation.messages
        if name.endswith(".json"):
            text = json.dumps(messages, indent=2, ensure_ascii=False) + "\n"
        else:
            text = "\n".join(f"## {message['role']}\n\n{message.get('content')}\n" for message in messages)
        try:
            with expanded(Path(name)).open("x", encoding="utf-8") as file:
                file.write(text)
        except (OSError, ValueError) as error:
            self.complain(f"{name or '/save'}: {getattr(error, 'strerror', None) or error}")
        else:
            self.note(f"saved to {name}")

    def usage(self, _: str) -> None:
        spent = self.conversation.spent
        read, written = sum(usage.prompt_tokens for usage in spent), sum(usage.completion_tokens for usage in spent)
        self.note(f"{len(spent)} answers: {read} prompt tokens, {written} completion tokens")

    def leave(self, _: str) -> None:
        raise EOFError
