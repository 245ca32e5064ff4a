"""What request bodies have in common: reading them, the parameters of sampling, and clear refusals."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Container, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request

from openai_gateway.access.permissions import check_model
from openai_gateway.api.formats import Forms
from openai_gateway.api.parse import parse
from openai_gateway.cache import Reuse
from openai_gateway.errors import InvalidRequest, UnsupportedParameter
from openai_gateway.types import Event, Sampling

B = TypeVar("B", bound="Body")


Count = Annotated[int, Field(le=2**31 - 1)]
"""Any number of tokens, or the id of one; more bits do not fit where it goes."""

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Fraction = Annotated[float, Field(ge=0, le=1)]

RANDOM = -1
"""The seed that means none, as clients of llama.cpp and vLLM send it."""

UNBOUNDED = -1
"""As many tokens as fit, as clients of llama.cpp and LM Studio say it."""

MaxTokens = Annotated[
    Annotated[Count, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == UNBOUNDED else value)
]

FLEX = 10
"""The priority of `service_tier: "flex"`; every other tier is the ordinary one here."""


class StreamOptions(BaseModel):
    """`include_obfuscation` pads events against eavesdroppers on a network; nothing is lost without it."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(Forms):
    """The parameters that every generating endpoint has. None is always the same as absent; strangers are ignored."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    UNSUPPORTED: ClassVar[Mapping[str, Container[Any]]] = {
        **dict.fromkeys(("xtc_probability", "min_tokens"), (0,)),
        "typical_p": (1,),
        **dict.fromkeys(("guided_whitespace_pattern", "structural_tag"), ()),
        "guided_decoding_backend": ("auto", "guidance"),
        "grammar": ("",),  # llama.cpp's and SGLang's forms
        **dict.fromkeys(("json_schema", "regex", "ebnf"), ()),
        **dict.fromkeys(("prompt_embeds", "chat_template"), ()),
        "documents": ([],),
        "length_penalty": (1,),
        **dict.fromkeys(("use_beam_search", "include_stop_str_in_output", "return_token_ids"), (False,)),
        **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (True,)),
        "bad_words": ([],),
        **dict.fromkeys(("allowed_token_ids", "truncate_prompt_tokens", "prompt_logprobs"), ()),
    }
    """Known parameters that are not honoured → the values of them that ask for nothing."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[Count, Field(ge=-1)] | None = None
    min_p: Fraction | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Any = None
    stop_token_ids: Annotated[list[Count], Field(max_length=1024, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, Any] | None = None
    user: str | None = None
    priority: Annotated[int, Field(ge=0, le=100)] | None = None
    service_tier: str | None = None

    @property
    def rank(self) -> int:
        """The request's priority, as vLLM counts it: lower goes first. Clients can only step back from 0."""
        return (FLEX if self.service_tier == "flex" else 0) if self.priority is None else self.priority

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, max_n: int) -> None:
        """Refuse what is well-formed and still cannot be done."""
        for name, harmless in self.UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise UnsupportedParameter(f"This server does not support '{name}' yet; leave it out.", param=name)
        if (self.n or 1) > max_n:
            raise InvalidRequest(
                f"'n' may be at most {max_n} on this server.", param="n", code="integer_above_max_value"
            )

    def sampling(self, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """What is asked of the sampler."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or self.repeat_penalty,
            logit_bias=_token_ids(self.logit_bias or {}),
            seed=None if self.seed == RANDOM else self.seed,
            n=self.n or 1,
            stop=_stops(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


def _stops(stop: Any) -> tuple[str, ...]:
    """One text or several. What they may hold is bounded: each row of the batch has an automaton made of them."""
    texts = [] if stop is None else stop if isinstance(stop, list) else [stop]
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            param = f"stop[{place}]" if isinstance(stop, list) else "stop"
            raise InvalidRequest(f"'{param}' must be a text that is not empty.", param=param)
    if len(texts) > 64 or sum(map(len, texts)) > 4096:
        raise InvalidRequest("At most 64 stop sequences of 4096 characters in all may be given.", param="stop")
    return tuple(texts)


def _token_ids(bias: dict[str, Any]) -> dict[int, float]:
    if len(bias) > 1024:
        raise InvalidRequest("'logit_bias' may hold at most 1024 tokens.", param="logit_bias")
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest("The keys of 'logit_bias' are token ids of this model.", param="logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise InvalidRequest("The values of 'logit_bias' are between -100 and 100.", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


async def read(request: Request, body: type[B]) -> B:
    """The request's body. Raises `InvalidRequest` that names the first parameter that is wrong, and `ModelNotFound`."""
    parsed = await parse(request, body)
    request.state.model = parsed.model  # for the request log
    check_model(request.state.models, parsed.model)
    return parsed


def reuse(request: Request) -> Reuse:
    """What the request's Cache-Control allows of kept answers."""
    said = ",".join(request.headers.getlist("cache-control")).lower()
    directives = {directive.strip() for directive in said.split(",")}
    store = "no-store" not in directives
    return Reuse(read=store and not directives & {"no-cache", "max-age=0"}, store=store)


async def first_of(events: AsyncGenerator[Event]) -> Event:
    """The first event of a request. When there is none to be had, the request is given up."""
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise
