"""What ends one worker after the other is blamed for it, and nothing that ran beside it."""

from __future__ import annotations

import pytest

from openai_gateway.errors import ModelFailed
from openai_gateway.providers.suspects import TERM, Suspects
from openai_gateway.types import CompletionRequest, Request


def asking(prompt: str) -> Request:
    return CompletionRequest(model="m", prompt=prompt)


class Deaths:
    """Of workers, and what is blamed for the last one."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.suspects = Suspects(lambda: self.now)

    def of(self, *running: str) -> None:
        self.suspects.died([asking(each) for each in running])

    def blamed(self, *asked: str) -> str:
        blamed = ""
        for each in asked:
            try:
                self.suspects.check(asking(each))
            except ModelFailed:
                blamed += each
        return blamed


@pytest.mark.parametrize(
    ("deaths", "blamed"),
    [
        (["k"], ""),
        (["k", "k"], "k"),
        (["kab", "kcd"], "k"),
        (["kk", "kk"], "k"),
        (["ka", "ka"], ""),
        (["ka", "ka", "k"], "k"),
        (["kab", "kac", "kbd"], "k"),
        (["k", "a", "k"], ""),
        (["k", "", "k"], ""),
        (["", ""], ""),
        (["k", "k", "la", "l"], "l"),
    ],
)
def test_only_what_ran_at_each_of_the_last_deaths_is_blamed_and_only_if_nothing_else_did(
    deaths: list[str], blamed: str
) -> None:
    seen = Deaths()
    for running in deaths:
        seen.of(*running)
    assert seen.blamed(*"kabcdl") == blamed


def test_a_death_long_ago_counts_for_nothing() -> None:
    seen = Deaths()
    seen.of("k")
    seen.now += TERM
    seen.of("k")
    assert seen.blamed("k") == ""
    seen.of("k")
    assert seen.blamed("k") == "k"


def test_blame_ends_with_the_memory_of_the_death() -> None:
    seen = Deaths()
    seen.of("k")
    seen.of("k")
    seen.now += TERM
    assert seen.blamed("k") == ""
