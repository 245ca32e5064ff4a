"""Chat completions against a real gateway, through the official SDK and as bytes."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from openai_gateway.api.chat import ChatBody
from openai_gateway.api.completions import CompletionBody
from tests.api.asking import WHO, chat_request, chunks, post, refusal
from tests.support import MODEL, Server

I_AM = "I am the demo model of openai_gateway, a very small language model that runs on this machine."


def test_an_answer_has_the_shape_that_strict_clients_validate(http: httpx2.Client) -> None:
    body = post(http).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == MODEL
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["message"]["refusal"] is None
    assert "tool_calls" not in choice["message"]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert 1 <= body["usage"]["completion_tokens"] <= 8
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "audio_tokens": 0}
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] >= 0


def test_a_stream_has_the_role_once_then_deltas_then_a_reason_then_done(http: httpx2.Client) -> None:
    response = post(http, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    parts = chunks(response)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in p["choices"][0]["delta"] for p in parts[1:])
    assert {p["object"] for p in parts} == {"chat.completion.chunk"}
    assert len({(p["id"], p["created"], p["model"]) for p in parts}) == 1
    assert [p["choices"][0]["finish_reason"] is None for p in parts] == [True] * (len(parts) - 1) + [False]
    assert parts[-1]["choices"][0]["delta"] == {}
    assert all("usage" not in p for p in parts)
    assert all("\nid:" not in line and "\nevent:" not in line for line in response.text.split("\n\n"))


def test_usage_ends_a_stream_only_where_it_is_asked_for(http: httpx2.Client) -> None:
    *parts, last = chunks(post(http, stream=True, stream_options={"include_usage": True}))
    assert all(p["usage"] is None for p in parts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] >= 1


def test_streamed_and_whole_answers_are_the_same(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": WHO, "seed": 7, "temperature": 1, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    content = reasoning = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        content += chunk.choices[0].delta.content or ""
        reasoning += (chunk.choices[0].delta.model_extra or {}).get("reasoning", "")
    message = whole.choices[0].message
    assert content == message.content
    assert reasoning == (message.model_extra or {}).get("reasoning", "")


def test_the_stream_helper_of_the_sdk_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Repeat: red green blue"}], temperature=0, n=2, max_tokens=60
    ) as stream:
        final = stream.get_final_completion()
    plain = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Repeat: red green blue"}], temperature=0, max_tokens=60
    )
    assert [c.message.content for c in final.choices] == [plain.choices[0].message.content] * 2
    assert [c.message.role for c in final.choices] == ["assistant"] * 2


def test_parse_says_when_an_answer_was_cut_off(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=2)


@pytest.mark.anyio
async def test_the_async_client_streams(gateway: Server) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True, max_tokens=8
        )
        seen: list[ChatCompletionChunk] = [chunk async for chunk in stream]
    assert seen[-1].choices[0].finish_reason in ("stop", "length")


def test_reasoning_comes_under_both_names_and_is_counted(http: httpx2.Client) -> None:
    body = post(http, max_tokens=200, reasoning_effort="high", temperature=0).json()
    message = body["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] != ""
    assert 0 < body["usage"]["completion_tokens_details"]["reasoning_tokens"] < body["usage"]["completion_tokens"]
    assert "<|" not in message["content"] + message["reasoning"]


@pytest.mark.parametrize("asked", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_reasoning_can_be_left_out_and_is_counted_all_the_same(http: httpx2.Client, asked: dict[str, Any]) -> None:
    body = post(http, max_tokens=200, temperature=0, **asked).json()
    assert "reasoning" not in body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    streamed = post(http, max_tokens=200, temperature=0, stream=True, **asked)
    assert "reasoning" not in streamed.text


@pytest.mark.parametrize(
    "asked",
    [
        {"reasoning_effort": "none"},
        {"reasoning": {"effort": "none"}},
        {"reasoning_level": "none"},
        {"reasoning": {"enabled": False}},
        {"enable_thinking": False},
        {"thinking": {"type": "disabled", "budget_tokens": 0}},
    ],
)
def test_effort_none_under_any_name_answers_without_reasoning(http: httpx2.Client, asked: dict[str, Any]) -> None:
    body = post(http, max_tokens=100, temperature=0, **asked).json()
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert body["choices"][0]["message"]["content"] == I_AM


@pytest.mark.parametrize("asked", [{"enable_thinking": True}, {"thinking": {"type": "enabled"}}, {"thinking": True}])
def test_thinking_can_be_switched_on_by_name(http: httpx2.Client, asked: dict[str, Any]) -> None:
    body = post(http, max_tokens=100, temperature=0, **asked).json()
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_more_effort_gives_more_reasoning(http: httpx2.Client) -> None:
    sum_ = [{"role": "user", "content": "What is 17 plus 25?"}]
    bodies = [
        post(http, messages=sum_, max_tokens=400, temperature=0, reasoning_effort=level).json()
        for level in ("minimal", "low", "medium", "high", "max")
    ]
    minimal, low, medium, high, highest = (b["usage"]["completion_tokens_details"]["reasoning_tokens"] for b in bodies)
    assert minimal == low < medium < high == highest
    assert all("42" in b["choices"][0]["message"]["content"] for b in bodies)


def test_n_gives_choices_that_differ_and_one_prompt_is_counted(http: httpx2.Client) -> None:
    body = post(http, n=8, temperature=2, seed=1, max_tokens=40, reasoning_effort="none").json()
    assert [c["index"] for c in body["choices"]] == [*range(8)]
    assert len({c["message"]["content"] for c in body["choices"]}) > 1
    assert body["usage"]["prompt_tokens"] == post(http, reasoning_effort="none").json()["usage"]["prompt_tokens"]


def test_choices_of_a_stream_begin_in_the_order_of_their_indices(http: httpx2.Client) -> None:
    parts = chunks(post(http, n=3, stream=True))
    assert [p["choices"][0]["index"] for p in parts[:3]] == [0, 1, 2]
    assert sorted(p["choices"][0]["index"] for p in parts if p["choices"][0]["finish_reason"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("asked", "priority"),
    [
        ({}, 0),
        ({"priority": None, "service_tier": "auto"}, 0),
        ({"priority": 100}, 100),
        ({"service_tier": "flex"}, 10),
        ({"service_tier": "priority"}, 0),
        ({"service_tier": "flex", "priority": 3}, 3),
        ({"service_tier": "flex", "priority": 0}, 0),
    ],
    ids=str,
)
def test_a_client_can_only_step_back(asked: dict[str, Any], priority: int) -> None:
    chat = ChatBody.model_validate({"model": MODEL, "messages": WHO} | asked).request(1, None, "ada")
    (completion,) = CompletionBody.model_validate({"model": MODEL, "prompt": "x"} | asked).requests(1, 1, "ada")
    for request in (chat, completion):
        assert (request.owner, request.priority) == ("ada", priority)


def test_the_tier_is_told_to_those_who_asked_for_one(http: httpx2.Client) -> None:
    for asked, served in (("flex", "flex"), ("auto", "default"), ("priority", "default")):
        assert post(http, service_tier=asked).json()["service_tier"] == served
        assert {part["service_tier"] for part in chunks(post(http, service_tier=asked, stream=True))} == {served}
    assert "service_tier" not in post(http).json()


def test_a_seed_gives_the_same_answer_again(http: httpx2.Client) -> None:
    asked = {"temperature": 2, "max_tokens": 30, "reasoning_effort": "none"}
    first, again, other = (post(http, seed=seed, **asked).json()["choices"][0]["message"] for seed in (5, 5, -6))
    assert first == again != other


def test_a_stop_string_ends_the_answer_before_itself(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 100, "reasoning_effort": "none"}
    full = post(http, **asked).json()["choices"][0]["message"]["content"]
    stop = full[5:9]
    for stream in (False, True):
        response = post(http, **asked, stop=[stop, "never"], stream=stream)
        if stream:
            parts = [p["choices"][0] for p in chunks(response)]
            text, reason = "".join(p["delta"].get("content", "") for p in parts), parts[-1]["finish_reason"]
        else:
            choice = response.json()["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        assert (text, reason) == (full[: full.index(stop)], "stop")


def test_logprobs_spell_the_answer_and_come_with_as_many_alternatives_as_asked_for(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 100}
    choice = post(http, **asked).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(e["bytes"]) for e in entries).decode() == choice["message"]["content"]
    assert all(len(e["top_logprobs"]) == 3 and e["logprob"] <= 0 for e in entries)
    assert all(e["top_logprobs"][0]["token"] == e["token"] for e in entries)  # greedy takes the likeliest
    streamed = [
        entry
        for part in chunks(post(http, **asked, stream=True))
        for entry in (part["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [e["token"] for e in streamed] == [e["token"] for e in entries]


def test_logit_bias_decides_which_token_comes(http: httpx2.Client) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 3, "reasoning_effort": "none", "logprobs": True}
    for id in (400, 900):
        choice = post(http, **asked, logit_bias={str(id): 100}).json()["choices"][0]
        tokens = [e["token"] for e in choice["logprobs"]["content"]]
        assert tokens == [tokens[0]] * 3
        (banned,) = post(http, **asked | {"max_tokens": 1}, logit_bias={str(id): -100}).json()["choices"]
        assert banned["logprobs"]["content"][0]["token"] != tokens[0]


def test_a_trailing_assistant_message_is_continued(http: httpx2.Client) -> None:
    begun = I_AM[:19]
    body = post(http, messages=[*WHO, {"role": "assistant", "content": begun}], temperature=0, max_tokens=60).json()
    assert begun + body["choices"][0]["message"]["content"] == I_AM


BEGUN = [*WHO, {"role": "assistant", "content": "It is sunny."}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("asked", "continued"),
    [
        ({}, True),
        ({"tools": TOOLS}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"tools": TOOLS, "tool_choice": "required"}, False),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": {}}}}, False),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, False),
        ({"guided_regex": "[a-z]+"}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_answer_that_must_be_something_else_is_a_new_turn_unless_the_client_says_otherwise(
    asked: dict[str, Any], continued: bool
) -> None:
    assert chat_request(messages=BEGUN, **asked).continue_final is continued
    assert chat_request(messages=BEGUN, **asked, continue_final_message=False).continue_final is False
    if "tool_choice" not in asked:
        assert chat_request(messages=BEGUN, **asked, continue_final_message=True).continue_final is True


def test_a_final_message_is_continued_in_vllms_words_as_well() -> None:
    in_both = chat_request(messages=BEGUN, continue_final_message=True, add_generation_prompt=False)
    assert in_both == chat_request(messages=BEGUN, continue_final_message=True)
    assert chat_request(add_generation_prompt=True) == chat_request()
    for messages in (WHO, BEGUN):
        assert refusal(messages=messages, add_generation_prompt=False).param == "add_generation_prompt"


@pytest.mark.parametrize(
    "asked",
    [
        {"store": True},
        {"moderation": {}},
        {"verbosity": "medium"},
        {"typical_p": 1.0},
        {"xtc_probability": 0, "xtc_threshold": 0.1},
        {"xtc_threshold": 0.1},
        {"min_tokens": 0},
        {"grammar": ""},
        {"documents": []},
        {"length_penalty": 1.0, "use_beam_search": False, "include_stop_str_in_output": False, "bad_words": []},
        {"skip_special_tokens": True, "spaces_between_special_tokens": True, "return_token_ids": False},
        {"chat_template_kwargs": {"thinking": None}},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(asked: dict[str, Any]) -> None:
    assert chat_request(**asked) == chat_request()


@pytest.mark.parametrize(("verbosity", "hint"), [("low", "Keep your answers short."), ("high", "in detail")])
def test_verbosity_is_a_sentence_among_the_rules_and_the_last_message_stays_the_last(verbosity: str, hint: str) -> None:
    rules = {"role": "system", "content": "Be kind."}
    for history in (WHO, BEGUN, [rules, *WHO]):
        *before, told, last = chat_request(messages=history, verbosity=verbosity).messages
        assert told.role == "system" and hint in (told.content or "")
        assert (*before, last) == chat_request(messages=history).messages


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "Be brief."}, *WHO],
        [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, *WHO],
        [{"role": "user", "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]}],
        [{"role": "assistant", "content": "Hello."}, *WHO],
        [*WHO, {"role": "user", "content": "And what is your port?", "name": "ada"}],
        [
            *WHO,
            {"role": "assistant", "content": "A model.", "refusal": None, "annotations": [], "reasoning_content": "x"},
            {"role": "user", "content": "Thanks"},
        ],
        [
            *WHO,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
        ],
    ],
)
def test_every_form_of_history_is_taken(http: httpx2.Client, messages: list[dict[str, Any]]) -> None:
    response = post(http, messages=messages)
    assert response.status_code == 200, response.text


def test_null_is_the_same_as_absent_and_strangers_are_ignored(http: httpx2.Client) -> None:
    optional = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options"]
    optional += ["max_tokens", "logit_bias", "tools", "tool_choice", "response_format", "reasoning_effort", "metadata"]
    optional += ["frequency_penalty", "presence_penalty", "user", "store", "functions", "parallel_tool_calls"]
    optional += ["structured_outputs", "guided_json", "thinking_budget", "reasoning", "function_call", "verbosity"]
    optional += ["moderation", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "typical_p"]
    response = post(http, **dict.fromkeys(optional), max_completion_tokens=4, something_new={"a": 1})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"priority": -1}, "priority"),
        ({"priority": 101}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x", 1]}, "stop[1]"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"no_such_thing": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "maybe"}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [*WHO, {"role": "tool", "tool_call_id": "c1", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
         "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"stop": ["ab" * 2049]}, "stop"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids[0]"),
        ({"chat_template_kwargs": {"reasoning_effort": 10**30}}, "chat_template_kwargs"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": "disabled"}, "thinking"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.1}, "xtc_probability"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"grammar": 'root ::= "x"'}, "grammar"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"truncate_prompt_tokens": 9}, "truncate_prompt_tokens"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"length_penalty": 0.9}, "length_penalty"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"verbosity": "enormous"}, "verbosity"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_400_that_names_the_parameter(
    http: httpx2.Client, asked: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        response = post(http, **{"stream": stream} | asked)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param


@pytest.mark.parametrize(
    "asked",
    [
        {"stream_options": {"include_usage": True}},  # LangChain.js sends it with every request
        {"metadata": {f"key {n}": "x" for n in range(30)}},  # LiteLLM's proxy
        {"chat_template_kwargs": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}},  # Dify
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_clients_send_to_everybody_is_taken(http: httpx2.Client, asked: dict[str, Any]) -> None:
    response = post(http, **asked)
    assert response.status_code == 200, response.text


def test_half_an_emoji_in_a_history_costs_one_character_and_not_the_conversation(http: httpx2.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Repeat: red \ud83d"}], "max_tokens": 1}
    answer = http.post("/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_minus_one_is_no_bound_and_no_seed() -> None:
    asked = chat_request(max_tokens=-1, seed=-1)
    assert (asked.sampling.max_tokens, asked.sampling.seed) == (None, None)
    assert chat_request(max_completion_tokens=-1, max_tokens=5).sampling.max_tokens == 5
    assert chat_request(seed=0).sampling.seed == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000, b'{"model": "\\ud800"}', b'{"n": NaN}', b'{"seed": 1e9}'],
)  # fmt: skip
def test_what_is_no_proper_json_is_a_400(http: httpx2.Client, content: bytes) -> None:
    response = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/reports+json", ""])
def test_a_body_that_does_not_call_itself_json_is_a_415(http: httpx2.Client, kind: str) -> None:
    response = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415


def test_an_unknown_model_is_a_404_and_never_a_path(client: OpenAI, gateway: Server) -> None:
    for name in ("gpt-9", "/etc", "../demo", "openai_gateway/demo", "mlx-community/Qwen3-8B-4bit", "\x00"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"


def test_a_prompt_longer_than_the_context_is_refused_in_the_words_clients_look_for(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "red " * 40_000}], stream=stream
            )
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"
        for words in ("context_length_exceeded", "This model's maximum context length is 32768", "> 32768 maximum"):
            assert words in str(caught.value)


def test_answers_and_refusals_carry_a_request_id_and_the_time_they_took(http: httpx2.Client) -> None:
    for response in (post(http), post(http, n=0), post(http, stream=True), http.get("/v1/nothing")):
        assert response.headers["x-request-id"].startswith("req_")
        assert int(response.headers["openai-processing-ms"]) >= 0


def test_a_client_that_leaves_frees_its_rows(http: httpx2.Client, gateway: Server) -> None:
    endless: dict[str, Any] = {"model": MODEL, "messages": WHO, "ignore_eos": True, "max_tokens": 30_000}
    with http.stream("POST", "/v1/chat/completions", json=endless | {"stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/chat/completions", json=endless, timeout=0.3)
    worker = gateway.worker()
    worker.cpu_percent()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if worker.cpu_percent() < 20:
            return
    raise AssertionError("the worker still computes what nobody waits for")
