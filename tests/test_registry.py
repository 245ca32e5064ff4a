"""Loading, lending and unloading, with providers that only count; models.yaml and what may be wrong in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.errors import ModelFailed, ModelNotFound, Unavailable
from openai_gateway.registry import EMBEDDED, Registry, read_models
from openai_gateway.settings import Settings, SettingsError
from openai_gateway.types import Event, ModelInfo, ModelSpec, Request

pytestmark = pytest.mark.anyio


class Counting:
    """A provider that loads in a moment and remembers what was done with it."""

    log: list[str]
    loaded: set[str]
    alive = most = 0
    closing = 0.01
    """Seconds that unloading takes."""

    def __init__(self, spec: ModelSpec, _: Settings) -> None:
        self.spec = spec
        self.info: ModelInfo | None = None

    async def start(self) -> ModelInfo:
        await asyncio.sleep(0.01)
        if self.spec.path == "broken":
            raise ModelFailed("it is broken")
        self.log.append(f"+{self.spec.id}")
        self.loaded.add(self.spec.id)
        type(self).alive += 1
        type(self).most = max(self.most, self.alive)
        self.info = ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1,
        )  # fmt: skip
        return self.info

    async def close(self) -> None:
        await asyncio.sleep(self.closing)
        self.log.append(f"-{self.spec.id}")
        self.loaded.discard(self.spec.id)
        type(self).alive -= 1

    async def generate(self, _: Request) -> AsyncGenerator[Event]:
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


async def test_ten_first_requests_at_once_load_a_model_once() -> None:
    models, seen = registry(spec("a"))
    await asyncio.gather(*(use(models, "a", 0.01) for _ in range(10)))
    assert seen.log == ["+a"]


async def test_the_least_recently_used_model_makes_room() -> None:
    models, seen = registry(spec("a"), spec("b"), spec("c"), max_loaded_models=2)
    for name in ("a", "b", "a", "c"):
        await use(models, name)
    assert seen.log == ["+a", "+b", "-b", "+c"]
    assert seen.loaded == {"a", "c"}


async def test_a_leased_model_is_not_unloaded_and_the_newcomer_waits_for_it() -> None:
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
    await asyncio.sleep(0.15)
    assert seen.log == ["+a", "-a"]


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
    assert (seen.loaded, models.unready) == ({"b"}, "it is broken")
    models._slots[0].spec = spec("a")  # somebody has put the missing file there
    await use(models, "a")
    assert not models.unready


async def test_waiting_for_a_place_ends_with_a_clear_503() -> None:
    models, _ = registry(spec("a"), spec("b"), max_loaded_models=1, load_timeout=0.05)
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
    models, seen = registry(spec("a", idle_timeout=0.05), spec("b"))
    await use(models, "a")
    await use(models, "b")
    await asyncio.sleep(0.02)
    await use(models, "a")  # starts the time anew
    await asyncio.sleep(0.04)
    assert seen.log == ["+a", "+b"]
    await asyncio.sleep(0.08)
    assert seen.log == ["+a", "+b", "-a"]
    await use(models, "a")
    assert seen.loaded == {"a", "b"}


async def test_closing_unloads_everything_also_what_is_being_loaded() -> None:
    models, seen = registry(spec("a"), spec("b"))
    await use(models, "a")
    loading = asyncio.create_task(use(models, "b"))
    await asyncio.sleep(0)
    await models.close()
    await asyncio.wait([loading])
    assert seen.loaded == set()


async def test_models_are_found_by_id_alias_and_with_ollamas_tag() -> None:
    models, _ = registry(spec("a", aliases=("x/y",)), spec("b:latest"))
    assert [models.resolve(name).id for name in ("a", "x/y", "a:latest", "b:latest")] == ["a", "a", "a", "b:latest"]
    for name in ("c", "", "A", "/tmp"):
        with pytest.raises(ModelNotFound):
            models.resolve(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a model's folder in it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(folder: Path, models: str, **settings: Any) -> list[ModelSpec]:
    """What a models.yaml with these lines gives."""
    (folder / "models.yaml").write_text(models)
    return read_models(Settings(**settings))


async def test_without_a_list_there_is_the_embedded_model(folder: Path) -> None:
    assert read_models(Settings()) == [EMBEDDED]
    assert listed(folder, "gateway: {port: 1}") == [EMBEDDED]
    assert Path(EMBEDDED.path, "config.json").exists()


async def test_folders_are_found_beside_models_yaml_and_other_paths_are_hub_ids(folder: Path) -> None:
    a, b = listed(folder, "models: [{id: a, path: mine}, {id: b, path: org/name, revision: v1, defaults: {top_k: 3}}]")
    assert a.path == str(folder / "mine")
    assert (b.path, b.revision, b.defaults.top_k) == ("org/name", "v1", 3)


async def test_the_model_setting_comes_first_whatever_it_names(folder: Path) -> None:
    lines = "models: [{id: a, path: mine}, {id: b, path: mine, aliases: [bee]}]"
    assert [s.id for s in listed(folder, lines, model="bee")] == ["b", "a"]
    assert [s.id for s in listed(folder, lines, model="./mine")] == ["mine", "a", "b"]
    hub = listed(folder, lines, model="mlx-community/gpt-oss-20b-MXFP4-Q8")[0]
    assert hub.id == hub.path == "mlx-community/gpt-oss-20b-MXFP4-Q8"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("models: [{id: a}]", "path"),
        ("models: [{id: a, path: mine, tempperature: 1}]", "tempperature"),
        ("models: [{id: a, path: mine, defaults: {temperature: 9}}]", "temperature"),
        ("models: [{id: a, path: mine, context_length: many}]", "context_length"),
        ("models: [{id: a, path: mine}, {id: b, path: mine, aliases: [a]}]", "a names more than one model"),
        ("models: [{id: a, path: ./elsewhere}]", "there is no folder ./elsewhere"),
        ("models: {a: mine}", "models"),
        ("models: [{id: a, path: mine, adapter: ./none}]", "there is no folder ./none"),
    ],
)
async def test_what_is_wrong_in_models_yaml_is_said(folder: Path, lines: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        listed(folder, lines)


async def test_there_are_no_more_places_than_models() -> None:
    models, _ = registry(spec("a"), max_loaded_models=5)
    assert models.settings.max_loaded_models == 1


@pytest.mark.parametrize(("written", "bytes"), [("12GB", 12 * 10**9), ("4096", 4096), ("auto", "auto")])
async def test_the_memory_of_an_entry_is_a_size(tmp_path: Path, written: str, bytes: object) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models: [{{id: a, path: org/a, memory: {written}}}]")
    (entry,) = read_models(Settings(models_file=file))
    assert entry.memory == bytes


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("memory: much", "a: memory: a size is `auto` or a number of bytes"),
        ("kv_bits: 4", "a: kv_bits and kv_group_size need `cache_type: quantized`"),
        ("kv_group_size: 32", "a: kv_bits and kv_group_size need `cache_type: quantized`"),
        ("cache_type: quantized, kv_bits: 3", "Invalid enum value 3"),
        ("quantization: q2", "Invalid enum value 'q2'"),
    ],
)
async def test_what_cannot_be_done_with_memory_is_an_error(tmp_path: Path, fields: str, problem: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models: [{{id: a, path: org/a, {fields}}}]")
    with pytest.raises(SettingsError) as caught:
        read_models(Settings(models_file=file))
    assert problem in str(caught.value)
