"""Log-probabilities as they are reported: tokens spelled as text and bytes."""

from __future__ import annotations

from openai_gateway.types import Echo, TokenLogprob
from openai_gateway.worker.batch import Scored
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.prompt import Job
from openai_gateway.worker.scoring import Scoring


def answer_entry(table: TokenTable, token: int, scored: Scored, top: int) -> TokenLogprob:
    """For a generated token, with at most `top` others. Special ones have no bytes: they do not stand in the answer."""
    own, others = scored
    text, raw = _spelled(table, token)
    return TokenLogprob(text, b"" if table.is_special(token) else raw, own, _others(table, others[:top]))


def echo(table: TokenTable, job: Job, scoring: Scoring) -> Echo:
    """The prompt of `job`; nothing predicts its first token."""
    entries = [TokenLogprob(*_spelled(table, job.tokens[0]), None)]
    for token, (own, others) in zip(job.tokens[1:], scoring.logprobs, strict=True):
        entries.append(TokenLogprob(*_spelled(table, token), own, _others(table, others)))
    return Echo(job.echo or "", tuple(entries))


def _others(table: TokenTable, others: list[tuple[int, float]]) -> tuple[tuple[str, bytes, float], ...]:
    return tuple((*_spelled(table, token), value) for token, value in others)


def _spelled(table: TokenTable, token: int) -> tuple[str, bytes]:
    raw = table.bytes_of(token)
    return raw.decode("utf-8", "replace"), raw
