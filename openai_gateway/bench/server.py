"""A server to be measured: what it serves, what it takes, and how long its tokens are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from openai_gateway.address import Address
from openai_gateway.bench.load import Answer, Failed, complaint, read, send
from openai_gateway.bench.prompts import QUESTION, Messages, Writer

EXTRAS: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}, "temperature": 0}
"""Fields that every request has, unless the server refuses them. Most servers ignore what they do not know."""

CONTEXT = ("context_length", "max_model_len", "context_window", "max_context_length", "n_ctx", "n_ctx_train")
"""What servers call the number of tokens that a model takes, in their lists of models."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has answered. `context` is in tokens, None where nobody says."""

    name: str
    address: Address
    model: str
    context: int | None = None
    timeout: float = 600.0
    extras: dict[str, Any] = field(default_factory=lambda: dict(EXTRAS))
    tokens_per_word: float = 1.3
    question_tokens: int | None = None
    """How long a short question is with all that the model's template adds to it."""
    counts_tokens: bool = False
    """Whether its streams end with usage."""

    async def ask(self, messages: Messages, max_tokens: int, answer: Answer | None = None) -> Answer:
        """Stream a chat completion; what goes wrong is in the answer."""
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "stream": True, **self.extras}
        return await send(
            self.address, "/chat/completions", json.dumps(body).encode(), timeout=self.timeout, answer=answer
        )

    async def settle(self) -> None:
        """Returns when a short request is through: what was hung up on before it has left the batch by then."""
        await self.ask(Writer().question(), 1)


async def meet(
    name: str, address: Address, *, model: str | None = None, context: int | None = None, timeout: float = 600.0
) -> Server:
    """Find out about a server. Raises `Failed`, in a sentence that names it."""
    try:
        wanted = model if model is not None else (await _listed(address, None, timeout))[0]
        server = await _measured(await _without_what_it_refuses(Server(name, address, wanted, context, timeout)))
        if context is None:  # only now: some servers know it once the model is loaded
            server = replace(server, context=(await _listed(address, wanted, timeout))[1])
        return server
    except Failed as failed:
        raise Failed(f"{name} ({address.url}): {failed}", failed.status) from None


async def _listed(address: Address, model: str | None, timeout: float) -> tuple[str, int | None]:
    """The model (by default the first one that is listed) and its context length."""
    answer = await send(address, "/models", None, timeout=timeout)
    if answer.failure:
        raise Failed(answer.failure)
    try:
        entries = [entry for entry in json.loads(answer.body)["data"] if isinstance(entry["id"], str)]
    except (ValueError, KeyError, TypeError):
        entries = []
    if model is None and not entries:
        why = "it lists no model" if answer.status == 200 else f"status {answer.status}: {complaint(answer.body)}"
        raise Failed(f"{why}; say --model")
    chosen: dict[str, Any] = next(
        (entry for entry in entries if model in (None, entry["id"], *(entry.get("aliases") or ()))), {"id": model}
    )
    sources: tuple[dict[str, Any], ...] = (chosen, chosen.get("meta") or {})
    lengths = (source.get(key) for source in sources for key in CONTEXT)
    return model or str(chosen["id"]), next((length for length in lengths if isinstance(length, int)), None)


async def _without_what_it_refuses(server: Server) -> Server:
    """Leave out one extra field after the other while the server answers 400 or 422: first those that it names."""
    while True:
        answer = await server.ask(Writer().question(), 1)
        if answer.status not in (400, 422) or not server.extras:
            read(answer)
            return server
        said = answer.body.decode("utf-8", "replace")
        refused = next((name for name in server.extras if name in said), next(iter(server.extras)))
        server = replace(server, extras={name: value for name, value in server.extras.items() if name != refused})


async def _measured(server: Server) -> Server:
    """How many tokens a word of our prompts is, where the server counts them."""
    writer = Writer()
    short = read(await server.ask(writer.question(), 1))
    long = read(await server.ask([{"role": "user", "content": writer.fresh(QUESTION + 200)}], 1))
    if short.prompt_tokens is None or long.prompt_tokens is None:
        return replace(server, counts_tokens=not short.counted_chunks)
    per_word = max(0.1, (long.prompt_tokens - short.prompt_tokens) / 200)
    return replace(server, counts_tokens=True, tokens_per_word=per_word, question_tokens=short.prompt_tokens)
