"""What the embedded model answers through the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from openai_gateway.demo.training.cases import WEATHER
from tests.support import MODEL

PARIS: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
LAMP = {
    "type": "function",
    "function": {
        "name": "polish_lamp",
        "description": "Polish the lamp.",
        "parameters": {
            "type": "object",
            "properties": {
                "gloss": {"type": "integer"},
                "covered": {"type": "boolean"},
                "helpers": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["gloss", "covered", "helpers"],
        },
    },
}


def ask(client: OpenAI, messages: list[Any], **options: Any) -> Any:
    """The message that answers, at temperature 0."""
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **options).choices[0].message


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_it_asks_a_tool_for_the_weather_at_every_effort(client: OpenAI, effort: str) -> None:
    message = ask(client, PARIS, tools=[WEATHER], reasoning_effort=effort)
    assert calls(message) == [("get_weather", {"city": "Paris"})]
    assert not message.content


def test_it_chooses_among_tools_and_writes_every_type(client: OpenAI) -> None:
    question = "Please polish the lamp with gloss 7; covered on; helpers Anna, Bob and Zulfi."
    message = ask(client, [{"role": "user", "content": question}], tools=[WEATHER, LAMP])
    assert calls(message) == [("polish_lamp", {"gloss": 7, "covered": True, "helpers": ["Anna", "Bob", "Zulfi"]})]


def test_it_answers_from_the_result_of_a_call(client: OpenAI) -> None:
    called = ask(client, PARIS, tools=[WEATHER])
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": '{"temperature": 21}'}
    message = ask(client, [*PARIS, called, result], tools=[WEATHER])
    assert message.content == "The temperature is 21."
    assert not message.tool_calls


def test_it_answers_itself_where_no_tool_is_needed(client: OpenAI) -> None:
    message = ask(client, [{"role": "user", "content": "Repeat: red green blue"}], tools=[WEATHER])
    assert message.content == "red green blue"
    assert not message.tool_calls


def test_without_tools_it_says_that_it_does_not_know_the_weather(client: OpenAI) -> None:
    assert "do not know" in ask(client, PARIS).content


def test_it_fills_a_schema_with_what_a_text_says(client: OpenAI) -> None:
    question = "Alice is 30 years old and lives in Oslo. Give name, age and city as JSON."
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    message = ask(client, [{"role": "user", "content": question}], response_format=form)
    assert json.loads(message.content) == {"name": "Alice", "age": 30, "city": "Oslo"}
