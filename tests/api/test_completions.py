"""Completions against a real gateway: every form of prompt, echo, and log-probabilities as evaluations read them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from openai_gateway.api.completions import MOST_SCORES, CompletionBody, Reply, firsts_of, merged
from openai_gateway.errors import InvalidRequest, ModelFailed
from openai_gateway.types import AT_ONCE, Delta, Echo, Event, Started, TokenLogprob
from tests.support import CONFIG, MODEL


def post(http: httpx2.Client, **body: Any) -> httpx2.Response:
    """A greedy completion of at most four tokens, as plain HTTP."""
    asked = {"model": MODEL, "prompt": "Apple's MLX", "max_tokens": 4, "temperature": 0}
    return http.post("/v1/completions", json=asked | body)


def only(response: httpx2.Response) -> dict[str, Any]:
    """The only choice."""
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return dict(choice)


def test_a_completion_has_the_shape_of_the_api_reference(http: httpx2.Client) -> None:
    body = post(http).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "finish_reason", "logprobs"}
    assert choice["logprobs"] is None
    assert body["usage"]["completion_tokens"] <= 4


def test_sixteen_tokens_are_the_default(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_token_prompts_and_text_prompts_of_the_same_tokens_are_the_same(http: httpx2.Client) -> None:
    entries = only(post(http, prompt="A", echo=True, logprobs=0, max_tokens=0))["logprobs"]
    assert entries["tokens"] == ["A"]
    # Byte-level vocabularies begin with their special tokens and then the bytes: find A by its echo.
    id = next(i for i in range(300) if only(post(http, prompt=[i], echo=True, max_tokens=0))["text"] == "A")
    assert only(post(http, prompt=[id]))["text"] == only(post(http, prompt="A"))["text"]
    assert only(post(http, prompt=[[id]]))["text"] == only(post(http, prompt="A"))["text"]


def test_every_prompt_of_a_list_gets_its_n_choices_in_order(http: httpx2.Client) -> None:
    body = post(http, prompt=["red", "green", "blue"], n=2, echo=True).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3, 4, 5]
    starts = ["red", "red", "green", "green", "blue", "blue"]
    assert all(c["text"].startswith(start) for c, start in zip(body["choices"], starts, strict=True))
    alone = [only(post(http, prompt=p, echo=True))["text"] for p in ("red", "green", "blue")]
    assert [c["text"] for c in body["choices"][::2]] == alone


def test_a_stream_of_several_prompts_gives_each_the_text_it_has_as_a_whole(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"prompt": ["red", "green"], "n": 2, "echo": True, "logprobs": 1, "max_tokens": 8}
    whole = post(http, **asked).json()
    response = post(http, **asked, stream=True, stream_options={"include_usage": True})
    events = [json.loads(e.removeprefix("data: ")) for e in response.text.split("\n\n")[:-2]]
    assert response.text.endswith("data: [DONE]\n\n")
    *parts, last = events
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert "".join(m["text"] for m in mine) == choice["text"]
        assert [m["finish_reason"] for m in mine if m["finish_reason"]] == [choice["finish_reason"]]
        for name in ("tokens", "text_offset"):
            assert [x for m in mine if m["logprobs"] for x in m["logprobs"][name]] == choice["logprobs"][name]


def test_echo_with_logprobs_gives_what_lm_eval_harness_reads(http: httpx2.Client) -> None:
    text = "Repeat: red green blue"
    choice = only(post(http, prompt=text, echo=True, logprobs=1, max_tokens=1))
    entries = choice["logprobs"]
    assert choice["text"].startswith(text)
    assert len({len(entries[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    assert "".join(entries["tokens"]).removesuffix("<|return|>") == choice["text"]
    assert [choice["text"][o:].startswith(t) for t, o in zip(entries["tokens"], entries["text_offset"], strict=True)]
    assert entries["token_logprobs"][0] is entries["top_logprobs"][0] is None
    for own, top, token in zip(
        entries["token_logprobs"][1:], entries["top_logprobs"][1:], entries["tokens"][1:], strict=True
    ):
        assert math.isfinite(own)
        assert own <= 0
        assert top[token] == own
        assert max(top.values()) >= own
    assert max(entries["top_logprobs"][-1].values()) == entries["token_logprobs"][-1]  # greedy


def test_every_generated_token_has_an_entry_also_the_one_that_ends_the_text(http: httpx2.Client) -> None:
    end_marker = {"6": 100}
    body = post(http, prompt="a b", echo=True, logprobs=1, max_tokens=1, logit_bias=end_marker).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a b", "stop")
    assert len(choice["logprobs"]["tokens"]) == body["usage"]["prompt_tokens"] + 1


def test_log_probabilities_of_a_long_prompt_are_the_same_in_a_stream_as_in_one_piece(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"prompt": "one two € three " * 60, "echo": True, "logprobs": 2, "max_tokens": 2, "n": 2}
    whole = post(http, **asked).json()["choices"]
    response = post(http, **asked, stream=True)
    chunks = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert whole[0]["logprobs"] == whole[1]["logprobs"]
    assert len(whole[0]["logprobs"]["tokens"]) > 2 * AT_ONCE
    assert max(len(part["logprobs"]["tokens"]) for part in parts) <= AT_ONCE
    for choice in whole:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert mine[0]["text"] == asked["prompt"]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            # A prompt is read in parts as long as there is time for: sums in another order differ in the last digits.
            near = [pytest.approx(each, abs=1e-3) if isinstance(each, float | dict) else each for each in values]
            assert [value for part in mine for value in part["logprobs"][name]] == near


@pytest.mark.anyio
async def test_more_log_probabilities_of_prompts_than_one_answer_may_hold_are_refused_but_can_be_streamed() -> None:
    async def prompt(tokens: int) -> AsyncGenerator[Event]:
        yield Started(tokens, queued=True)
        yield Started(tokens)
        for _ in range(10):
            await asyncio.sleep(0)
        yield Echo.of("x", [TokenLogprob("x", b"x", None)])
        yield Delta(0, finish="length")

    def asked(**more: Any) -> tuple[Reply, list[AsyncGenerator[Event]]]:
        body = {"model": MODEL, "prompt": ["x", "y"], "echo": True, "logprobs": 19} | more
        return Reply(CompletionBody.model_validate(body), 2), [prompt(MOST_SCORES // 40 + 1) for _ in range(2)]

    reply, generated = asked()
    with pytest.raises(InvalidRequest) as refused:
        await reply.whole(generated)
    assert refused.value.param == "logprobs"
    for fewer in ({"logprobs": 18}, {"logprobs": None}, {"echo": False}):
        reply, generated = asked(**fewer)
        assert (await reply.whole(generated)).status_code == 200
    reply, generated = asked(stream=True)
    firsts = [await anext(events) for events in generated]
    assert len([chunk async for chunk in reply.stream(firsts, generated)]) == 4


def test_prompt_logprobs_do_not_depend_on_what_is_generated_after(http: httpx2.Client) -> None:
    scored = only(post(http, prompt="one two three", echo=True, logprobs=2, max_tokens=0))
    longer = only(post(http, prompt="one two three", echo=True, logprobs=2, max_tokens=3))
    assert scored["text"] == "one two three"
    assert scored["finish_reason"] == "length"
    count = len(scored["logprobs"]["tokens"])
    assert longer["logprobs"]["token_logprobs"][:count] == scored["logprobs"]["token_logprobs"]
    assert len(longer["logprobs"]["tokens"]) == count + 3


def test_what_follows_a_scored_prompt_is_what_follows_it_otherwise(http: httpx2.Client) -> None:
    prompt = "What is 17 plus 25? " * 30
    scored = only(post(http, prompt=prompt, echo=True, logprobs=0, max_tokens=12, ignore_eos=True))["text"]
    assert scored == prompt + only(post(http, prompt=prompt, max_tokens=12, ignore_eos=True))["text"]


def test_best_of_returns_the_likeliest_choices(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"temperature": 1, "seed": 3, "max_tokens": 6, "logprobs": 0, "ignore_eos": True}
    every = post(http, **asked, n=4).json()["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in every]
    best = only(post(http, **asked, best_of=4))
    assert best["text"] == every[means.index(max(means))]["text"]


def test_a_stop_string_is_cut_and_so_are_its_logprobs(http: httpx2.Client) -> None:
    full = only(post(http, max_tokens=20, ignore_eos=True))["text"]
    stop = full[6:9]
    choice = only(post(http, max_tokens=20, ignore_eos=True, stop=stop, logprobs=0))
    assert choice["text"] == full[: full.index(stop)]
    assert choice["finish_reason"] == "stop"
    said = [token for token in choice["logprobs"]["tokens"] if not token.startswith("<|")]  # the end that was ignored
    assert "".join(said).startswith(choice["text"])


def test_an_absent_prompt_starts_a_text_from_nothing(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=None, max_tokens=2, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["x", 1]}, "prompt[1]"),
        ({"prompt": [[1], [2**64]]}, "prompt[1][0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": [99_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["x", "y " * 40_000]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"priority": -1}, "priority"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "the end"}, "suffix"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"logit_bias": {str(CONFIG["vocab_size"]): 1}}, "logit_bias"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_names_the_parameter(
    http: httpx2.Client, asked: dict[str, Any], param: str
) -> None:
    response = post(http, **asked)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert post(http).status_code == 200


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="davinci", prompt="x")


def test_offsets_count_characters_also_where_several_tokens_make_one(http: httpx2.Client) -> None:
    choice = only(post(http, prompt="a€b", echo=True, logprobs=0, max_tokens=0))
    offsets = dict(zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True))
    assert choice["text"] == "a€b"
    assert offsets["b"] == 2


@pytest.mark.anyio
async def test_prompts_whose_reader_is_slow_wait_where_they_are_counted() -> None:
    made = 0

    async def endless() -> AsyncGenerator[Event]:
        nonlocal made
        while True:
            made += 1
            yield Delta(0, "x")
            await asyncio.sleep(0)

    async with aclosing(merged([endless(), endless()])) as events:
        await anext(events)
        for _ in range(100):
            await asyncio.sleep(0)
    assert made < 8


@pytest.mark.anyio
@pytest.mark.parametrize("left", [True, False])
async def test_a_stream_that_cannot_begin_gives_up_the_prompts_that_have_begun(left: bool) -> None:
    begun, ended, broken = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def begins() -> AsyncGenerator[Event]:
        try:
            begun.set()
            yield Started(1)
        finally:
            ended.set()

    async def waits() -> AsyncGenerator[Event]:
        await broken.wait()
        raise ModelFailed("no")
        yield Started(1)

    generated = [begins(), waits()]  # held here, so that nothing else closes them
    firsts = asyncio.create_task(firsts_of(generated))
    await begun.wait()
    await asyncio.sleep(0)
    if left:
        firsts.cancel()
    broken.set()
    with pytest.raises(asyncio.CancelledError if left else ModelFailed):
        await firsts
    assert ended.is_set()


def test_more_than_openai_shows_and_no_bound_on_tokens_can_be_asked_for(http: httpx2.Client) -> None:
    choice = only(post(http, logprobs=10, max_tokens=1, ignore_eos=True))
    assert len(choice["logprobs"]["top_logprobs"][0]) >= 10
    whole = only(post(http, prompt="What is 2 plus 2?", max_tokens=-1))
    assert whole["finish_reason"] == "stop"
