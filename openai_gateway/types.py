"""The ground floor: what one request asks for, and what comes back while it is answered.

Every surface translates its body into a `ChatRequest` or a `CompletionRequest`, every provider answers with a
stream of `Event`s. Both are frozen msgspec structs, so that the same values cross the worker's pipe as they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta, Struct, msgpack

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: tuple[Effort, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
FinishReason = Literal["stop", "length", "tool_calls"]
Quantization = Literal["auto", "none", "q8", "q4"]
"""What may be done to weights at load; see `worker.quantize.choose`."""
AT_ONCE = 128
"""Tokens whose log-probabilities are rendered before others have their turn again; each may have 20 alternatives."""


class Grammar(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A form that a text must have; the decoder sees to it.

    `source` is a JSON Schema (as JSON text, so that its key order and any number survive), a regular expression, a
    Lark grammar as llguidance reads it, or a JSON list of the texts to choose from.
    """

    kind: Literal["json", "regex", "choice", "lark"]
    source: str
    param: str = "response_format"
    """Where the request holds it, for errors."""
    name: str = ""
    description: str = ""
    lenient: bool = False
    """Whether keywords of a schema that cannot be kept to are left out, instead of refused."""


class Tool(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model may call: a function that takes JSON arguments, or a custom tool that takes a text."""

    name: str
    kind: Literal["function", "custom"] = "function"
    description: str = ""
    parameters: str = ""
    """The JSON Schema of a function's arguments, as JSON text; empty is a function without parameters."""
    strict: bool = False
    """Whether the schema is OpenAI's strict subset. Arguments are held to it either way."""
    format: Grammar | None = None
    """The form of a custom tool's text; None leaves it free."""


class ToolChoice(Struct, frozen=True, omit_defaults=True):
    """Whether tools may or must be called, and which: those of `names`, or all of them where it is empty."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """A call that an assistant turn of the history made; `arguments` is a JSON text, or a custom tool's plain one."""

    id: str
    name: str
    arguments: str
    kind: Literal["function", "custom"] = "function"


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn. `content` is text (parts are joined before they get here), None only beside tool calls."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen, and when to stop. None means: the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many alternatives to report beside each token; None reports no log-probabilities at all."""


class ChatRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """A conversation to be continued through the model's chat template."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    effort: Effort | None = None
    thinking_budget: int | None = None
    """Most tokens of reasoning, after which it is ended with the model's own mark; None leaves it to effort."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    """The form of the answer; reasoning before it is free."""
    template_kwargs: dict[str, Any] = {}
    continue_final: bool = False
    """Go on with the text of the last (assistant) message instead of starting a new turn."""
    owner: str = ""
    """Who asks. What one owner's prompts left in a cache answers no other, or timing would tell of them."""
    priority: int = 0
    """Requests of a lower number go first; 0 is the ordinary one, more is work that can wait."""


class CompletionRequest(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="completion"):
    """A raw prompt, as text or as token ids of this model; no template is applied."""

    model: str
    prompt: str | tuple[int, ...]
    suffix: str | None = None
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    echo: bool = False
    """Report the prompt's own tokens (and their log-probabilities, where those are asked for) in `Echo`."""
    owner: str = ""
    priority: int = 0


Request = ChatRequest | CompletionRequest


class TokenLogprob(Struct, frozen=True, array_like=True):
    """One token, the natural log of its probability, and the likeliest ones in its place.

    These are the probabilities before temperature, and after bias and penalties.

    `logprob` is None for the first token of a prompt, which nothing predicts.
    """

    token: str
    raw: bytes
    logprob: float | None
    top: tuple[tuple[str, bytes, float], ...] = ()


_pack_entries = msgpack.Encoder().encode
_unpack_entries = msgpack.Decoder(tuple[TokenLogprob, ...]).decode


class Started(Struct, frozen=True, array_like=True, tag="started"):
    """The request was accepted: nothing about its input can be refused from here on.

    It comes when the prompt begins to be read; for a request that has to wait once before as well, `queued`.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    """Those at the beginning of the prompt that need not be read again."""
    diverged_at: int | None = None
    """How many tokens the prompt has in common with what is cached, of which not all may be usable."""
    answer: Literal["hit", "miss", "bypass"] = "bypass"
    """Whether the answer was there already, was looked for in vain, or was not looked for."""
    queued: bool = False
    """Whether it has to wait, so that nobody has looked yet for what is cached."""


class Progress(Struct, frozen=True, array_like=True, tag="progress"):
    """Prefill has read `done` of `total` prompt tokens."""

    done: int
    total: int


class Echo(Struct, frozen=True, array_like=True, tag="echo"):
    """The prompt as the model read it, for a completion with `echo`: all of its text, and then, as they are found,
    the log-probabilities of its tokens, of `AT_ONCE` in each of these events at the most.

    Those stay packed until they are: as objects a long prompt's take ten times as much memory.
    """

    text: str = ""
    packed: bytes = b""

    @classmethod
    def of(cls, text: str, entries: Sequence[TokenLogprob]) -> Echo:
        """With log-probabilities."""
        return cls(text, _pack_entries(entries))

    @property
    def entries(self) -> tuple[TokenLogprob, ...]:
        """The log-probabilities, made anew each time."""
        return _unpack_entries(self.packed) if self.packed else ()


class CallDelta(Struct, frozen=True, array_like=True):
    """What one step added to the tool call `index` of a choice: 0, 1, 2 … in the order in which they begin.

    The first delta of a call has its `id` and `name` and no arguments; none behind it has either.
    """

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class Delta(Struct, frozen=True, array_like=True, tag="delta"):
    """What one step added to choice `index`; `tokens` counts those generated, markup included."""

    index: int
    content: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 0
    reasoning_tokens: int = 0
    finish: FinishReason | None = None
    calls: tuple[CallDelta, ...] = ()


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """The request ended without an answer; `error` names a class of `errors`."""

    error: str
    message: str
    param: str | None = None


Event = Started | Progress | Echo | Delta | Failed


class Defaults(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a request gets when it does not say."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    reasoning_effort: Effort | None = None


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much may pass of what is counted together; None is without a limit, 0 lets nothing through."""

    burst: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    """Requests that may come at once; they are earned back as fast as `requests_per_minute` says."""
    requests_per_minute: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    requests_per_hour: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    requests_per_day: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    """Tokens of prompts and of answers."""
    tokens_per_hour: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    tokens_per_day: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    concurrency: Annotated[int, Meta(ge=0, le=10**8)] | None = None
    """Requests that may be in progress together."""


class ModelSpec(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One entry of models.yaml."""

    id: Annotated[str, Meta(min_length=1)]
    path: Annotated[str, Meta(min_length=1)]
    """A folder (relative to models.yaml) or a hub id."""
    provider: str = "mlx"
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    adapter: str | None = None
    draft_model: str | None = None
    """A smaller model with the same tokens, which guesses at what a request that runs alone says next."""
    speculation: Literal["none", "lookup"] = "lookup"
    """Without a draft model: whether guesses are taken from the text so far."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    idle_timeout: Annotated[float, Meta(ge=0)] | None = None
    """Seconds without a request before the model is unloaded; 0 keeps it for ever, None takes the gateway's."""
    preload: bool = False
    memory: int | str | None = None
    """Bytes that it may use, weights included, or `auto`; None takes the gateway's setting, as below."""
    quantization: Quantization | None = None
    cache_type: Literal["standard", "quantized"] = "standard"
    """Quantized keys and values take less memory, and its requests are answered one at a time."""
    kv_bits: Literal[4, 8] | None = None
    kv_group_size: Literal[32, 64, 128] | None = None
    tool_format: str | None = None
    """How it writes tool calls, where its chat template does not tell, or tells wrong; see `worker.calls.formats`."""
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    """For everybody together."""


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What a loaded model says of itself."""

    context_length: int
    vocab_size: int
    architecture: str
    reasoning: Literal["effort", "switch", "budget", "hint"]
    """How effort reaches it: the template's own levels, its on/off switch with a bound on the tokens of reasoning, that
    bound alone, or a sentence in the system prompt."""
    chat_template: bool
    fill_in_the_middle: bool
    parameters: int
    pid: int
    weight_bytes: int = 0
    memory_limit: int = 0
    """Bytes that it may use, weights included."""
    quantization: str = "none"
    """How its weights are held: `none`, `q4`, `q8`, `mxfp4`, or several of them joined by `+`."""
    batched: bool = True
    """Whether its requests are answered together, and not one at a time."""
    tools: str | None = None
    """How it writes tool calls: a row of `worker.calls.formats`; `prompted` is told to it in the system prompt."""
    revision: str = ""
    """Another one where the files are others, or what computes with them; empty where that cannot be known."""


class Share(Struct, frozen=True, kw_only=True):
    """The part of the memory for models that one of them may take."""

    processes: int = 1
    """Gateways that have an equal part of it each."""
    taken: int = 0
    """Bytes that the other models which are loaded may use, those of this gateway."""
    places: int = 1
    """Large models among which what is left is divided, this one included."""
    small: int = 0
    """Bytes of its own weight files, where it is a small model and large ones are listed as well."""
    beside: tuple[int, ...] = ()
    """Bytes of the weight files of small models that may be loaded beside it, and are not yet."""


class Stats(Struct, frozen=True, kw_only=True):
    """How a worker is doing. Plain numbers are of this moment, those "since the start" only grow."""

    rows: int = 0
    """Decoding now."""
    reading: int = 0
    """Requests whose prompts are being read."""
    waiting: int = 0
    """Requests that no prompt is read of yet."""
    kv_bytes: int = 0
    """Keys and values of the running batch."""
    prefix_bytes: int = 0
    """Kept prefixes."""
    memory_bytes: int = 0
    """All that MLX holds, weights included."""
    memory_limit: int = 0
    steps: int = 0
    """Since the start, as all that follow."""
    read_tokens: int = 0
    """Prompt tokens that were read."""
    cached_tokens: int = 0
    """Prompt tokens that need not be read, as they were cached."""
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted."""


class Usage(Struct, frozen=True):
    """Tokens of one request; reasoning tokens are counted inside the completion tokens."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


Untaken = Callable[[Event], None]
"""Is told of events that were there already when their reader left: they cost as much as those that were taken."""


class Provider(Protocol):
    """Where tokens come from. A provider serves one model, and outlives the process that runs it."""

    async def start(self, share: Callable[[], Awaitable[Share]]) -> ModelInfo:
        """Load the model; returns when it can answer.

        `share` is called when the files are here, and returns when no other model is being loaded. Raises
        `errors.ModelFailed` when the model cannot be loaded, `errors.Crowded` when it could with fewer beside it.
        """
        ...

    def generate(self, request: Request, untaken: Untaken) -> AsyncGenerator[Event]:
        """Answer one request: `Started`, then the rest, until every choice has finished.

        Raises an `errors.GatewayError`; closing the iterator cancels the request.
        """
        ...

    async def close(self) -> None:
        """Give all memory back."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """What the loaded model says of itself; None while it is not loaded."""
        ...

    @property
    def stats(self) -> Stats | None:
        """How its worker is doing, at most about a second old; None while it is not loaded."""
        ...

    @property
    def restarts(self) -> int:
        """How often its worker had to be replaced."""
        ...
