"""What an answer is found by, how much is kept and for how long, and a Redis that may be slow, gone or lying."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields, replace

from openai_gateway.cache import (
    CONNECTIONS,
    OVERHEAD,
    PREFIX,
    REMINDER,
    SHARE,
    Answers,
    Kept,
    RedisStore,
    deterministic,
    digest,
)
from openai_gateway.types import (
    ChatRequest,
    CompletionRequest,
    Delta,
    Grammar,
    Message,
    Request,
    Sampling,
    Started,
    Tool,
    ToolChoice,
)
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio

CHAT = ChatRequest(model="m", messages=(Message("user", "hi"),), sampling=Sampling(temperature=0))
COMPLETION = CompletionRequest(model="m", prompt="hi", sampling=Sampling(temperature=0))
TODAY = date(2026, 1, 1)
GRAMMAR = Grammar(kind="regex", source="a+")
CHANGES: dict[type, dict[str, Any]] = {
    ChatRequest: {
        "messages": (Message("user", "ho"),),
        "sampling": Sampling(temperature=0.0, n=2),
        "effort": "low",
        "thinking_budget": 5,
        "tools": (Tool(name="f"),),
        "tool_choice": ToolChoice("required"),
        "parallel_tool_calls": False,
        "grammar": GRAMMAR,
        "template_kwargs": {"a": 1},
        "continue_final": True,
        "owner": "b",
    },
    CompletionRequest: {
        "prompt": "ho",
        "suffix": "x",
        "sampling": Sampling(temperature=0.0, n=2),
        "grammar": GRAMMAR,
        "echo": True,
        "owner": "b",
    },
    Sampling: {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.5,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {1: 2.0},
        "seed": 0,
        "n": 2,
        "stop": ("x",),
        "stop_token_ids": (1,),
        "ignore_eos": True,
        "logprobs": 0,
    },
}
"""Another value for every field that can change an answer, or whose answer it is."""

WITHOUT_EFFECT = {"model", "priority"}
"""The model is known by its identity, not by one of its names; how urgent a request is changes no word."""

ANSWER: tuple[Kept, ...] = (Started(3, 0, None, "hit"), Delta(0, "hello", tokens=2, finish="stop"))


def changed(request: Request, field: str, value: object) -> Request:
    return replace(request, **{field: value})


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, Sampling], ids=lambda kind: kind.__name__)
def test_g20_whatever_can_change_an_answer_changes_its_key(kind: type) -> None:
    assert {field.name for field in fields(kind)} == {*CHANGES[kind], *(WITHOUT_EFFECT if kind is not Sampling else ())}
    base: Request = CompletionRequest(model="m", prompt="hi") if kind is CompletionRequest else replace(CHAT)
    keys = {digest(base, b"", TODAY)}
    for name, value in CHANGES[kind].items():
        other = replace(base.sampling, **{name: value}) if kind is Sampling else value
        keys.add(digest(changed(base, "sampling" if kind is Sampling else name, other), b"", TODAY))
    assert len(keys) == 1 + len(CHANGES[kind])


def test_g20_chats_and_completions_models_and_days_are_told_apart() -> None:
    keys = {
        digest(CHAT, b"", TODAY),
        digest(CHAT, b"", date(2026, 1, 2)),
        digest(CHAT, b"other weights", TODAY),
        digest(COMPLETION, b"", TODAY),
        digest(replace(COMPLETION, prompt=(104, 105)), b"", TODAY),
    }
    assert len(keys) == 5


def test_neither_a_models_name_nor_urgency_matters() -> None:
    assert digest(CHAT, b"", TODAY) == digest(replace(CHAT, model="alias", priority=3), b"", TODAY)


def test_owners_share_only_where_that_is_wanted() -> None:
    one, other = replace(CHAT, owner="a"), replace(CHAT, owner="b")
    assert digest(one, b"", TODAY) != digest(other, b"", TODAY)
    assert digest(one, b"", TODAY, shared=True) == digest(other, b"", TODAY, shared=True)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=0), True),
        (Sampling(seed=0), True),
        (Sampling(temperature=1, seed=7), True),
        (Sampling(), False),  # the model's default may be any
        (Sampling(temperature=0.01), False),
    ],
)
def test_only_a_temperature_of_0_or_a_seed_makes_an_answer_come_again(sampling: Sampling, expected: bool) -> None:
    assert deterministic(replace(CHAT, sampling=sampling)) is expected


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_kept_until_it_is_too_old() -> None:
    clock = Clock()
    answers = Answers(10**6, 60, clock=clock)
    await answers.put("a", b"k", ANSWER)
    clock.now = 59.9
    assert answers.get("a", b"k") == ANSWER
    assert answers.get("b", b"k") is None
    clock.now = 60
    assert answers.get("a", b"k") is None
    assert answers.size == 0


def long(characters: int) -> tuple[Kept, ...]:
    return (Started(1), Delta(0, "x" * characters, finish="stop"))


async def test_the_least_recently_used_answer_makes_room_and_bytes_are_bounded() -> None:
    answers = Answers(10 * (1000 + OVERHEAD), 60)
    for number in range(9):
        await answers.put("a", bytes([number]), long(950))
    assert answers.get("a", b"\0")
    for number in range(9, 12):
        await answers.put("a", bytes([number]), long(950))
    assert answers.size <= answers.limit
    assert [number for number in range(12) if answers.get("a", bytes([number]))] == [0, *range(3, 12)]


async def test_an_answer_that_would_take_the_place_of_many_is_not_kept() -> None:
    answers = Answers(8000, 60)
    await answers.put("a", b"k", long(answers.most))
    assert answers.get("a", b"k") is None
    assert answers.most == answers.limit // SHARE


async def test_who_floods_the_cache_loses_only_answers_of_his_own() -> None:
    answers = Answers(100_000, 60)
    await answers.put("a", b"k", ANSWER)
    for number in range(1000):
        await answers.put("flood", number.to_bytes(2), long(1000))
    assert answers.get("a", b"k") == ANSWER
    assert answers.size <= answers.limit


async def test_g37_owners_who_keep_nothing_any_more_are_forgotten() -> None:
    clock = Clock()
    answers = Answers(10**6, 60, clock=clock)
    for number in range(1000):
        await answers.put(str(number), b"k", ANSWER)
    clock.now = 100
    await answers.put("last", b"k", ANSWER)
    assert len(answers._owners) == 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as running:
        yield running


async def test_what_one_gateway_keeps_another_one_finds(server: RedisServer) -> None:
    one = Answers(10**6, 60, RedisStore(server.url, 60, patience=30))
    other = Answers(10**6, 60, RedisStore(server.url, 60, patience=30))
    await one.put("a", b"k", ANSWER)
    assert await other.find(b"k") == ANSWER
    assert await other.find(b"l") is None
    with server.client() as client:
        (name,) = client.keys(f"{PREFIX}*")
        assert 0 < client.ttl(name) <= 60
    for answers in (one, other):
        await answers.close()


async def test_many_who_look_at_once_share_a_few_connections(server: RedisServer) -> None:
    answers = Answers(10**6, 60, RedisStore(server.url, 60, patience=30))
    await asyncio.gather(*(answers.find(b"%d" % number) for number in range(100)))
    with server.client() as client:
        assert len(client.client_list()) <= CONNECTIONS + 1
    await answers.close()


async def test_b2_what_somebody_else_wrote_into_the_store_is_no_answer(server: RedisServer) -> None:
    answers = Answers(10**6, 60, RedisStore(server.url, 60, patience=30))
    encode = msgspec.msgpack.encode
    with server.client() as client:
        for planted in (b"", b"cos\nsystem\n", encode((b"other", encode(ANSWER))), encode((b"k", b"no")), encode(1)):
            client.set(PREFIX + b"k".hex(), planted)
            assert await answers.find(b"k") is None
    await answers.close()


async def test_g14_a_redis_that_is_slow_or_gone_is_a_miss_within_its_patience_and_is_asked_again_later(
    server: RedisServer,
) -> None:
    clock = Clock()
    answers = Answers(10**6, 60, RedisStore(server.url, 60, patience=0.2, clock=clock))
    await until_found(answers, clock)
    server.hang()
    began = time.monotonic()
    assert await answers.find(b"k") is None
    assert 0.2 <= time.monotonic() - began < 5
    server.go_on()
    assert await answers.find(b"k") is None  # not asked at all: the next request waits for nothing
    await until_found(answers, clock)
    server.kill()
    clock.now += 10
    assert await answers.find(b"k") is None
    await answers.put("a", b"k", ANSWER)
    assert answers.get("a", b"k") == ANSWER  # what is in memory needs no Redis
    server.start_again()
    await until_found(answers, clock)
    await answers.close()


async def until_found(answers: Answers, clock: Clock) -> None:
    """Ask, and keep, as often as a busy machine may need."""
    async with asyncio.timeout(30):
        while await answers.find(b"k") != ANSWER:
            clock.now += 10
            await answers.put("a", b"k", ANSWER)


async def test_a_redis_that_is_full_still_gives_what_it_has_and_says_that_it_takes_no_more(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    answers = Answers(10**6, 60, RedisStore(server.url, 60, patience=30, clock=clock))
    await answers.put("a", b"k", ANSWER)
    with server.client() as client:
        client.config_set("maxmemory", 1)
    for _ in range(2):
        await answers.put("a", b"l", ANSWER)
        assert await answers.find(b"k") == ANSWER
    assert [line.partition(": ")[0] for line in caplog.messages] == ["Redis refuses to keep an answer"]
    clock.now = REMINDER
    await answers.put("a", b"l", ANSWER)
    assert len(caplog.messages) == 2
    await answers.close()


async def test_a_redis_that_is_slow_to_take_answers_is_still_asked_for_them(server: RedisServer) -> None:
    store = RedisStore(server.url, 60, patience=30, clock=Clock())
    await store.put(b"k", b"kept")
    with server.client() as client:
        client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    store._patience = 0.05
    await store.put(b"l", b"lost")
    store._patience = 30
    await store.put(b"l", b"not even tried")
    assert await store.get(b"k") == b"kept"
    await store.close()


async def test_g15_a_reply_that_comes_after_its_call_was_cancelled_is_nobodys(server: RedisServer) -> None:
    answers = Answers(10**6, 60, RedisStore(server.url, 60, patience=30))
    kept = {bytes([number]): (Started(number), Delta(0, str(number), finish="stop")) for number in range(100)}
    for key, events in kept.items():
        await answers.put("a", key, events)
    for key, events in kept.items():
        hasty = asyncio.create_task(answers.find(bytes([(key[0] + 1) % 100])))
        for _ in range(key[0] % 5):  # cut off at another point each time
            await asyncio.sleep(0)
        hasty.cancel()
        assert await answers.find(key) in (events, None)
        assert await answers.find(key) in (events, None)
    assert await answers.find(b"\1") == kept[b"\1"]
    await answers.close()
