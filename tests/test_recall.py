"""Kept answers and those that many wait for, with a provider that says what a test tells it to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from openai_gateway.cache import REUSE, Answers, Reuse
from openai_gateway.errors import GatewayError, InvalidRequest, ModelFailed, SlowClient, WorkerDied
from openai_gateway.gateway import Gateway
from openai_gateway.observe.performance import Performance
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.types import (
    ChatRequest,
    Delta,
    Echo,
    Event,
    Message,
    ModelInfo,
    ModelSpec,
    Request,
    Sampling,
    Started,
)
from openai_gateway.worker.revision import revision

pytestmark = pytest.mark.anyio

NO_CACHE, NO_STORE = Reuse(read=False), Reuse(read=False, store=False)
ASKED = ChatRequest(model="m", messages=(Message("user", "hi"),), sampling=Sampling(temperature=0), owner="a")
SAID = (Started(7, 3), Delta(0, "he", tokens=1), Delta(0, "llo", tokens=2), Delta(0, tokens=1, finish="stop"))


class Scripted:
    """A provider that says `script`, an exception at its end included, as fast as `gate` lets it."""

    def __init__(self, spec: ModelSpec, _: Settings) -> None:
        self.script: tuple[Event | BaseException, ...] = SAID
        self.spec = spec
        self.gate = asyncio.Semaphore(1_000_000)
        self.begun = self.ended = self.cancelled = 0
        self.info: ModelInfo | None = None
        self.stats = None
        self.restarts = 0

    async def start(self, _: object) -> ModelInfo:
        try:
            files = revision(Path(self.spec.path), Path(self.spec.adapter) if self.spec.adapter else None)
        except OSError as error:
            raise ModelFailed("its files are not there") from error
        self.info = ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1, revision=files,
        )  # fmt: skip
        return self.info

    async def close(self) -> None:
        self.info = None

    async def generate(self, _: Request, __: object) -> AsyncGenerator[Event]:
        self.begun += 1
        try:
            for item in self.script:
                await self.gate.acquire()
                if isinstance(item, BaseException):
                    raise item
                yield item
            self.ended += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    def pause(self, after: int) -> None:
        """Say so many events more, and no further one until `go`."""
        self.gate = asyncio.Semaphore(after)

    def go(self) -> None:
        for _ in range(1000):
            self.gate.release()


class Scene:
    """A gateway of a model, whose folder is `folder`, with its provider, and of another one with the same files."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.answers = Answers(10**6, 60, shared=settings.pop("shared", False))
        self.providers: dict[str, Scripted] = {}
        self.performance = Performance()
        adapter = settings.pop("adapter", None)
        specs = [ModelSpec(id=id, path=str(folder), adapter=adapter) for id in ("m", "other")]
        self.registry = Registry(specs, Settings(**settings), find=lambda _: self._make)
        self.gateway = Gateway(self.registry, self.performance.watch, self.answers)

    def _make(self, spec: ModelSpec, settings: Settings) -> Scripted:
        provider = self.providers[spec.id] = Scripted(spec, settings)
        return provider

    @property
    def provider(self) -> Scripted:
        """Of the first model."""
        return self.providers["m"]

    async def ask(self, request: ChatRequest = ASKED, reuse: Reuse = REUSE, leave: int | None = None) -> list[Event]:
        """The events of a request; whoever is to leave does so after so many of them."""
        events: list[Event] = []
        async with aclosing(self.gateway.generate(request, reuse)) as generated:
            async for event in generated:
                events.append(event)
                if len(events) == leave:
                    break
        return events

    async def loaded(self) -> Scene:
        async with self.registry.lease("m"):
            return self


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    (tmp_path / "weights").write_bytes(b"1")
    return await Scene(tmp_path).loaded()


def text(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


def told(events: list[Event]) -> str:
    """What its headers say of the cache."""
    return next(event.answer for event in events if isinstance(event, Started))


async def settled() -> None:
    """Returns when whatever can go on has done so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_second_request_is_answered_with_what_the_first_got(scene: Scene) -> None:
    first, second = await scene.ask(), await scene.ask()
    assert (told(first), told(second)) == ("miss", "hit")
    assert second == [Started(7, 3, None, "hit"), Delta(0, "hello", tokens=4, finish="stop")]
    assert scene.provider.begun == 1


async def test_an_echoed_prompt_that_came_in_pieces_is_kept_in_pieces(scene: Scene) -> None:
    pieces = Echo("prompt", b"\x90"), Echo("", b"\x90")
    scene.provider.script = (Started(7), *pieces, Delta(0, "x", tokens=1, finish="stop"))
    assert await scene.ask() == [Started(7, answer="miss"), *pieces, Delta(0, "x", tokens=1, finish="stop")]
    assert await scene.ask() == [Started(7, answer="hit"), *pieces, Delta(0, "x", tokens=1, finish="stop")]


async def test_what_is_not_deterministic_is_neither_kept_nor_looked_for(scene: Scene) -> None:
    for sampling in (Sampling(), Sampling(temperature=0.7)):
        for _ in range(2):
            assert told(await scene.ask(replace(ASKED, sampling=sampling))) == "bypass"
    assert (scene.provider.begun, scene.answers.size) == (4, 0)


async def test_cache_control_is_respected(scene: Scene) -> None:
    assert told(await scene.ask(reuse=NO_STORE)) == "bypass"
    assert scene.answers.size == 0
    assert told(await scene.ask()) == "miss"
    assert told(await scene.ask(reuse=NO_STORE)) == "bypass"
    scene.provider.script = (Started(7), Delta(0, "new", finish="stop"))
    assert text(await scene.ask()) == "hello"
    refreshed = await scene.ask(reuse=NO_CACHE)
    assert (told(refreshed), text(refreshed)) == ("bypass", "new")
    assert text(await scene.ask()) == "new"


@pytest.mark.parametrize("kept", [True, False])
async def test_g19_another_owner_gets_a_miss_unless_sharing_is_on(tmp_path: Path, kept: bool) -> None:
    scene = await Scene(tmp_path, shared=kept).loaded()
    await scene.ask()
    assert told(await scene.ask(replace(ASKED, owner="b"))) == ("hit" if kept else "miss")
    assert scene.provider.begun == (1 if kept else 2)


@pytest.mark.parametrize(
    "script",
    [
        (Started(7), Delta(0, "he", finish="length")),
        (Started(7), Delta(0, "he"), WorkerDied("it is gone")),
        (InvalidRequest("no"),),
        (Started(7), Delta(0, "he")),
    ],
    ids=["truncated", "broken off", "refused", "unfinished"],
)
async def test_g21_what_is_no_complete_answer_is_not_kept(scene: Scene, script: tuple[Event, ...]) -> None:
    scene.provider.script = script
    for _ in range(2):
        with suppress(GatewayError):
            assert told(await scene.ask()) == "miss"
    assert (scene.provider.begun, scene.answers.size) == (2, 0)


async def test_g21_of_several_choices_one_that_is_missing_or_was_cut_off_spoils_the_answer(scene: Scene) -> None:
    asked = replace(ASKED, sampling=Sampling(temperature=0, n=2))
    first = Delta(0, "a", finish="stop")
    scene.provider.script = (Started(7), first)
    with pytest.raises(GatewayError):
        await scene.ask(asked)
    for other in (Delta(1, "b", finish="length"), Delta(1, "b", finish="tool_calls")):
        assert scene.answers.size == 0
        scene.provider.script = (Started(7), other, first)
        assert told(await scene.ask(asked)) == "miss"
    assert [event.content for event in await scene.ask(asked) if isinstance(event, Delta)] == ["a", "b"]


async def test_g21_an_answer_that_everybody_left_is_given_up_and_not_kept(scene: Scene) -> None:
    scene.provider.pause(2)
    assert len(await scene.ask(leave=2)) == 2
    await settled()
    assert (scene.provider.cancelled, scene.answers.size) == (1, 0)
    scene.provider.go()
    assert told(await scene.ask()) == "miss"


async def test_g22_a_hundred_that_ask_the_same_at_once_cost_one_generation(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.ask() for _ in range(100)))
    assert {text(events) for events in answers} == {"hello"}
    assert [told(events) for events in answers].count("miss") == 1
    assert scene.provider.begun == 1


async def test_g22_before_the_model_is_loaded_as_well(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    answers = await asyncio.gather(*(scene.ask() for _ in range(10)))
    assert [told(events) for events in answers].count("miss") == 1
    assert scene.provider.begun == 1
    assert told(await scene.ask()) == "hit"


async def test_g20_nor_is_one_model_answered_for_with_another(tmp_path: Path) -> None:
    """Of models that were never loaded nothing is known that tells them apart, but their entries."""
    scene = Scene(tmp_path)
    await asyncio.gather(scene.ask(), scene.ask(replace(ASKED, model="other")))
    assert [provider.begun for provider in scene.providers.values()] == [1, 1]


@pytest.mark.parametrize("after", [1, 2])
async def test_g22_when_the_first_one_leaves_the_others_are_still_answered(scene: Scene, after: int) -> None:
    scene.provider.pause(after)
    leader = asyncio.create_task(scene.ask())
    await settled()
    followers = [asyncio.create_task(scene.ask()) for _ in range(3)]
    await settled()
    leader.cancel()
    followers[1].cancel()
    await settled()
    scene.provider.go()
    assert [text(await followers[place]) for place in (0, 2)] == ["hello"] * 2
    assert (scene.provider.begun, scene.provider.cancelled) == (1, 0)
    assert told(await scene.ask()) == "hit"


async def test_g22_when_the_first_one_fails_so_do_those_who_wait_and_the_next_one_tries_again(scene: Scene) -> None:
    scene.provider.script = (Started(7), Delta(0, "he"), WorkerDied("it is gone"))
    results = await asyncio.gather(*(scene.ask() for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [WorkerDied] * 5
    assert scene.provider.begun == 1
    scene.provider.script = SAID
    assert text(await scene.ask()) == "hello"


async def test_who_comes_late_gets_all_of_it(scene: Scene) -> None:
    scene.provider.pause(3)
    early = asyncio.create_task(scene.ask())
    await settled()
    late = asyncio.create_task(scene.ask())
    await settled()
    scene.provider.go()
    assert await late == [Started(7, 3, None, "hit"), Delta(0, "hello", tokens=3), Delta(0, tokens=1, finish="stop")]
    assert text(await early) == "hello"


async def test_who_comes_late_is_not_given_up_for_what_was_there_before(tmp_path: Path) -> None:
    scene = await Scene(tmp_path, max_unread=1024).loaded()
    scene.provider.script = (Started(7), *(Delta(0, "x" * 100) for _ in range(50)), Delta(0, finish="stop"))
    scene.provider.pause(41)
    early = asyncio.create_task(scene.ask())
    await settled()
    async with aclosing(scene.gateway.generate(ASKED)) as late:
        events = [await anext(late)]
        scene.provider.gate.release()  # one more is said before it asks for the next
        await settled()
        scene.provider.go()
        events += [event async for event in late]
    assert text(events) == text(await early) == "x" * 5000


async def test_who_comes_when_the_last_one_has_just_left_gets_an_answer_of_its_own(scene: Scene) -> None:
    scene.provider.pause(2)
    first = asyncio.create_task(scene.ask())
    await settled()
    first.cancel()
    await asyncio.sleep(0)  # it has left, and its answer is being given up
    scene.provider.go()
    assert text(await scene.ask()) == "hello"


async def test_who_does_not_read_is_given_up_without_the_others(tmp_path: Path) -> None:
    scene = await Scene(tmp_path, max_unread=1024).loaded()
    piece = "x" * 100
    scene.provider.script = (Started(7), *(Delta(0, piece) for _ in range(50)), Delta(0, finish="stop"))
    scene.provider.pause(2)
    async with aclosing(scene.gateway.generate(ASKED)) as stalled:
        await anext(stalled)
        reader = asyncio.create_task(scene.ask())
        await settled()
        scene.provider.go()
        assert text(await reader) == piece * 50
        with pytest.raises(SlowClient):
            async for _ in stalled:
                pass


async def test_who_is_given_up_alone_still_gets_what_waits_and_is_told_why(tmp_path: Path) -> None:
    scene = await Scene(tmp_path, max_unread=1024).loaded()
    scene.provider.script = (Started(7), *(Delta(0, "x" * 100) for _ in range(50)), Delta(0, finish="stop"))
    scene.provider.pause(1)
    async with aclosing(scene.gateway.generate(ASKED)) as stalled:
        events = [await anext(stalled)]
        scene.provider.go()
        await settled()
        with pytest.raises(SlowClient):
            async for event in stalled:
                events.append(event)
    assert (told(events), len(text(events))) == ("miss", 1100)


async def test_an_urgent_request_does_not_wait_for_one_that_may_wait(scene: Scene) -> None:
    scene.provider.pause(1)
    asking = [asyncio.create_task(scene.ask(replace(ASKED, priority=priority))) for priority in (10, 0)]
    await settled()
    assert scene.provider.begun == 2
    scene.provider.go()
    assert [text(await task) for task in asking] == ["hello"] * 2


async def test_a_kept_answer_needs_no_model(scene: Scene) -> None:
    await scene.ask()
    await scene.registry.close()
    assert scene.registry.info("m") is None
    assert told(await scene.ask()) == "hit"
    assert scene.registry.info("m") is None


@pytest.mark.parametrize("loaded", [True, False])
async def test_other_files_of_a_model_have_other_answers(scene: Scene, tmp_path: Path, loaded: bool) -> None:
    await scene.ask()
    await scene.registry.close()
    os.utime(tmp_path / "weights", (1, 1))
    if loaded:
        await scene.loaded()
    assert told(await scene.ask()) == "miss"
    assert told(await scene.ask()) == "hit"


@pytest.mark.parametrize("gone", ["model", "adapter"])
async def test_a_model_whose_files_are_gone_is_a_miss_and_fails_when_it_is_loaded(tmp_path: Path, gone: str) -> None:
    folders = {name: tmp_path / name for name in ("model", "adapter")}
    for folder in folders.values():
        folder.mkdir()
    scene = await Scene(folders["model"], adapter=str(folders["adapter"])).loaded()
    await scene.ask()
    await scene.registry.unload("m")
    assert told(await scene.ask()) == "hit"
    folders[gone].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFailed):
        await scene.ask()


async def test_files_that_change_under_a_loaded_model_change_nothing_yet(scene: Scene, tmp_path: Path) -> None:
    await scene.ask()
    os.utime(tmp_path / "weights", (1, 1))
    assert told(await scene.ask()) == "hit"


async def asked_before_a_reload(folder: Path, *aliases: str) -> tuple[Scene, list[Event]]:
    """What the first model answers to a request that waits for it when a list without it is taken, in which another
    one has these aliases."""
    scene = await Scene(folder).loaded()
    first = scene.provider
    first.pause(0)
    asking = asyncio.create_task(scene.ask())
    await settled()
    others = (ModelSpec(id="other", path=str(folder), aliases=aliases), ModelSpec(id="third", path=str(folder)))
    await scene.registry.replace(others)  # two: as long as the first one answers it has one of so many places
    await scene.registry.load("other")
    first.go()
    return scene, await asking


async def test_what_one_model_said_is_not_kept_for_the_one_that_its_name_means_by_now(tmp_path: Path) -> None:
    scene, events = await asked_before_a_reload(tmp_path, "m")
    assert text(events) == "hello"
    scene.providers["other"].script = (Started(7), Delta(0, "I am another", finish="stop"))
    again = await scene.ask()
    assert (told(again), text(again)) == ("miss", "I am another")


async def test_a_model_that_is_taken_off_the_list_answers_what_it_has_begun(tmp_path: Path) -> None:
    scene, events = await asked_before_a_reload(tmp_path)
    assert text(events) == "hello"
    assert scene.answers.size == 0


async def test_what_was_asked_yesterday_is_not_kept_as_what_is_said_today(scene: Scene) -> None:
    scene.answers.today = lambda: date(2026, 1, 1)
    scene.provider.pause(0)
    asking = asyncio.create_task(scene.ask())
    await settled()
    scene.answers.today = lambda: date(2026, 1, 2)
    scene.provider.go()
    assert text(await asking) == "hello"
    assert told(await scene.ask()) == "miss"


async def test_answers_of_a_model_whose_files_nobody_knows_are_not_kept(scene: Scene) -> None:
    scene.provider.info = replace(await scene.provider.start(None), revision="")
    assert [told(await scene.ask()) for _ in range(2)] == ["miss", "miss"]


@pytest.fixture
def counted(scene: Scene) -> Iterator[list[tuple[str, int, int]]]:
    """Of each request that is over: what it was told, and the tokens that it is charged."""
    seen: list[tuple[str, int, int]] = []
    scene.performance.subscribe(lambda m: seen.append((m.answer, m.prompt_tokens, m.completion_tokens)))
    yield seen


async def test_tokens_are_counted_once_for_whoever_they_were_made_for(
    scene: Scene, counted: list[tuple[str, int, int]]
) -> None:
    await asyncio.gather(scene.ask(), scene.ask())
    await scene.ask()
    assert sorted(counted) == [("hit", 0, 0), ("hit", 0, 0), ("miss", 7, 4)]


async def test_whom_an_answer_is_counted_for_is_charged_for_what_it_leaves_unread_and_nobody_else(
    scene: Scene, counted: list[tuple[str, int, int]]
) -> None:
    """Else it would have left the others an answer that nobody paid for."""
    scene.provider.pause(1)
    stalls, leaves = scene.gateway.generate(ASKED), scene.gateway.generate(ASKED)
    await anext(stalls)
    await anext(leaves)
    reads = asyncio.create_task(scene.ask())
    await settled()
    scene.provider.go()
    await reads
    await leaves.aclose()
    await stalls.aclose()
    assert counted == [("hit", 0, 0), ("hit", 0, 0), ("miss", 7, 4)]


async def test_whoever_is_left_with_an_answer_is_charged_for_the_rest_of_it(
    scene: Scene, counted: list[tuple[str, int, int]]
) -> None:
    scene.provider.pause(2)
    first = asyncio.create_task(scene.ask())
    await settled()
    second = asyncio.create_task(scene.ask())
    await settled()
    first.cancel()
    await settled()
    scene.provider.go()
    assert told(await second) == "hit"
    assert counted == [("miss", 7, 1), ("miss", 7, 3)]


async def test_an_answer_too_long_to_be_remembered_is_still_answered(scene: Scene) -> None:
    scene.provider.script = (
        Started(7), *(Delta(0, "x" * 1000) for _ in range(200)), Delta(0, finish="stop"),
    )  # fmt: skip
    scene.provider.pause(150)
    first = asyncio.create_task(scene.ask())
    await settled()
    second = asyncio.create_task(scene.ask())  # nobody remembers how it began
    await settled()
    scene.provider.go()
    assert [len(text(await task)) for task in (first, second)] == [200_000] * 2
    assert (scene.provider.begun, scene.answers.size) == (2, 0)
