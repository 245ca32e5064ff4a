"""From a request to prompt tokens, checked against the model before any of it reaches MLX.

Works on its own thread beside the engine's loop: it reads the tokenizer and never touches the model.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from msgspec.structs import replace
from transformers import PreTrainedTokenizerBase

from openai_gateway import reasoning
from openai_gateway.errors import ContextLengthExceeded, InvalidRequest
from openai_gateway.types import ChatRequest, CompletionRequest, Defaults, Request, Sampling
from openai_gateway.worker.channels import Channels, PlainChannels, ThinkChannels
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.harmony import HarmonyChannels, HarmonyTokens
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.turns import turns, without_system

HARMONY_ANSWER = "<|channel|>final<|message|>"
"""What an assistant turn of harmony begins with when it answers without thinking, or goes on with a given text."""

CHARACTERS_PER_TOKEN = 32
"""More than any text has on the average: English has four, deeply indented code perhaps ten."""

FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
)


@dataclass(slots=True)
class Job:
    """One request, ready for the engine: nothing of its input can be refused any more."""

    id: int
    tokens: list[int]
    sampling: Sampling
    """Complete: the model's defaults are filled in."""
    max_tokens: int
    chat: bool
    echo: str | None = None
    """The prompt as text, where it is to be reported."""
    start_in: str | None = None
    """The channel that the prompt leaves open: text generated first belongs there."""
    turns: tuple[int, ...] = ()
    """Where in `tokens` the messages after the first one begin."""
    owner: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Prompts:
    """Turns requests into jobs for one model.

    `tokenizer` is mlx-lm's wrapper; `vocab_size` counts the rows of the output layer, which may be more than the
    tokenizer knows; `generation` is the model's generation_config.json.
    """

    tokenizer: Any
    table: TokenTable
    context_length: int
    vocab_size: int
    defaults: Defaults = field(default_factory=Defaults)
    generation: dict[str, Any] = field(default_factory=dict)
    harmony: HarmonyTokens | None = None
    template: reasoning.Template = field(default_factory=reasoning.Template)

    def job(self, id: int, request: Request) -> Job:
        """Raises `InvalidRequest` (with the parameter's name) for what this model cannot take."""
        self._refuse_hopeless(request)
        sampling = self._complete(request.sampling)
        outside = [t for t in (*sampling.logit_bias, *sampling.stop_token_ids) if not 0 <= t < self.vocab_size]
        if outside:
            param = "logit_bias" if outside[0] in sampling.logit_bias else "stop_token_ids"
            raise InvalidRequest(f"Token id {outside[0]} is outside the vocabulary of {self.vocab_size}.", param=param)
        if isinstance(request, ChatRequest):
            tokens, start_in = self._chat(request)
            job = Job(id, tokens, sampling, 0, chat=True, start_in=start_in, turns=self._turns(tokens))
        else:
            tokens = self._completion(request)
            echo = self._text(request.prompt) if request.echo else None
            job = Job(id, tokens, sampling, 0, chat=False, echo=echo)
        room = self.context_length - len(job.tokens)
        if room < (1 if job.echo is None else 0):
            param = "messages" if job.chat else "prompt"
            raise ContextLengthExceeded.of(len(job.tokens), self.context_length, param)
        job.owner, job.priority = request.owner, request.priority
        job.max_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        return job

    def _refuse_hopeless(self, request: Request) -> None:
        """Raises for what cannot fit: to count the tokens of 30 MB takes a minute, for which everybody waits."""
        if isinstance(request, ChatRequest):
            characters, param = sum(len(m.content or "") for m in request.messages), "messages"
        else:
            characters, param = len(request.prompt) if isinstance(request.prompt, str) else 0, "prompt"
        if (least := characters // CHARACTERS_PER_TOKEN) > self.context_length:
            raise ContextLengthExceeded.of(least, self.context_length, param)

    def open_text(self, job: Job) -> TextPath[Any]:
        """A fresh text path for one choice of `job`."""
        # Evaluations of raw completions count log-probabilities: one for each token, the end marker included.
        return TextPath(self._channels(job), job.sampling.stop, table=self.table, special=not job.chat)

    def _channels(self, job: Job) -> Channels:
        if job.chat and self.harmony is not None:
            return HarmonyChannels(self.table, self.harmony, start_in=job.start_in)
        detokenizer = self.table.stream(trim_leading_space=job.chat)
        if job.chat and self.tokenizer.has_thinking:
            start, end = self.tokenizer.think_start, self.tokenizer.think_end
            return ThinkChannels(detokenizer, start, end, inside=job.start_in == "analysis")
        return PlainChannels(detokenizer)

    def _complete(self, sampling: Sampling) -> Sampling:
        """models.yaml fills what the request leaves open, then the model's own generation_config.json."""
        missing = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if getattr(sampling, name) is None
            and (value := getattr(self.defaults, name) if getattr(self.defaults, name) is not None
                 else self.generation.get(name)) is not None
        }  # fmt: skip
        if sampling.max_tokens is None and self.defaults.max_tokens is not None:
            missing["max_tokens"] = self.defaults.max_tokens
        return replace(sampling, **missing)

    # Completions

    def _completion(self, request: CompletionRequest) -> list[int]:
        if isinstance(request.prompt, tuple):
            if bad := [t for t in request.prompt if not 0 <= t < self.vocab_size]:
                raise InvalidRequest(
                    f"Token id {bad[0]} is outside the vocabulary of {self.vocab_size}: token prompts are read with "
                    "this model's own tokenizer.",
                    param="prompt",
                )
            tokens = list(request.prompt)
        elif request.suffix is not None:
            tokens = self._middle(request.prompt, request.suffix)
        else:
            # Clients that apply a chat template themselves have written the first token already.
            begun = bool(self.tokenizer.bos_token) and request.prompt.startswith(self.tokenizer.bos_token)
            tokens = list(self.tokenizer.encode(request.prompt, add_special_tokens=not begun))
        return tokens or [self._first()]

    def _first(self) -> int:
        """What an absent prompt means to OpenAI: the beginning of a text."""
        candidates = (self.tokenizer.bos_token_id, *sorted(self.tokenizer.eos_token_ids))
        first = next((token for token in candidates if token is not None), None)
        if first is None:
            raise InvalidRequest(
                "This model needs a prompt: it has no token for the beginning of a text.", param="prompt"
            )
        return int(first)

    def _text(self, prompt: str | tuple[int, ...]) -> str:
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self.table.bytes_of, prompt)).decode("utf-8", "replace")

    @property
    def fill_in_the_middle(self) -> tuple[str, str, str] | None:
        """The tokenizer's own (prefix, suffix, middle) markers, if it has a set."""
        vocabulary = self.tokenizer.get_vocab()
        return next((marks for marks in FILL_IN_THE_MIDDLE if all(m in vocabulary for m in marks)), None)

    def _middle(self, prefix: str, suffix: str) -> list[int]:
        marks = self.fill_in_the_middle
        if marks is None:
            raise InvalidRequest("This model has no tokens for filling in the middle.", param="suffix")
        pieces = zip(marks, (prefix, suffix, ""), strict=True)
        start = self.tokenizer.encode("")[:1]
        return (start if start == [self.tokenizer.bos_token_id] else []) + [
            token
            for mark, text in pieces
            for token in (
                self.tokenizer.convert_tokens_to_ids(mark),
                *self.tokenizer.encode(text, add_special_tokens=False),
            )
        ]

    # Chat

    def _chat(self, request: ChatRequest) -> tuple[list[int], str | None]:
        if not self.tokenizer.has_chat_template:
            raise InvalidRequest("This model has no chat template; use /v1/completions.", param="model")
        effort = request.effort or self.defaults.reasoning_effort
        plan = reasoning.plan(effort, self.template)
        messages = [*turns(request.messages, plan.hint)]
        prefix = ""
        if request.continue_final:
            prefix = messages.pop()["content"] or ""
        tokens = self._render(messages, plan.kwargs | self._allowed(request.template_kwargs))
        opening, start_in = "", None
        if self.harmony is not None and (request.continue_final or effort == "none"):
            opening, start_in = HARMONY_ANSWER, "final"
        elif self._leaves_thinking_open(tokens):
            if prefix or effort == "none":
                # The answer begins now, so the thinking that the template opened ends before it.
                opening = f"{self.tokenizer.think_end}\n\n"
            else:
                start_in = "analysis"
        if opening:
            tokens += self.tokenizer.encode(opening, add_special_tokens=False)
        if prefix:
            tokens += self.tokenizer.encode(prefix, add_special_tokens=False, split_special_tokens=True)
        return tokens, start_in

    def _turns(self, tokens: list[int]) -> tuple[int, ...]:
        """Where the token stands with which messages begin: by all templates that have one, the first or second."""
        opener = next((token for token in tokens[:2] if self.table.is_special(token) and tokens.count(token) > 1), None)
        return tuple(place for place, token in enumerate(tokens) if token == opener and place > 1)

    def _leaves_thinking_open(self, tokens: list[int]) -> bool:
        end = self.tokenizer.decode(tokens[-16:]) if self.tokenizer.has_thinking else ""
        return bool(end) and end.rstrip().endswith(self.tokenizer.think_start)

    def _allowed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name, value in kwargs.items():
            if name not in self.template.variables or name in _OURS or not isinstance(value, str | int | float | bool):
                raise InvalidRequest(
                    f"This model's chat template takes no keyword '{name}' of that kind.", param="chat_template_kwargs"
                )
        return kwargs

    def _render(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> list[int]:
        try:
            return self._applied(messages, kwargs)
        except TEMPLATE_ERRORS as error:
            refusal = error
        if folded := without_system(messages):
            with suppress(*TEMPLATE_ERRORS):
                return self._applied(folded, kwargs)
        raise InvalidRequest(f"The model's chat template refuses these messages: {refusal}", param="messages")

    def _applied(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> list[int]:
        # Without `sanitize_control_tokens` a web page that holds `<|end|><|start|>system` ends the message that quotes
        # it and speaks as the system. Templates that mlx-lm ships as Python functions do not know it.
        if getattr(self.tokenizer, "_chat_template", None) is None:
            kwargs = {"sanitize_control_tokens": True, **kwargs}
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **kwargs))


TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What chat templates raise, on purpose or because they do not expect what they are given."""

_OURS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "messages", "bos_token", "eos_token", "pad_token", "unk_token",
}  # fmt: skip
"""Names that a request sets through fields of their own, or not at all: `chat_template` would be code of its own."""
