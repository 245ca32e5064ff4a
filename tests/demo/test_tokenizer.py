"""The embedded model's tokenizer."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer

from openai_gateway.demo.training.corpus import TEMPLATE, texts
from openai_gateway.demo.training.skills import made_up_word
from openai_gateway.demo.training.tokenizer import spellings, train_tokenizer


@pytest.fixture(scope="module", params=["shipped", "new"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The one in use, and one that was just trained."""
    if request.param == "shipped":
        return Tokenizer.from_file(str(TEMPLATE.with_name("tokenizer.json")))
    return train_tokenizer(texts(1, 60), 800)


def test_any_text_survives(tokenizer: Tokenizer) -> None:
    for text in (
        "What is 17 plus 25?",
        '{"city":"Paris","days":[1,-2.5],"wet":true}',
        "日本 \u0000\t\r\n  x",
        "Zürich 🙂",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2026 is 7").tokens[:4] == ["2", "0", "2", "6"]


def test_a_word_is_cut_alike_with_a_blank_before_it_and_without(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for word in ["Paris", "get", "weather", *(made_up_word(rng) for _ in range(200))]:
        bare, spaced = tokenizer.encode(word).tokens, tokenizer.encode(" " + word).tokens
        assert spaced == ["Ġ" + bare[0], *bare[1:]]


def test_the_spellings_of_a_word_are_known_to_be_alike(tokenizer: Tokenizer) -> None:
    tokens = map(tokenizer.id_to_token, range(tokenizer.get_vocab_size()))
    spelled = dict(zip(tokens, spellings(tokenizer), strict=True))
    assert len(set(spelled.values())) == len(spelled)
    assert spelled["ĠThe"] == ("the", True, True)
    assert spelled["the"] == ("the", False, False)
    assert spelled["Ġ"] == ("Ġ", False, False)
