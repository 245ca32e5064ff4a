"""The text that the embedded model learns from, and the cases that measure it."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from openai_gateway.demo.training.cases import Case, call_cases, object_cases, result_cases, unfit_cases
from openai_gateway.demo.training.corpus import (
    TEMPLATE,
    Conversation,
    Encoder,
    Sample,
    object_conversation,
    prompt,
    tool_conversation,
)
from openai_gateway.demo.training.evaluate import same_json
from openai_gateway.demo.training.values import vocabulary, words

SOME = 400
MAKERS = (tool_conversation, object_conversation)
HELD = {"verbs", "nouns", "parameters", "results", "places"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """With the tokenizer that the model has."""
    return Encoder(Tokenizer.from_file(str(TEMPLATE.with_name("tokenizer.json"))))


def composed(seed: int) -> Conversation:
    rng = random.Random(seed)
    return rng.choice(MAKERS)(rng)


def text_of(conversation: Conversation) -> str:
    return prompt(TEMPLATE.read_text(), conversation) + "".join(text for text, _ in conversation.completion())


def test_a_seed_always_composes_the_same() -> None:
    assert [composed(seed) for seed in range(20)] == [composed(seed) for seed in range(20)]
    assert call_cases(20) == call_cases(20)


def test_no_held_out_word_stands_in_what_is_learned() -> None:
    seen = {word for seed in range(SOME) for word in re.findall(r"[a-z]+", text_of(composed(seed)).lower())}
    held = {word.lower() for kind in HELD for word in words(kind, held=True)}
    assert held & seen == set()


def test_the_weather_in_paris_is_never_asked_for_in_what_is_learned() -> None:
    asked = " ".join(ask for family in vocabulary()["family"] for ask in family["ask"])
    assert "What is the weather in {city}?" not in asked
    assert "Paris" not in asked + json.dumps(words("places", held=False))


def test_calls_fit_the_schemas_of_their_functions() -> None:
    for case in call_cases(100):
        call = json.loads(case.expected)
        jsonschema.validate(call["arguments"], functions(case)[call["name"]]["parameters"])


def functions(case: Case) -> dict[str, Any]:
    return {tool["function"]["name"]: tool["function"] for tool in case.tools}


def test_calls_have_parameters_of_every_type_and_up_to_three_functions() -> None:
    cases = call_cases(200)
    offered = [function for case in cases for function in functions(case).values()]
    types = {schema["type"] for one in offered for schema in one["parameters"]["properties"].values()}
    assert types == {"string", "integer", "number", "boolean", "array"}
    assert {len(case.tools) for case in cases} == {1, 2, 3}
    assert {len(json.loads(case.expected)["arguments"]) for case in cases} >= {0, 1, 2, 3}


def test_objects_fit_the_schemas_that_are_asked_for() -> None:
    for case in object_cases(100, shown=True):
        assert case.schema is not None
        jsonschema.validate(json.loads(case.expected), case.schema)


def test_a_request_that_no_function_fits_names_none_that_is_offered() -> None:
    for case in unfit_cases(100):
        asked = case.messages[-1]["content"].lower()
        assert not any(name.lower() in asked for name in functions(case))


def test_an_answer_says_every_value_of_the_result() -> None:
    for case in result_cases(100):
        result = case.messages[-1]["content"]
        if result.startswith("{"):
            values = [value for value in json.loads(result).values() if not isinstance(value, list | bool)]
            assert all(str(value) in case.expected for value in values)
        else:
            assert result in case.expected


def test_markup_is_that_of_harmony() -> None:
    header = re.compile(
        r"<\|start\|>assistant<\|channel\|>commentary to=functions\.\w+ <\|constrain\|>json<\|message\|>"
    )
    for seed in range(SOME):
        text = text_of(composed(seed))
        calls = text.count("<|call|>")
        assert len(header.findall(text)) == calls
        assert text.endswith(("<|call|>", "<|return|>"))


def learned(encoder: Encoder, sample: Sample) -> str:
    return encoder.text([token for token, is_learned in zip(sample.ids, sample.learned, strict=True) if is_learned])


def test_only_what_the_assistant_writes_is_learned(encoder: Encoder) -> None:
    for seed in range(SOME):
        conversation = composed(seed)
        text = learned(encoder, encoder.sample(conversation))
        # At effort high it says once more what is asked for, before a call.
        asked = [turn.ask for turn in conversation.turns if conversation.effort != "high" and len(turn.ask) > 20]
        assert not any(ask in text for ask in asked)
        assert conversation.turns[0].answer in text or conversation.turns[0] is conversation.turns[-1]


def test_keys_that_the_prompt_does_not_tell_are_not_learned(encoder: Encoder) -> None:
    unknown = [one for one in map(composed, range(SOME)) if not getattr(one.turns[-1], "known", True)]
    assert len(unknown) > 10
    for conversation in unknown:
        sample = encoder.sample(conversation)
        last = learned(encoder, sample).rpartition("{")[2]
        assert not any(f'"{key}"' in last for key in json.loads(conversation.turns[-1].answer))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('{"b": [1], "a": true}', True),
        ('{"a": true, "b": [1.0]}', False),
        ('{"a": 1, "b": [1]}', False),
        ('{"a": true}', False),
        ("a is true", False),
    ],
)
def test_json_is_the_same_when_its_values_and_their_types_are(text: str, same: bool) -> None:
    assert same_json(text, '{"a":true,"b":[1]}') is same
