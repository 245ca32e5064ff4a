"""Log-probabilities as they are reported: tokens spelled as text and bytes."""

from __future__ import annotations

from collections.abc import Iterator

from openai_gateway.types import AT_ONCE, Echo, TokenLogprob
from openai_gateway.worker.batch import Scored
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.prompt import Job


def answer_entry(table: TokenTable, token: int, scored: Scored, top: int) -> TokenLogprob:
    """For a generated token, with at most `top` others. Special ones have no bytes: they do not stand in the answer."""
    own, others = scored
    text, raw = _spelled(table, token)
    return TokenLogprob(text, b"" if table.is_special(token) else raw, own, _others(table, others[:top]))


def echo(table: TokenTable, job: Job, done: int, scores: list[Scored]) -> Iterator[Echo]:
    """`job`'s prompt as far as it was read at once: the scores of what follows its first `done` tokens and one more.
    With the text, and the very first token, which nothing predicts, where nothing was read before."""
    entries = [] if done else [TokenLogprob(*_spelled(table, job.tokens[0]), None)]
    for token, (own, others) in zip(job.tokens[done + 1 : done + 1 + len(scores)], scores, strict=True):
        entries.append(TokenLogprob(*_spelled(table, token), own, _others(table, others)))
    for place in range(0, len(entries), AT_ONCE):
        yield Echo.of("" if done or place else job.echo or "", entries[place : place + AT_ONCE])


def _others(table: TokenTable, others: list[tuple[int, float]]) -> tuple[tuple[str, bytes, float], ...]:
    return tuple((*_spelled(table, token), value) for token, value in others)


def _spelled(table: TokenTable, token: int) -> tuple[str, bytes]:
    raw = table.bytes_of(token)
    return raw.decode("utf-8", "replace"), raw
