"""Errors keep OpenAI's envelope, and come back over a worker's pipe as what they were."""

from __future__ import annotations

import re

import pytest

from openai_gateway import errors
from openai_gateway.errors import LONGEST, ContextLengthExceeded, GatewayError, ModelNotFound


def every(kind: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    """The whole tree."""
    return [kind, *(below for child in kind.__subclasses__() for below in every(child))]


@pytest.mark.parametrize("kind", every())
def test_every_error_has_the_four_keys_and_survives_the_pipe(kind: type[GatewayError]) -> None:
    error = kind("what was wrong", param="n")
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    back = errors.named(kind.__name__, error.message, error.param)
    assert (type(back), back.message, back.param) == (kind, "what was wrong", "n")


def test_the_docstring_draws_the_tree() -> None:
    drawn = set(re.findall(r"([A-Z]\w+) +\d{3}", errors.__doc__ or ""))
    assert drawn == {kind.__name__ for kind in every() if kind.__module__ == errors.__name__}


def test_what_a_client_wrote_is_not_repeated_without_end() -> None:
    usual = ModelNotFound.named("m" * 256).message
    assert usual == f"The model `{'m' * 256}` does not exist or you do not have access to it."
    error = ModelNotFound.named("m" * 10**6)
    assert error.message.startswith("The model `mmm")
    assert error.message.endswith("mmm` does not exist or you do not have access to it.")
    assert max(len(error.message), len(str(error))) < LONGEST + 10


def test_an_overflow_has_the_words_that_each_client_looks_for() -> None:
    message = ContextLengthExceeded.of(9000, 8192, "messages").message
    assert "context_length_exceeded" in message  # LangChain
    assert "this model's maximum context length is" in message.lower()  # LiteLLM
    assert "prompt is too long: 9000 tokens > 8192 maximum" in message  # Claude Code
