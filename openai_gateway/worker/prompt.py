"""From a request to prompt tokens, checked against the model before any of it reaches MLX.

Works on its own thread beside the engine's loop: it reads the tokenizer and never touches the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from openai_gateway import reasoning
from openai_gateway.errors import ContextLengthExceeded, InvalidRequest
from openai_gateway.types import ChatRequest, CompletionRequest, Defaults, Request, Sampling
from openai_gateway.worker import templates
from openai_gateway.worker.answers import Calls, Forms
from openai_gateway.worker.calls.formats import Format
from openai_gateway.worker.calls.history import paired, shaped, told
from openai_gateway.worker.calls.marks import Marks
from openai_gateway.worker.calls.offer import Offer, described
from openai_gateway.worker.calls.reading import CallChannels
from openai_gateway.worker.channels import Channels, PlainChannels, ThinkChannels
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.framed import FramedAnswer
from openai_gateway.worker.guide import Form
from openai_gateway.worker.harmony import HarmonyChannels, HarmonyTokens
from openai_gateway.worker.lark import Lark
from openai_gateway.worker.length import refuse_hopeless
from openai_gateway.worker.middle import between, markers
from openai_gateway.worker.parse import TextPath
from openai_gateway.worker.segments import Segments
from openai_gateway.worker.thinking import Opening, Thinking
from openai_gateway.worker.turns import in_blocks, turns


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
    thinking_budget: int | None = None
    """Most tokens of reasoning; 0 is none, None leaves it to the model."""
    offer: Offer | None = None
    """The tools that it may call; None for no calls at all."""
    given: list[int] | None = None
    """The beginning of an answer that is to be continued: the last of `tokens`."""
    form: Form | None = None
    """What its output is held to, where the model may not say anything."""
    owner: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Prompts:
    """Turns requests into jobs for one model.

    `tokenizer` is mlx-lm's wrapper; `vocab_size` counts the rows of the output layer, which may be more than the
    tokenizer knows; `generation` is the model's generation_config.json.
    """

    tokenizer: Any
    segments: Segments
    table: TokenTable
    context_length: int
    vocab_size: int
    defaults: Defaults = field(default_factory=Defaults)
    generation: dict[str, Any] = field(default_factory=dict)
    harmony: HarmonyTokens | None = None
    template: reasoning.Template = field(default_factory=reasoning.Template)
    format: Format | None = None
    """How the model writes tool calls; None for a model without a chat template."""
    traits: templates.Traits = field(default_factory=templates.Traits)
    """What its chat template takes of them."""
    forms: Forms | None = None
    """Holds answers to what is asked of them; None where that cannot be done."""

    def job(self, id: int, request: Request) -> Job:
        """Raises `InvalidRequest` (with the parameter's name) for what this model cannot take."""
        return self.held(self.draft(id, request), request)

    def draft(self, id: int, request: Request) -> Job:
        """A job that lacks its form. One at a time: tokenizers are not for several threads."""
        refuse_hopeless(request, self.tokenizer, self.context_length)
        sampling = self._complete(request.sampling)
        outside = [t for t in (*sampling.logit_bias, *sampling.stop_token_ids) if not 0 <= t < self.vocab_size]
        if outside:
            param = "logit_bias" if outside[0] in sampling.logit_bias else "stop_token_ids"
            raise InvalidRequest(f"Token id {outside[0]} is outside the vocabulary of {self.vocab_size}.", param=param)
        if isinstance(request, ChatRequest):
            offer = Offer.of(request)
            given = self._given(request) if request.continue_final else None
            tokens, opening = self._chat(request, offer, sampling.max_tokens)
            tokens += given or ()
            job = Job(id, tokens, sampling, 0, chat=True, start_in=opening.start_in, turns=self._turns(tokens))
            job.thinking_budget, job.offer, job.given = opening.budget, offer, given
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
        if job.thinking_budget is not None:
            job.thinking_budget = reasoning.leaving_room(job.thinking_budget, job.max_tokens)
        return job

    def holds(self, request: Request) -> bool:
        """Whether the form of the answers takes time to make."""
        return request.grammar is not None or (isinstance(request, ChatRequest) and bool(request.tools))

    def held(self, job: Job, request: Request) -> Job:
        """The job of a draft, on any thread."""
        job.form = self._form(job, request)
        return job

    def _form(self, job: Job, request: Request) -> Form | None:
        if self.forms is None:
            if request.grammar is not None:
                raise InvalidRequest("This model's answers cannot be held to a form.", param=request.grammar.param)
            return None
        if isinstance(request, CompletionRequest):
            return self.forms.of(chat=False, answer=request.grammar)
        return self.forms.of(
            chat=True,
            start_in=job.start_in,
            answer=request.grammar,
            calls=self._calls(job.offer),
            budget=job.thinking_budget,
            given=job.given,
        )

    def _calls(self, offer: Offer | None) -> Callable[[Lark], Calls] | None:
        """Writes the grammar of the calls that may be made."""
        if self.format is None or offer is None:
            return None
        form = self.format.form
        return lambda lark: form(lark, offer)

    def open_text(self, job: Job) -> TextPath[Any]:
        """A fresh text path for one choice of `job`."""
        # Evaluations of raw completions count log-probabilities: one for each token, the end marker included.
        one_call = job.offer is not None and not job.offer.parallel
        channels = self._channels(job)
        return TextPath(channels, job.sampling.stop, table=self.table, special=not job.chat, one_call=one_call)

    def _channels(self, job: Job) -> Channels:
        tags = self.thinking.tags if job.chat else None
        answer = tags.answer if tags is not None else ()
        written = self.format.written if self.format is not None and job.offer is not None else None
        called = (*written.opens, *written.markup) if written is not None else ()
        marks = Marks(self.table, (*called, *answer))
        channels = self._sorting(job, marks)
        if written is None or job.offer is None:
            return channels
        return CallChannels(channels, written, marks, job.offer, begun=bool(job.given))

    def _opens(self, job: Job, marks: Marks) -> list[str]:
        """The special tokens that calls begin with, which are never part of a thought."""
        written = self.format.written if self.format is not None and job.offer is not None else None
        spelled = map(marks.spell, written.opens) if written is not None else ()
        return [mark for mark in spelled if len(mark) == 1]

    def _sorting(self, job: Job, marks: Marks) -> Channels:
        """Channels that tell thoughts from answers."""
        if job.chat and self.harmony is not None:
            return HarmonyChannels(self.table, self.harmony, start_in=job.start_in, offer=job.offer)
        # Behind a text that is continued, the first space parts two words.
        detokenizer = self.table.stream(trim_leading_space=job.chat and not job.given)
        if job.chat and (tags := self.thinking.tags) is not None:
            start, end = marks.spell(tags.start), marks.spell(tags.end)
            inside = job.start_in == "analysis"
            channels = ThinkChannels(detokenizer, start, end, inside, marks=marks.of, ends=self._opens(job, marks))
            frame = tuple(map(marks.spell, tags.answer))
            begun, last = job.start_in == "final", job.offer is None
            return FramedAnswer(channels, frame, begun=begun, last=last) if frame else channels
        return PlainChannels(detokenizer, marks.of)

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
            tokens = between(self.tokenizer, request.prompt, request.suffix)
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
    def fill_in_the_middle(self) -> bool:
        """Whether the tokenizer has markers for that."""
        return markers(self.tokenizer) is not None

    # Chat

    @property
    def thinking(self) -> Thinking:
        """How this model thinks."""
        return Thinking.of(self.tokenizer, self.template, harmony=self.harmony is not None)

    def _chat(self, request: ChatRequest, offer: Offer | None, max_tokens: int | None) -> tuple[list[int], Opening]:
        if not self.tokenizer.has_chat_template:
            raise InvalidRequest("This model has no chat template; use /v1/completions.", param="model")
        templates.check_keywords(request.template_kwargs, self.template)
        thinking = self.thinking
        plan = thinking.plan(request, self.defaults.reasoning_effort, max_tokens)
        messages = [*turns(paired(thinking.shown(request)), plan.hint)]
        if request.continue_final:
            messages.pop()
        messages, tools = self._with_tools(messages, offer)
        if self.template.blocks:
            messages = [in_blocks(turn) for turn in messages]
        marked = self.segments.marked
        text = templates.rendered(self.tokenizer, marked(messages), marked(plan.kwargs | tools))
        tokens = self.segments.tokens(text, request.owner)
        opening = thinking.opening(request, self.tokenizer.decode(tokens[-16:]), plan.budget)
        if opening.text:
            tokens += self.tokenizer.encode(opening.text, add_special_tokens=False)
        return tokens, opening

    def _given(self, request: ChatRequest) -> list[int]:
        """The beginning of an answer that is to be continued."""
        text = request.messages[-1].content or ""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _with_tools(
        self, messages: list[dict[str, Any]], offer: Offer | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages as the template takes their calls, and its keyword for the tools."""
        tools = [described(tool) for tool in offer.tools] if offer is not None else []
        shown = shaped(messages, self.traits)
        if self.format is None or self.format.told:
            return (told(shown, tools) if tools else shown), {}
        return shown, {"tools": tools} if tools else {}

    def _turns(self, tokens: list[int]) -> tuple[int, ...]:
        """Where the token stands with which messages begin: by all templates that have one, the first or second."""
        opener = next((token for token in tokens[:2] if self.table.is_special(token) and tokens.count(token) > 1), None)
        return () if opener is None else tuple(_places(tokens, opener))


def _places(tokens: list[int], token: int) -> Iterator[int]:
    """Where a token stands behind the first two."""
    place = 1
    with suppress(ValueError):  # it stands nowhere any more
        while True:
            yield (place := tokens.index(token, place + 1))
