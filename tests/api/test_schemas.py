"""Structured output as a client meets it: streamed, over HTTP, with schemas that nobody has seen."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import count, islice

import jsonschema
import pytest
from openai import AsyncOpenAI

from tests.support import MODEL, Server
from tests.worker import schemas

COUNT = int(os.environ.get("SCHEMAS", "500"))
# Not those that refer to themselves: a model may go on in them for ever, and ours does.
NUMBERS = list(islice((n for n in count() if "$defs" not in json.dumps(schemas.schema(n))), COUNT))
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.timeout(1800)
async def test_500_random_schemas_streamed_eight_at_a_time_at_temperature_1(gateway: Server) -> None:
    places = asyncio.Semaphore(8)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="none", timeout=600, max_retries=0) as client:
        answers = await asyncio.gather(*(answer(client, places, number) for number in NUMBERS))
    for number, text in zip(NUMBERS, answers, strict=True):
        validator = jsonschema.Draft202012Validator(schemas.schema(number), format_checker=FORMATS)
        validator.validate(json.loads(text))


async def answer(client: AsyncOpenAI, places: asyncio.Semaphore, number: int) -> str:
    """What is said to the schema of that number; every seventh is thought about before."""
    async with (
        places,
        client.chat.completions.stream(
            model=MODEL,
            messages=[{"role": "user", "content": f"Make up an object, number {number}."}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "made_up", "schema": schemas.schema(number)},
            },
            temperature=1,
            seed=number,
            reasoning_effort="medium" if number % 7 == 0 else "none",
            extra_body={"thinking_budget": 200},
        ) as stream,
    ):
        choice = (await stream.get_final_completion()).choices[0]
    assert choice.finish_reason == "stop", number
    return choice.message.content or ""
