"""Which models there are, which of them are loaded, and who is using them.

A lease keeps a model loaded. Where `max_loaded_models` are, or those that are leave no memory for another, the least
recently used one without a lease makes room. Models are downloaded beside each other and loaded one after the other,
and ten first requests at once load a model once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from openai_gateway import providers
from openai_gateway.errors import Conflict, Crowded, GatewayError, ModelNotFound, Unavailable
from openai_gateway.settings import Settings
from openai_gateway.slots import Slot, State
from openai_gateway.types import Limits, ModelInfo, ModelSpec, Provider, Share
from openai_gateway.worker.revision import revision

logger = logging.getLogger(__name__)

LOADING = "The model is still being loaded; please try again later."
ALL_PINNED = "Every model that may be loaded at once is pinned."
NO_ROOM = "Every model that may be loaded at once is in use; please try again."


def _revision(spec: ModelSpec, last: str) -> str:
    """Of a model's folder, whose path is absolute, as it is now, empty where it cannot be read; the `last` known one of
    a hub id, whose folder only its worker finds."""
    folder = Path(spec.path)
    try:
        return revision(folder, Path(spec.adapter) if spec.adapter else None) if folder.is_absolute() else last
    except OSError:
        return ""


def _answering(spec: ModelSpec) -> ModelSpec:
    """What of an entry can change an answer. `memory` does so only by the quantization that comes of it."""
    return msgspec.structs.replace(
        spec, id="", aliases=(), idle_timeout=None, preload=False, memory=None, limits=Limits()
    )


@dataclass(slots=True, eq=False)
class Registry:
    """Loads, lends and unloads models."""

    specs: Sequence[ModelSpec]
    settings: Settings
    find: Callable[[str], Callable[..., Provider]] = providers.find
    _slots: list[Slot] = field(init=False)
    _dropped: list[Slot] = field(init=False, default_factory=list)
    _change: asyncio.Condition = field(init=False, default_factory=asyncio.Condition)
    _starting: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._slots = [Slot(spec, awaited=place == 0 or spec.preload) for place, spec in enumerate(self.specs)]

    async def replace(self, specs: Sequence[ModelSpec]) -> None:
        """Serve another list. What has the same entry stays as it is; what is gone answers its last requests."""
        kept = {slot.spec.id: slot for slot in self._slots if slot.spec in specs}
        gone = [slot for slot in self._slots if slot.spec.id not in kept]
        self.specs = specs
        self._slots = [kept.get(spec.id) or Slot(spec) for spec in specs]
        self._dropped += gone
        for slot in gone:
            slot.dropped, slot.pinned = True, False
            await self._released(slot)

    def resolve(self, name: str) -> ModelSpec:
        """The model that a request means by `name`; Ollama's `:latest` may follow it. Raises `ModelNotFound`."""
        return self._slot(name).spec

    def names(self, models: Iterable[str]) -> frozenset[str]:
        """Everything that requests may call those that are meant by `models`, which may name what there is not."""
        wanted = set(models)
        named = [(spec.id, *spec.aliases) for spec in self.specs]
        found = {name for names in named if not wanted.isdisjoint(names) for name in names}
        return frozenset(found | {f"{name}:latest" for name in found}.difference(*named))

    def info(self, name: str) -> ModelInfo | None:
        """What the model says of itself, while it is loaded."""
        provider = self._slot(name).provider
        return provider.info if provider else None

    def identity(self, name: str) -> bytes | None:
        """What tells a model's answers from those of another one, or of other files of it; None where nobody knows."""
        slot = self._slot(name)
        info = slot.provider.info if slot.provider else None
        known = slot.known = info or slot.known
        if known is None or not known.revision:
            return None
        files = known.revision if info else _revision(slot.spec, known.revision)
        return msgspec.msgpack.encode((_answering(slot.spec), files, known.quantization)) if files else None

    def loaded(self) -> Iterator[tuple[ModelSpec, Provider]]:
        """The models that are loaded, with who answers for them."""
        return ((slot.spec, slot.provider) for slot in self._slots if slot.provider is not None)

    def created(self, spec: ModelSpec) -> int:
        """When the model's folder was last changed, in seconds of Unix time; 0 for a hub id."""
        folder = Path(spec.path)
        return int(folder.stat().st_mtime) if folder.is_dir() else 0

    def _slot(self, name: str) -> Slot:
        for meant in (name, name.removesuffix(":latest")):
            for slot in self._slots:
                if meant in (slot.spec.id, *slot.spec.aliases):
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

    async def load(self, name: str) -> None:
        """Load a model now. Raises what `lease` raises."""
        async with self.lease(name):
            pass

    async def unload(self, name: str) -> None:
        """Unload a model, or load it no further. Raises `Conflict` while requests use it, or wait for it."""
        slot = self._slot(name)
        if slot.leases:
            raise Conflict(f"{slot.leases} requests use `{slot.spec.id}` or wait for it; try again when they are done.")
        slot.pinned = slot.awaited = False
        await self._unload(slot)

    async def restart(self, name: str) -> None:
        """Load a model anew, in a new process; requests that it was answering fail with `Unavailable`."""
        slot = self._slot(name)
        if slot.loading is None:
            await self._unload(slot)
        await self.load(name)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep a model in memory once it is loaded, or let it go again when others need the room."""
        slot = self._slot(name)
        slot.pinned = pinned
        if not pinned and not slot.leases:
            self._await_expiry(slot)

    def states(self) -> Iterator[tuple[ModelSpec, State]]:
        """How each model of the list is doing."""
        for slot in self._slots:
            yield slot.spec, State(slot.provider is not None, slot.loading is not None, slot.leases, slot.pinned)

    async def preload(self) -> None:
        """Load the default model and those that models.yaml marks; one that fails does not stop the next."""
        for slot in [slot for slot in self._slots if slot.awaited]:
            try:
                if not (slot.provider or slot.dropped):
                    await self._loaded(slot)  # without a lease, so that it ends where the model is not wanted any more
            except GatewayError as error:
                logger.error("%s", error.message)

    @property
    def unready(self) -> str | None:
        """Why requests should go elsewhere for now; None when they need not. Anyone may read it: it names no model."""
        for slot in self._slots:
            if slot.awaited:
                return "a model cannot be loaded" if slot.failed else "the models are being loaded"
            if slot.provider is not None and slot.provider.info is None:
                return "a model's worker is being started again"
        return None

    async def close(self) -> None:
        """Unload everything."""
        await asyncio.gather(*(self._unload(slot) for slot in (*self._slots, *self._dropped)))

    async def _loaded(self, slot: Slot) -> Provider:
        if (loading := slot.loading) is None:
            loading = slot.loading = asyncio.create_task(self._load(slot))
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Whoever asked first may leave: it goes on, for others who wait for the same model or come back.
        await asyncio.wait([loading], timeout=self.settings.load_timeout)
        if not loading.done():
            raise Unavailable(LOADING if slot.resident else NO_ROOM)
        if not loading.cancelled():
            loading.result()
        if slot.provider is None:
            raise Unavailable(f"The model `{slot.spec.id}` was unloaded; please try again.")
        return slot.provider

    async def _load(self, slot: Slot) -> None:
        try:
            if slot.unloading is not None:
                await asyncio.wait([slot.unloading])
            await self._make_room(slot, lambda: len(self._others(slot)) < self.settings.max_loaded_models)
            slot.resident = True
            started = time.monotonic()
            slot.provider, slot.awaited, slot.failed = await self._started(slot), False, False
            slot.used = time.monotonic()
            logger.info("loaded %s in %.1f s", slot.spec.id, slot.used - started)
        except Exception:
            slot.failed = True
            raise
        finally:
            slot.loading = None
            slot.resident = slot.provider is not None or slot.unloading is not None
            await self._released(slot)

    async def _started(self, slot: Slot) -> Provider:
        """A provider that can answer. From when its files are here it is the only one: what it takes is not there for
        the next."""
        async with contextlib.AsyncExitStack() as turn:
            shares: list[Share] = []

            async def share() -> Share:
                if not shares:
                    await turn.enter_async_context(self._starting)
                shares.append(self._share(slot))
                return shares[-1]

            while True:
                provider = self.find(slot.spec.provider)(slot.spec, self.settings)
                try:
                    slot.limit = (await provider.start(share)).memory_limit
                    return provider
                except Crowded:
                    await self._make_room(slot, lambda: self._share(slot).taken < shares[-1].taken)

    def _share(self, slot: Slot) -> Share:
        return slot.share(self._slots, self._others(slot), self.settings)

    async def _make_room(self, slot: Slot, enough: Callable[[], bool]) -> None:
        """Unload what is idle until there is room for `slot`; waits while all is in use."""
        try:
            async with asyncio.timeout(self.settings.load_timeout):
                while not enough():
                    others = self._others(slot)
                    if all(s.pinned for s in others):
                        raise Unavailable(ALL_PINNED)
                    idle = [s for s in others if s.provider is not None and not (s.leases or s.pinned)]
                    if idle and not any(s.unloading for s in others):  # those make room anyway
                        await self._unload(min(idle, key=lambda s: s.used))
                    else:
                        async with self._change:
                            await self._change.wait()
        except TimeoutError:
            raise Unavailable(NO_ROOM) from None

    def _others(self, slot: Slot) -> list[Slot]:
        """Those that have a place, or hold memory."""
        return [other for other in (*self._slots, *self._dropped) if other.resident and other is not slot]

    async def _changed(self) -> None:
        self._dropped = [slot for slot in self._dropped if slot.resident or slot.loading or slot.leases]
        async with self._change:
            self._change.notify_all()

    async def _released(self, slot: Slot) -> None:
        if slot.dropped and not slot.leases:
            if slot.loading is not None:
                slot.loading.cancel()
            self._begin_unloading(slot)
        self._await_expiry(slot)
        await self._changed()

    def _await_expiry(self, slot: Slot) -> None:
        timeout = self.settings.idle_timeout if slot.spec.idle_timeout is None else slot.spec.idle_timeout
        if slot.expiry is not None:
            slot.expiry.cancel()
        if timeout and slot.provider is not None and not slot.leases:
            slot.expiry = asyncio.get_running_loop().call_later(timeout, self._expire, slot)

    def _expire(self, slot: Slot) -> None:
        if not (slot.leases or slot.pinned):
            self._begin_unloading(slot)

    async def _unload(self, slot: Slot) -> None:
        if slot.loading is not None:
            slot.loading.cancel()
            await asyncio.wait([slot.loading])
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
            slot.unloading, slot.resident, slot.limit = None, False, 0
            await self._changed()
