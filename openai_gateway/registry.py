"""Which models there are, which of them are loaded, and who is using them.

A lease keeps a model loaded. Beyond `max_loaded_models` the least recently used model without a lease makes room;
ten first requests at once load a model once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml
from msgspec.structs import replace

from openai_gateway import providers
from openai_gateway.errors import GatewayError, ModelNotFound, Unavailable
from openai_gateway.settings import Settings, SettingsError, memory_size
from openai_gateway.types import ModelInfo, ModelSpec, Provider

logger = logging.getLogger(__name__)

EMBEDDED = ModelSpec(id="gateway-demo", path=str(Path(__file__).parent / "demo"), aliases=("demo",))

LOADING = "The model is still being loaded; please try again later."
NO_ROOM = "Every model that may be loaded at once is in use; please try again."


def read_models(settings: Settings) -> list[ModelSpec]:
    """What there is to serve, the default model first. Raises `SettingsError` with what is wrong in models.yaml.

    Without a models.yaml that lists models there is the embedded one. `settings.model` goes first, and may be
    something else than an entry: a folder, or a hub id. Requests can only name what is in this list.
    """
    specs = _listed(settings.models_file) if settings.models_file is not None else []
    specs = specs or [EMBEDDED]
    names = [name for spec in specs for name in (spec.id, *spec.aliases)]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise SettingsError([f"models.yaml: {', '.join(sorted(doubled))} names more than one model"])
    if settings.model is None:
        return specs
    for spec in specs:
        if settings.model in (spec.id, *spec.aliases):
            return [spec, *(other for other in specs if other is not spec)]
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return [ModelSpec(id=folder.resolve().name, path=str(folder.resolve())), *specs]
    return [ModelSpec(id=settings.model, path=settings.model), *specs]


def _listed(file: Path) -> list[ModelSpec]:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    try:
        specs = msgspec.convert(content.get("models") or [], list[ModelSpec])
    except msgspec.ValidationError as error:
        raise SettingsError([f"{file}: {str(error).replace('$', 'models')}"]) from None
    return [_checked(spec, file) for spec in specs]


def _checked(spec: ModelSpec, file: Path) -> ModelSpec:
    if spec.cache_type == "standard" and (spec.kv_bits or spec.kv_group_size):
        raise SettingsError([f"{file}: {spec.id}: kv_bits and kv_group_size need `cache_type: quantized`"])
    try:
        memory = None if spec.memory is None else memory_size(spec.memory)
    except ValueError as error:
        raise SettingsError([f"{file}: {spec.id}: memory: {error}"]) from None
    return replace(
        spec,
        path=_located(spec.path, file.parent),
        adapter=spec.adapter and _located(spec.adapter, file.parent),
        draft_model=spec.draft_model and _located(spec.draft_model, file.parent),
        memory=memory,
    )


def _located(path: str, base: Path) -> str:
    """A folder beside models.yaml as a path, anything else as it is: a hub id."""
    folder = base / Path(path).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if path.startswith((".", "/", "~")):
        raise SettingsError([f"models.yaml: there is no folder {path}"])
    return path


@dataclass(slots=True, eq=False)
class Slot:
    """One model of the list, loaded or not."""

    spec: ModelSpec
    provider: Provider | None = None
    """Loaded, and able to answer."""
    loading: asyncio.Task[None] | None = None
    unloading: asyncio.Task[None] | None = None
    resident: bool = False
    """Has one of the `max_loaded_models` places, from before it is loaded until after it is unloaded."""
    leases: int = 0
    used: float = 0.0
    expiry: asyncio.TimerHandle | None = None
    awaited: bool = False
    """Is to be loaded at the start, and was not yet."""
    failure: str | None = None
    """Why it could not be loaded the last time."""


@dataclass(slots=True, eq=False)
class Registry:
    """Loads, lends and unloads models."""

    specs: Sequence[ModelSpec]
    settings: Settings
    find: Callable[[str], Callable[..., Provider]] = providers.find
    _slots: list[Slot] = field(init=False)
    _change: asyncio.Condition = field(init=False, default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        places = min(self.settings.max_loaded_models, len(self.specs))
        self.settings = self.settings.model_copy(update={"max_loaded_models": max(1, places)})
        self._slots = [Slot(spec, awaited=place == 0 or spec.preload) for place, spec in enumerate(self.specs)]

    def resolve(self, name: str) -> ModelSpec:
        """The model that a request means by `name`; Ollama's `:latest` may follow it. Raises `ModelNotFound`."""
        return self._slot(name).spec

    def info(self, name: str) -> ModelInfo | None:
        """What the model says of itself, while it is loaded."""
        provider = self._slot(name).provider
        return provider.info if provider else None

    def loaded(self) -> Iterator[tuple[ModelSpec, Provider]]:
        """The models that are loaded, with who answers for them."""
        return ((slot.spec, slot.provider) for slot in self._slots if slot.provider is not None)

    def created(self, spec: ModelSpec) -> int:
        """When the model's folder was last changed, in seconds of Unix time; 0 for a hub id."""
        folder = Path(spec.path)
        return int(folder.stat().st_mtime) if folder.is_dir() else 0

    def _slot(self, name: str) -> Slot:
        for slot in self._slots:
            if name.removesuffix(":latest") in (slot.spec.id, *slot.spec.aliases) or name == slot.spec.id:
                return slot
        raise ModelNotFound.named(name)

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Provider]:
        """The loaded model, for as long as the block runs. Raises `ModelNotFound`, `ModelFailed`, `Unavailable`."""
        slot = self._slot(name)
        slot.leases += 1
        if slot.expiry is not None:
            slot.expiry.cancel()
        try:
            yield slot.provider or await self._loaded(slot)
        finally:
            slot.leases -= 1
            slot.used = time.monotonic()
            if not slot.leases:
                await self._released(slot)

    async def preload(self) -> None:
        """Load the default model and those that models.yaml marks; one that fails does not stop the next."""
        for slot in [slot for slot in self._slots if slot.awaited]:
            try:
                async with self.lease(slot.spec.id):
                    pass
            except GatewayError as error:
                logger.error("%s", error.message)

    @property
    def unready(self) -> str | None:
        """Why requests should go elsewhere for now; None when they need not."""
        for slot in self._slots:
            if slot.awaited:
                return slot.failure or "the models are being loaded"
            if slot.provider is not None and slot.provider.info is None:
                return f"the worker of {slot.spec.id} is being started again"
        return None

    async def close(self) -> None:
        """Unload everything."""
        for slot in self._slots:
            if slot.loading is not None:
                slot.loading.cancel()
                await asyncio.wait([slot.loading])
        await asyncio.gather(*(self._unload(slot) for slot in self._slots))

    async def _loaded(self, slot: Slot) -> Provider:
        if slot.loading is None:
            slot.loading = asyncio.create_task(self._load(slot))
            slot.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # Whoever asked first may leave: others wait for the same model.
            await asyncio.wait_for(asyncio.shield(slot.loading), self.settings.load_timeout)
        except TimeoutError:
            raise Unavailable(LOADING if slot.resident else NO_ROOM) from None
        if slot.provider is None:
            raise Unavailable(f"The model `{slot.spec.id}` was unloaded; please try again.")
        return slot.provider

    async def _load(self, slot: Slot) -> None:
        try:
            if slot.unloading is not None:
                await asyncio.wait([slot.unloading])
            await self._make_room(slot)
            started = time.monotonic()
            provider = self.find(slot.spec.provider)(slot.spec, self.settings)
            await provider.start()
            slot.provider, slot.awaited, slot.failure = provider, False, None
            slot.used = time.monotonic()
            logger.info("loaded %s in %.1f s", slot.spec.id, slot.used - started)
        except Exception as error:
            slot.failure = error.message if isinstance(error, GatewayError) else "a model cannot be loaded"
            raise
        finally:
            slot.loading = None
            slot.resident = slot.provider is not None
            await self._released(slot)

    async def _make_room(self, slot: Slot) -> None:
        """Take one of the places, unloading what is idle; waits while all of them are in use."""
        try:
            async with asyncio.timeout(self.settings.load_timeout):
                while sum(s.resident for s in self._slots) >= self.settings.max_loaded_models:
                    idle = [s for s in self._slots if s.provider is not None and not s.leases]
                    if idle:
                        await self._unload(min(idle, key=lambda s: s.used))
                    else:
                        async with self._change:
                            await self._change.wait()
                slot.resident = True
        except TimeoutError:
            raise Unavailable(NO_ROOM) from None

    async def _changed(self) -> None:
        async with self._change:
            self._change.notify_all()

    async def _released(self, slot: Slot) -> None:
        timeout = self.settings.idle_timeout if slot.spec.idle_timeout is None else slot.spec.idle_timeout
        if timeout and slot.provider is not None and not slot.leases:
            slot.expiry = asyncio.get_running_loop().call_later(timeout, self._expire, slot)
        await self._changed()

    def _expire(self, slot: Slot) -> None:
        if not slot.leases:
            self._begin_unloading(slot)

    async def _unload(self, slot: Slot) -> None:
        self._begin_unloading(slot)
        if slot.unloading is not None:
            await asyncio.wait([slot.unloading])

    def _begin_unloading(self, slot: Slot) -> None:
        """From here on there is no provider to lend; its place is free when it has given its memory back."""
        provider, slot.provider = slot.provider, None
        if provider is not None:
            slot.unloading = asyncio.create_task(self._close(slot, provider))

    async def _close(self, slot: Slot, provider: Provider) -> None:
        try:
            await provider.close()
            logger.info("unloaded %s", slot.spec.id)
        finally:
            slot.unloading, slot.resident = None, False
            await self._changed()
