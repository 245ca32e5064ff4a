"""What a request cost, as every surface of OpenAI's shape tells it: in the usage block and in a header."""

from __future__ import annotations

from collections.abc import Iterable

from openai.types import CompletionUsage
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

from openai_gateway.types import Event, Started, Usage


def usage(used: Usage) -> CompletionUsage:
    """Tokens, in OpenAI's shape."""
    return CompletionUsage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=used.cached_tokens, audio_tokens=0),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=used.reasoning_tokens,
            audio_tokens=0,
            accepted_prediction_tokens=0,
            rejected_prediction_tokens=0,
        ),
    )


def caches(begun: Iterable[Event | None]) -> dict[str, str]:
    """As headers: whether the answers were kept ones when their prompts `Started`, and, unless one of them is still
    queued, how many tokens of the prompts were cached, and where a single prompt left what is."""
    started = [event for event in begun if isinstance(event, Started)]
    # One that is new makes the whole of it new.
    found = next((word for word in ("miss", "bypass") if any(event.answer == word for event in started)), "hit")
    if any(event.queued for event in started):
        return {"x-cache": found}
    value = f"hit={sum(event.cached_tokens for event in started)}"
    if len(started) == 1 and started[0].diverged_at is not None:
        value += f"; diverged={started[0].diverged_at}"
    return {"x-cache": found, "x-prefix-cache": value}
