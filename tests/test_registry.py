"""Loading, lending and unloading, with providers that only count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields, replace

from openai_gateway.errors import Conflict, ModelFailed, ModelNotFound, Unavailable
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.slots import Slot
from openai_gateway.types import Defaults, Event, Limits, ModelInfo, ModelSpec, Request, Share
from openai_gateway.worker import memory

pytestmark = pytest.mark.anyio

GB = 10**9


class Counting:
    """A provider that loads in a moment and remembers what was done with it."""

    log: list[str]
    loaded: set[str]
    alive = most = limit = promised = most_promised = 0
    closing = 0.01
    """Seconds that unloading takes."""

    def __init__(self, spec: ModelSpec, _: Settings) -> None:
        self.spec = spec
        self.info: ModelInfo | None = None

    async def start(self, share: Callable[[], Awaitable[Share]]) -> ModelInfo:
        if self.spec.path == "far away":
            await asyncio.sleep(3600)
        given = await share()
        await asyncio.sleep(0.01)
        if self.spec.path == "broken":
            raise ModelFailed("it is broken")
        if given.small or self.spec.path.isdigit():  # gigabytes of weights
            self.limit = memory.budget("auto", given.small or int(self.spec.path) * GB, given).limit
            type(self).promised += self.limit
            type(self).most_promised = max(self.most_promised, self.promised)
        self.log.append(f"+{self.spec.id}")
        self.loaded.add(self.spec.id)
        type(self).alive += 1
        type(self).most = max(self.most, self.alive)
        self.info = ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1, memory_limit=self.limit, revision="files",
        )  # fmt: skip
        return self.info

    async def close(self) -> None:
        await asyncio.sleep(self.closing)
        self.log.append(f"-{self.spec.id}")
        self.loaded.discard(self.spec.id)
        type(self).alive -= 1
        type(self).promised -= self.limit

    async def generate(self, _: Request, __: object) -> AsyncGenerator[Event]:
        raise NotImplementedError
        yield


def registry(*specs: ModelSpec, **settings: Any) -> tuple[Registry, type[Counting]]:
    """A registry of these models, and the class that counts for it."""
    counting = type("Fresh", (Counting,), {"log": [], "loaded": set()})
    return Registry(specs, Settings(**settings), find=lambda _: counting), counting


def spec(id: str, **fields: Any) -> ModelSpec:
    """A model that has nothing special."""
    return ModelSpec(id=id, path=fields.pop("path", id), **fields)


async def use(models: Registry, name: str, seconds: float = 0) -> None:
    """Hold a lease for a while."""
    async with models.lease(name):
        await asyncio.sleep(seconds)


async def test_g35_ten_first_requests_at_once_load_a_model_once() -> None:
    models, seen = registry(spec("a"))
    await asyncio.gather(*(use(models, "a", 0.01) for _ in range(10)))
    assert seen.log == ["+a"]


async def test_a_model_that_is_still_downloaded_holds_up_no_other() -> None:
    models, seen = registry(spec("a", path="far away"), spec("b"), spec("c", path="broken"), max_loaded_models=3)
    downloading = asyncio.create_task(use(models, "a"))
    async with asyncio.timeout(5):
        await use(models, "b")
        with pytest.raises(ModelFailed):
            await use(models, "c")
    assert seen.log == ["+b"]
    downloading.cancel()
    await models.close()


async def test_the_least_recently_used_model_makes_room() -> None:
    models, seen = registry(spec("a"), spec("b"), spec("c"), max_loaded_models=2)
    for name in ("a", "b", "a", "c"):
        await use(models, name)
    assert seen.log == ["+a", "+b", "-b", "+c"]
    assert seen.loaded == {"a", "c"}


async def test_g35_a_leased_model_is_not_unloaded_and_the_newcomer_waits_for_it() -> None:
    models, seen = registry(spec("a"), spec("b"), max_loaded_models=1)
    async with models.lease("a"):
        waiting = asyncio.create_task(use(models, "b"))
        await asyncio.sleep(0.05)
        assert seen.log == ["+a"]
    await waiting
    assert seen.log == ["+a", "-a", "+b"]


async def test_several_models_that_wait_for_one_place_all_get_it() -> None:
    models, seen = registry(*(spec(name) for name in "abcd"), max_loaded_models=1)
    async with asyncio.timeout(5):
        await asyncio.gather(*(use(models, name, 0.01) for name in "abcdabcd"))
    assert len(seen.loaded) == 1


async def test_never_more_than_the_allowed_number_of_models_is_loaded() -> None:
    models, seen = registry(*(spec(name, idle_timeout=0.02) for name in "abcde"), max_loaded_models=2)
    async with asyncio.timeout(10):
        for _ in range(5):
            await asyncio.gather(*(use(models, name, 0.002) for name in "abcdeabcdeedcba"))
            await asyncio.sleep(0.022)  # into the midst of the unloading
    assert seen.most == 2


async def test_a_request_that_comes_while_its_model_is_unloaded_waits_for_that_and_no_longer() -> None:
    models, seen = registry(spec("a", idle_timeout=0.01), spec("b"), max_loaded_models=1)
    seen.closing = 0.2
    async with asyncio.timeout(5):
        for name in ("a", "b"):
            await use(models, "a")
            await asyncio.sleep(0.05)  # the unloading has begun
            await use(models, name)
    assert seen.most == 1


async def test_a_model_is_idle_also_when_whoever_asked_for_it_left_while_it_was_loaded() -> None:
    models, seen = registry(spec("a", idle_timeout=0.02))
    asking = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(10):
        while seen.log != ["+a", "-a"]:
            await asyncio.sleep(0.01)


async def test_the_default_model_and_those_marked_are_preloaded_and_then_it_is_ready() -> None:
    models, seen = registry(spec("a"), spec("b"), spec("c", preload=True), max_loaded_models=3)
    loading = asyncio.create_task(models.preload())
    await asyncio.sleep(0)
    assert models.unready == "the models are being loaded"
    await loading
    assert seen.loaded == {"a", "c"}
    assert not models.unready


async def test_a_model_that_cannot_be_preloaded_says_why_until_it_can_and_does_not_stop_the_next() -> None:
    models, seen = registry(spec("a", path="broken"), spec("b", preload=True))
    await models.preload()
    assert (seen.loaded, models.unready) == ({"b"}, "a model cannot be loaded")
    models._slots[0].spec = spec("a")  # somebody has put the missing file there
    await use(models, "a")
    assert not models.unready


async def test_waiting_for_a_place_ends_with_a_clear_503() -> None:
    models, _ = registry(spec("a"), spec("b"), max_loaded_models=1, load_timeout=0.5)
    async with models.lease("a"):
        with pytest.raises(Unavailable, match="in use"):
            await use(models, "b")


async def test_a_model_that_fails_to_load_gives_its_place_back_and_is_tried_again() -> None:
    models, seen = registry(spec("a", path="broken"), spec("b"), max_loaded_models=1)
    for _ in range(2):
        with pytest.raises(ModelFailed):
            await use(models, "a")
    await use(models, "b")
    assert seen.log == ["+b"]


async def test_the_client_that_asked_first_may_leave_without_taking_the_model_from_the_others() -> None:
    models, seen = registry(spec("a"))
    first = asyncio.create_task(use(models, "a"))
    second = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert seen.log == ["+a"]


async def test_an_idle_model_is_unloaded_and_comes_back() -> None:
    models, seen = registry(spec("a", idle_timeout=0.5), spec("b"))
    await use(models, "a")
    await use(models, "b")
    slot = models._slots[0]
    assert slot.expiry is not None
    first = slot.expiry.when()
    await use(models, "a")  # starts the time anew
    assert slot.expiry.when() > first
    async with asyncio.timeout(30):
        while slot.resident:
            await asyncio.sleep(0.01)
    assert seen.log == ["+a", "+b", "-a"]
    await use(models, "a")
    assert seen.loaded == {"a", "b"}


async def test_closing_unloads_everything_also_what_is_being_loaded() -> None:
    models, seen = registry(spec("a"), spec("b"))
    await use(models, "a")
    loading = asyncio.create_task(use(models, "b"))
    await asyncio.sleep(0)
    await models.close()
    with pytest.raises(Unavailable):
        await loading
    assert seen.loaded == set()


async def test_models_are_found_by_id_alias_and_with_ollamas_tag() -> None:
    models, _ = registry(spec("a", aliases=("x/y",)), spec("b:latest"))
    assert [models.resolve(name).id for name in ("a", "x/y", "a:latest", "b:latest")] == ["a", "a", "a", "b:latest"]
    for name in ("c", "", "A", "/tmp"):
        with pytest.raises(ModelNotFound):
            models.resolve(name)


@pytest.mark.parametrize("ids", [("llama", "llama:latest"), ("llama:latest", "llama")])
async def test_a_model_that_has_the_tag_in_its_name_is_not_taken_for_the_one_without(ids: tuple[str, str]) -> None:
    models, _ = registry(*map(spec, ids))
    assert [models.resolve(name).id for name in ids] == list(ids)
    assert models.names(["llama"]) == {"llama"}
    assert models.names(["llama:latest"]) == {"llama:latest", "llama:latest:latest"}


async def test_the_names_of_a_model_are_those_that_requests_may_call_it() -> None:
    models, _ = registry(spec("a", aliases=("x",)), spec("b"))
    names = models.names(["x", "unknown"])
    assert names == {"a", "x", "a:latest", "x:latest"}
    assert {models.resolve(name).id for name in names} == {"a"}


async def test_a_pinned_model_is_not_unloaded_for_others_nor_for_being_idle() -> None:
    models, seen = registry(spec("a", idle_timeout=0.01), spec("b"), spec("c"), max_loaded_models=2)
    models.pin("a", True)
    for name in ("a", "b", "c"):
        await use(models, name)
    await asyncio.sleep(0.05)
    assert seen.loaded == {"a", "c"}
    models.pin("a", False)
    async with asyncio.timeout(5):
        while "a" in seen.loaded:
            await asyncio.sleep(0.01)


async def test_a_model_that_is_unpinned_has_one_time_to_be_idle() -> None:
    """An older one would end it early, in the middle of a later one."""
    models, _ = registry(spec("a", idle_timeout=1000))
    await use(models, "a")
    before = models._slots[0].expiry
    models.pin("a", False)
    assert before is not None
    assert before.cancelled()
    await models.close()


async def test_where_everything_is_pinned_the_next_model_is_refused_at_once() -> None:
    models, _ = registry(spec("a"), spec("b"), max_loaded_models=1)
    models.pin("a", True)
    await models.load("a")
    with pytest.raises(Unavailable, match="pinned"):
        await models.load("b")


async def test_a_model_is_unloaded_on_demand_but_not_while_it_is_used() -> None:
    models, seen = registry(spec("a"))
    async with models.lease("a"):
        with pytest.raises(Conflict):
            await models.unload("a")
    await models.unload("a")
    assert seen.log == ["+a", "-a"]
    assert [state.loaded for _, state in models.states()] == [False]


@pytest.mark.parametrize("asked", ["request", "preload"])
@pytest.mark.parametrize("given_up", ["unloaded", "dropped"])
async def test_a_load_that_nobody_wants_any_more_is_given_up_and_leaves_its_place(asked: str, given_up: str) -> None:
    models, seen = registry(spec("a", path="far away"), spec("b"), max_loaded_models=1)
    asking = asyncio.create_task(models.preload() if asked == "preload" else use(models, "a"))
    await asyncio.sleep(0.01)
    if asked == "request":
        asking.cancel()  # it may come back: nothing is given up yet
        await asyncio.wait([asking])
    assert [state.loading for _, state in models.states()] == [True, False]
    if given_up == "dropped":
        await models.replace([spec("b")])
    else:
        await models.unload("a")
    async with asyncio.timeout(5):
        await asyncio.wait([asking])
        await use(models, "b")
    assert (seen.loaded, models.unready, models._dropped) == ({"b"}, None, [])


async def test_a_load_that_somebody_waits_for_is_given_up_when_they_leave_and_its_entry_is_gone() -> None:
    models, seen = registry(spec("a", path="far away"), max_loaded_models=1)
    asking = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0.01)
    with pytest.raises(Conflict):
        await models.unload("a")
    await models.replace([spec("b")])
    waiting = asyncio.create_task(use(models, "b"))
    await asyncio.sleep(0.01)
    assert not (asking.done() or waiting.done())
    asking.cancel()
    async with asyncio.timeout(5):
        await waiting
    assert (seen.loaded, models._dropped) == ({"b"}, [])


async def test_who_comes_while_a_load_is_given_up_is_told_to_try_again() -> None:
    models, _ = registry(spec("a", path="far away"))
    first = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    unloading = asyncio.create_task(models.unload("a"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="unloaded"):
        await use(models, "a")
    await unloading


async def test_a_load_that_is_given_up_while_the_last_one_is_unloaded_leaves_that_its_place() -> None:
    models, seen = registry(spec("a"), spec("b"), max_loaded_models=1)
    seen.closing = 0.1
    await use(models, "a")
    unloading = asyncio.create_task(models.unload("a"))
    await asyncio.sleep(0.01)
    asking = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    giving_up = asyncio.create_task(models.unload("a"))
    await asyncio.sleep(0.01)
    await use(models, "b")
    assert seen.most == 1
    await asyncio.gather(unloading, giving_up)


async def test_a_dropped_model_whose_load_fails_is_forgotten() -> None:
    models, _ = registry(spec("a", path="broken"))
    asking = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0)
    await models.replace([spec("b")])
    with pytest.raises(ModelFailed):
        await asking
    assert models._dropped == []


async def test_a_restart_loads_anew_even_while_the_model_is_used() -> None:
    models, seen = registry(spec("a"))
    async with models.lease("a") as old:
        await models.restart("a")
        async with models.lease("a") as new:
            assert new is not old
    assert seen.log == ["+a", "-a", "+a"]


async def test_another_list_keeps_what_is_the_same_and_ends_the_rest_when_it_is_unused() -> None:
    models, seen = registry(spec("a"), spec("b"), spec("c"), max_loaded_models=3)
    for name in "abc":
        await use(models, name)
    async with models.lease("b"):
        await models.replace([spec("a"), spec("c", context_length=5), spec("d")])
        assert [found.id for found in models.specs] == ["a", "c", "d"]
        with pytest.raises(ModelNotFound):
            models.resolve("b")
        assert "b" in seen.loaded
        await use(models, "c")
    async with asyncio.timeout(5):
        while "b" in seen.loaded:
            await asyncio.sleep(0.01)
    assert [name for name in seen.log if name[1] == "a"] == ["+a"]
    assert [name for name in seen.log if name[1] == "c"] == ["+c", "-c", "+c"]
    await models.close()
    assert seen.alive == 0


async def test_a_dropped_model_holds_its_place_until_its_memory_is_free() -> None:
    models, seen = registry(spec("a"), max_loaded_models=1)
    async with models.lease("a"):
        await models.replace([spec("b")])
        waiting = asyncio.create_task(models.load("b"))
        await asyncio.sleep(0.05)
        assert seen.log == ["+a"]
    await waiting
    assert seen.log == ["+a", "-a", "+b"]
    assert seen.most == 1


async def test_a_dropped_model_is_pinned_no_longer_and_its_place_is_waited_for() -> None:
    models, seen = registry(spec("a"), max_loaded_models=1)
    models.pin("a", True)
    async with models.lease("a"):
        await models.replace([spec("a", context_length=5)])
        waiting = asyncio.create_task(models.load("a"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await waiting
    assert seen.log == ["+a", "-a", "+a"]


# Identity

CHANGES: dict[str, Any] = {
    "path": "elsewhere",
    "provider": "another",
    "revision": "main",
    "adapter": "adapter",
    "draft_model": "draft",
    "speculation": "none",
    "context_length": 9,
    "quantization": "q4",
    "cache_type": "quantized",
    "kv_bits": 8,
    "kv_group_size": 32,
    "tool_format": "json",
    "defaults": Defaults(temperature=0.5),
}
"""Another value for every field of an entry that can change an answer."""

WITHOUT_EFFECT: dict[str, Any] = {
    "id": "b",
    "aliases": ("b",),
    "idle_timeout": 9,
    "preload": True,
    "memory": GB,
    "limits": Limits(burst=9),
}


async def identity(entry: ModelSpec) -> bytes | None:
    models, _ = registry(entry)
    await use(models, entry.id)
    return models.identity(entry.id)


async def test_g20_a_model_is_another_one_when_its_entry_changes_what_it_answers_and_only_then() -> None:
    assert {field.name for field in fields(ModelSpec)} == {*CHANGES, *WITHOUT_EFFECT}
    same = {await identity(replace(spec("a"), **{name: value})) for name, value in WITHOUT_EFFECT.items()}
    assert same == {await identity(spec("a"))}
    others = {await identity(replace(spec("a"), **{name: value})) for name, value in CHANGES.items()}
    assert len(others - same) == len(CHANGES)


# Memory


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GB, 48 of which are for models; those of these tests have as many GB of weights as their paths say."""
    monkeypatch.setattr(memory, "machine", lambda: 64 * GB)
    monkeypatch.setattr(memory, "resident", lambda: None)
    monkeypatch.setattr(memory, "OWN", memory.SHARED)


@pytest.mark.usefixtures("machine")
async def test_the_only_model_may_use_all_of_the_memory_also_when_it_is_loaded_again() -> None:
    models, seen = registry(spec("a", path="12"), max_loaded_models=5)
    for _ in range(2):
        await use(models, "a")
        assert seen.promised == 48 * GB
        await models.unload("a")
        assert seen.promised == 0


@pytest.mark.usefixtures("machine")
async def test_models_that_fit_beside_each_other_stay_also_when_they_are_loaded_at_once() -> None:
    models, seen = registry(spec("a", path="12"), spec("b", path="18"), max_loaded_models=2)
    await asyncio.gather(use(models, "a"), use(models, "b"))
    assert seen.loaded == {"a", "b"}
    assert seen.promised == 48 * GB


@pytest.mark.usefixtures("machine")
async def test_a_model_with_no_memory_beside_others_waits_until_they_are_idle_and_takes_their_place() -> None:
    models, seen = registry(spec("a", path="1"), spec("b", path="1"), spec("c", path="30"), max_loaded_models=3)
    await use(models, "a")
    async with models.lease("b"):
        waiting = asyncio.create_task(use(models, "c"))
        await asyncio.sleep(0.1)
        assert seen.loaded == {"b"}
    await waiting
    assert seen.log == ["+a", "+b", "-a", "-b", "+c"]
    await use(models, "a")  # there is room for it beside the large one
    assert seen.loaded == {"a", "c"}


@pytest.mark.usefixtures("machine")
async def test_a_model_with_no_memory_beside_pinned_ones_is_refused_at_once() -> None:
    models, _ = registry(spec("a", path="20"), spec("b", path="30"), max_loaded_models=2)
    models.pin("a", True)
    await models.load("a")
    with pytest.raises(Unavailable, match="pinned"):
        await models.load("b")
    models.pin("a", False)
    await models.load("b")


@pytest.mark.usefixtures("machine")
async def test_models_are_never_promised_more_memory_than_there_is() -> None:
    sizes = {"a": "1", "b": "12", "c": "20", "d": "30", "e": "47"}
    models, seen = registry(*(spec(id, path=path) for id, path in list(sizes.items())[:1]), max_loaded_models=3)
    await use(models, "a")
    assert seen.promised == 48 * GB
    await models.replace([spec(id, path=path, idle_timeout=0.02) for id, path in sizes.items()])
    async with asyncio.timeout(10):
        for _ in range(4):
            await asyncio.gather(*(use(models, name, 0.002) for name in "abcdeabcdeedcba"))
            await asyncio.sleep(0.022)  # into the midst of the unloading
    assert seen.most_promised <= 48 * GB


def folder(path: Path, *sizes: int) -> str:
    """Of a model with weight files of so many bytes, which take no room on disk, and a file that is none."""
    path.mkdir()
    for number, size in enumerate((*sizes, 10**10)):
        with (path / (f"model-{number}.safetensors" if number < len(sizes) else "notes.bin")).open("wb") as file:
            file.truncate(size)
    return str(path)


async def test_a_small_model_and_a_large_one_leave_each_other_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine", lambda: 16 * 2**30)
    monkeypatch.setattr(memory, "resident", lambda: 11_453_251_584)
    demo, large = spec("demo", path=folder(tmp_path / "demo", 3_000_000, 1_000_000)), spec("large", path="12")
    models, seen = registry(large, demo, max_loaded_models=2)
    for name in ("large", "demo", "large", "demo"):
        await use(models, name)
    assert seen.log == ["+large", "+demo"]
    models, seen = registry(demo, large, max_loaded_models=2)
    for name in ("demo", "large", "demo", "large"):
        await use(models, name)
    assert seen.loaded == {"demo", "large"}


def shares(*specs: ModelSpec, loaded: Sequence[int] = (), most: int = 2) -> list[Share]:
    """What each would be given now; those that are loaded may use 10 GB."""
    slots = [Slot(each, limit=10 * GB if place in loaded else 0) for place, each in enumerate(specs)]
    given = [slot.share(slots, [other for other in slots if other is not slot and other.limit], Settings(
        max_loaded_models=most, workers=2)) for slot in slots]  # fmt: skip
    assert {share.processes for share in given} == {2}
    return given


def test_small_models_are_no_places_where_there_are_large_ones(tmp_path: Path) -> None:
    tiny = spec("tiny", path=folder(tmp_path / "tiny", 4))
    small = spec("small", path=folder(tmp_path / "small", 600_000_000, 399_999_999))
    large = spec("large", path=folder(tmp_path / "large", 600_000_000, 400_000_000))
    hub, empty = spec("hub", path="somebody/something"), spec("empty", path=folder(tmp_path / "empty"))

    def rows(given: list[Share]) -> list[tuple[int, int, tuple[int, ...]]]:
        return [(share.places, share.small, share.beside) for share in given]

    sizes = (999_999_999, 4)
    assert rows(shares(large, tiny)) == [(1, 0, (4,)), (1, 4, ())]
    assert rows(shares(tiny, small, hub)) == [(1, 4, ()), (1, sizes[0], ()), (1, 0, sizes[:1])]
    assert rows(shares(tiny, small, large, most=3))[2] == (1, 0, sizes)
    assert rows(shares(tiny, small, large, most=3, loaded=[0]))[2] == (1, 0, sizes[:1])
    assert rows(shares(tiny, large, loaded=[0]))[1] == (1, 0, ())
    assert rows(shares(tiny, large, hub, empty, most=3))[1:] == [(3, 0, (4,))] * 3
    assert rows(shares(tiny, large, hub, loaded=[0]))[1:] == [(2, 0, ())] * 2
    assert rows(shares(large, hub, tiny, loaded=[0]))[1] == (1, 0, ())
    # Nothing large, or nothing beside it: as any other.
    assert rows(shares(tiny)) == [(1, 0, ())]
    assert rows(shares(tiny, small)) == [(2, 0, ())] * 2
    assert rows(shares(tiny, large, most=1)) == [(1, 0, ())] * 2
