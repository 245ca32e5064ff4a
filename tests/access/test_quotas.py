"""Tokens: reserved when a request begins, settled when it has ended, however it does; a real gateway over a provider
that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from openai_gateway.access import ledgers, shared
from openai_gateway.access.estimate import estimate
from openai_gateway.access.keys import Key
from openai_gateway.access.ledgers import Charge, LocalLedgers, Reply
from openai_gateway.access.limits import SECOND
from openai_gateway.access.places import Places
from openai_gateway.access.quotas import Caller, Quotas
from openai_gateway.api.completions import Completions
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.cache import Answers
from openai_gateway.errors import GatewayError, ModelFailed, RateLimited, TokensLimited
from openai_gateway.gateway import Gateway
from openai_gateway.observe.performance import Performance
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.types import (
    ChatRequest,
    CompletionRequest,
    Defaults,
    Delta,
    Event,
    Limits,
    Message,
    ModelInfo,
    ModelSpec,
    Request,
    Sampling,
    Started,
    Stats,
    Tool,
)

pytestmark = pytest.mark.anyio

KEY = Key(id="key_a", name="a", shown="", permissions=("chat",), created=1.0)
TWELVE = {"model": "m", "prompt": ["5"] * 12, "max_tokens": 1000}


class Scripted:
    """Answers with as many tokens as the prompt says, one in each delta, and reads 10 for the prompt."""

    info: ModelInfo | None = None
    stats: Stats | None = None
    restarts = 0

    def __init__(self, *_: object) -> None: ...

    async def start(self, _: object) -> ModelInfo:
        self.info = ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1, revision="1",
        )  # fmt: skip
        return self.info

    async def generate(self, request: Request, _: object) -> AsyncGenerator[Event]:
        assert isinstance(request, CompletionRequest)
        tokens, _, fate = str(request.prompt).partition(" ")
        if fate == "refused":
            raise ModelFailed("no")
        if fate == "waits":
            yield Started(10, queued=True)
        yield Started(10)
        for number in range(int(tokens)):
            if fate == "fails" and number == 5:
                raise ModelFailed("no")
            yield Delta(0, "x", tokens=1, finish="stop" if number == int(tokens) - 1 else None)

    async def close(self) -> None: ...


class Distant(LocalLedgers):
    """As if they were far away: a reservation is made before its reply is there."""

    async def reserve(self, charges: Sequence[Charge]) -> Reply:
        await asyncio.sleep(0)
        reply = await super().reserve(charges)
        await asyncio.sleep(0)
        return reply


class Scene:
    """A gateway whose key may use 10,000 tokens a minute, of which 1000 are set aside for an answer at most."""

    def __init__(self, folder: Path, model: Limits = Limits(), **limits: int) -> None:  # noqa: B008
        self.now = 100 * 86_400 * SECOND
        self.quotas = Quotas(
            Distant(None, lambda: self.now),
            Places(folder / "limits.db"),
            defaults=Limits(**(limits or {"tokens_per_minute": 10_000})),
            token_reserve=1000,
        )
        registry = Registry([ModelSpec(id="m", path="m", limits=model)], Settings(), find=lambda _: Scripted)
        self.gateway = Gateway(registry, Performance().watch, Answers(10**6, 60), self.quotas.charge)

    async def ask(self, prompt: str, most: int, leave_after: int = 10**9, seed: int | None = None) -> None:
        """One request, of a client who leaves after so many events."""
        sampling = Sampling(max_tokens=most, seed=seed)
        request = CompletionRequest(model="m", prompt=prompt, sampling=sampling, owner=KEY.id)
        async with aclosing(self.gateway.generate(request)) as events:
            taken = 0
            async for _ in events:
                taken += 1
                if taken == leave_after:
                    break

    async def post(self, body: dict[str, Any]) -> httpx2.Response:
        """What a body of the key's is answered with."""
        route = Route("/", Completions(self.gateway, Settings()).create, methods=["POST"])
        app = Starlette(routes=[route], exception_handlers=EXCEPTION_HANDLERS)

        async def known(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": {"owner": KEY.id, "models": None}}, receive, send)

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(known), base_url="http://gateway") as http:
            return await http.post("/", json=body)

    async def left(self, caller: Caller) -> int:
        """Tokens that may be used now."""
        await asyncio.gather(*self.quotas._settling)
        await self.quotas.look(caller)
        return caller.standings["tokens"].remaining


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    await scene.quotas.close()


@pytest.fixture
def caller(scene: Scene) -> Iterator[Caller]:
    with scene.quotas.caller(KEY) as caller:
        assert caller is not None
        yield caller


async def test_g10_of_a_huge_reserve_what_a_small_answer_did_not_use_is_there_again(
    scene: Scene, caller: Caller
) -> None:
    for used in range(1, 20):
        await scene.ask("5", most=100_000)
        assert await scene.left(caller) == 10_000 - 15 * used


async def test_g11_a_stream_that_exceeds_its_reserve_leaves_a_debt_that_blocks_the_key(
    scene: Scene, caller: Caller
) -> None:
    await scene.ask("30000", most=100_000)
    assert await scene.left(caller) == 0
    with pytest.raises(TokensLimited, match="10000 tokens per minute, 101 requested") as caught:
        await scene.ask("5", most=100)
    assert caught.value.type == "tokens"
    assert int(caught.value.headers["retry-after"]) > 120
    scene.now += int(caught.value.headers["retry-after-ms"]) * 1000
    await scene.ask("5", most=100)


async def test_what_is_reserved_is_gone_while_it_runs(scene: Scene, caller: Caller) -> None:
    request = CompletionRequest(model="m", prompt="500", sampling=Sampling(max_tokens=600, n=1), owner=KEY.id)
    async with aclosing(scene.gateway.generate(request)) as events:
        await anext(events)
        assert await scene.left(caller) == 10_000 - 601
    assert await scene.left(caller) == 10_000 - 10


@pytest.mark.parametrize(
    ("prompt", "leave_after", "used"),
    [
        ("900", 8, 17),
        ("900 fails", 10**9, 15),
        ("900 refused", 10**9, 0),
        ("900", 1, 10),
        ("900 waits", 1, 0),
        ("900 waits", 2, 10),
        ("900 waits", 9, 17),
    ],
)
async def test_who_leaves_or_gets_an_error_pays_for_what_there_was(
    scene: Scene, caller: Caller, prompt: str, leave_after: int, used: int
) -> None:
    try:
        await scene.ask(prompt, 950, leave_after)
    except GatewayError as error:
        assert isinstance(error, ModelFailed)
    assert await scene.left(caller) == 10_000 - used


async def test_what_cannot_be_settled_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.0)
    monkeypatch.setattr(ledgers, "PAUSE", 0.0)
    file = tmp_path / "limits.db"
    quotas = Quotas(LocalLedgers(file), Places(file), defaults=Limits(tokens_per_minute=100))
    asked = CompletionRequest(model="m", prompt="x", owner=KEY.id)
    with quotas.caller(KEY), contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        async with quotas.charge(ModelSpec(id="m", path="m"), [asked]):
            other.execute("BEGIN IMMEDIATE")
        await asyncio.gather(*quotas._settling)
    (record,) = caplog.records
    assert "database is locked; tokens stay reserved until their time is over" in record.getMessage()
    await quotas.close()


async def test_who_is_cancelled_keeps_nothing_reserved(scene: Scene, caller: Caller) -> None:
    for turns in range(12):
        task = asyncio.create_task(scene.ask("0", most=900))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert await scene.left(caller) >= 10_000 - 12 * 10


async def test_g50_an_answer_out_of_the_cache_is_not_paid_for_twice(scene: Scene, caller: Caller) -> None:
    for _ in range(3):
        await scene.ask("90", most=200, seed=1)
        assert await scene.left(caller) == 10_000 - 100
    # Nor is one that is generated for somebody else who asks the same just now.
    await asyncio.gather(*(scene.ask("80", most=200, seed=2) for _ in range(3)))
    assert await scene.left(caller) == 10_000 - 100 - 90


async def test_b2_every_choice_is_reserved_for(scene: Scene, caller: Caller) -> None:
    await scene.ask("4990", most=1000)
    request = CompletionRequest(model="m", prompt="1", sampling=Sampling(max_tokens=900, n=6), owner=KEY.id)
    with pytest.raises(TokensLimited, match="5401 requested"):
        await anext(scene.gateway.generate(request))


def prompts(*prompts: str, **sampling: Any) -> list[Request]:
    """The requests of one body."""
    most = Sampling(max_tokens=1000, **sampling)
    return [CompletionRequest(model="m", prompt=prompt, sampling=most, owner=KEY.id) for prompt in prompts]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompts_of_a_body_are_one_request_whose_tokens_are_reserved_at_once(
    tmp_path: Path, stream: bool
) -> None:
    """Each by itself they would take 12,000 tokens, twelve places, and twelve requests."""
    scene = Scene(tmp_path, model=Limits(concurrency=1, burst=1, requests_per_minute=1), tokens_per_minute=10_000)
    with scene.quotas.caller(KEY) as caller:
        assert caller is not None
        assert (await scene.post({**TWELVE, "stream": stream})).status_code == 200
        assert await scene.left(caller) == 10_000 - 12 * 15
        assert (await scene.post(TWELVE)).status_code == 429
    await scene.quotas.close()


async def test_prompts_that_do_not_fit_together_are_refused_before_any_is_answered_and_fit_later(
    scene: Scene, caller: Caller
) -> None:
    await scene.ask("30", most=30)
    refusal = await scene.post(TWELVE)  # for all that there is in a minute
    assert (refusal.status_code, refusal.json()["error"]["type"]) == (429, "tokens")
    assert "10000 requested" in refusal.json()["error"]["message"]
    assert await scene.left(caller) == 10_000 - 40
    scene.now += int(refusal.headers["retry-after-ms"]) * 1000
    assert (await scene.post(TWELVE)).status_code == 200


async def test_of_several_prompts_the_reserve_is_held_until_the_last_one_has_ended(
    scene: Scene, caller: Caller
) -> None:
    first, second = scene.gateway.generate_all(prompts("100", "200"))
    async with aclosing(first), aclosing(second):
        await asyncio.gather(anext(first), anext(second))
        assert await scene.left(caller) == 10_000 - 2 * 1001
        await first.aclose()
        assert await scene.left(caller) == 10_000 - 2 * 1001
    assert await scene.left(caller) == 10_000 - 2 * 10


async def test_who_comes_first_of_several_prompts_may_leave_before_their_tokens_are_reserved(
    scene: Scene, caller: Caller
) -> None:
    for turns in range(6):
        first, second = (asyncio.ensure_future(anext(e)) for e in scene.gateway.generate_all(prompts("100", "200")))
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        assert await second == Started(10, answer="bypass")


async def test_prompts_that_are_answered_out_of_the_cache_are_not_reserved_for(scene: Scene, caller: Caller) -> None:
    await scene.ask("90", most=1000, seed=1)
    kept, new = scene.gateway.generate_all(prompts("90", "80", seed=1))
    async with aclosing(kept), aclosing(new):
        await asyncio.gather(anext(kept), anext(new))
        assert await scene.left(caller) == 10_000 - 100 - 1001


async def test_a_model_has_limits_for_everybody_together(tmp_path: Path) -> None:
    scene = Scene(tmp_path, model=Limits(requests_per_minute=2, tokens_per_minute=500))
    with scene.quotas.caller(KEY) as caller:
        await scene.ask("1", most=10)
        assert caller is not None
        assert caller.standings["tokens"].limit == 10_000  # what all may do with a model is not told to each
        with pytest.raises(TokensLimited, match="the model `m`: 500 tokens per minute"):
            await scene.ask("1", most=490)
        await scene.ask("1", most=10)
        with pytest.raises(RateLimited, match="the model `m`: 2 requests per minute"):
            await scene.ask("1", most=10)
    await scene.quotas.close()


async def test_so_many_requests_of_a_model_are_in_progress(tmp_path: Path) -> None:
    scene = Scene(tmp_path, model=Limits(concurrency=1))
    async with aclosing(scene.gateway.generate(CompletionRequest(model="m", prompt="9"))) as events:
        await anext(events)
        with pytest.raises(RateLimited, match="the model `m`: 1 requests in progress"):
            await scene.ask("1", most=10)
    await scene.ask("1", most=10)  # at once: when an answer is over, it is not in progress any more
    await scene.quotas.close()


async def test_without_limits_nothing_is_counted_and_nothing_opened(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.ask("5", most=10)
    assert not (tmp_path / "limits.db").exists()
    assert not scene.quotas._settling


def test_an_estimate_counts_everything_that_a_prompt_is_made_of() -> None:
    spec = ModelSpec(id="m", path="m", defaults=Defaults(max_tokens=50))
    chat = ChatRequest(
        model="m", messages=(Message("user", "x" * 400), Message("assistant", "y" * 400, reasoning="z" * 40)),
        sampling=Sampling(n=3), tools=(Tool(name="f", description="d" * 100, parameters="{}" * 30),),
    )  # fmt: skip
    assert estimate(chat, spec, 1024) == (400 + 400 + 40 + 100 + 60) // 4 + 3 * 4 + 3 * 50
    tokens = CompletionRequest(model="m", prompt=(1, 2, 3), sampling=Sampling(max_tokens=0))
    assert estimate(tokens, spec, 1024) == 3
    text = CompletionRequest(model="m", prompt="x" * 40, suffix="y" * 8)
    assert estimate(text, ModelSpec(id="m", path="m"), 1024) == 13 + 1024
