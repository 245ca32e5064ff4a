"""The list of models: what models.yaml says there is to serve, checked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec.structs import replace

from openai_gateway.settings import Settings, SettingsError
from openai_gateway.settings_kinds import memory_size, whole
from openai_gateway.settings_sources import read_file
from openai_gateway.types import ModelSpec

EMBEDDED = ModelSpec(id="gateway-demo", path=str(Path(__file__).parent / "demo"), aliases=("demo",))


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
    return specs if settings.model is None else _first(settings.model, specs)


def _first(wanted: str, specs: list[ModelSpec]) -> list[ModelSpec]:
    """The wanted model before the others, be it one of them or not; an alias gives way to the name of its folder."""
    for spec in specs:
        if wanted in (spec.id, *spec.aliases):
            return [spec, *(other for other in specs if other is not spec)]
    path = _located(wanted, Path(), "model")
    name = Path(path).name if Path(path).is_absolute() else path
    if any(name == spec.id for spec in specs):
        raise SettingsError([f"model: {name} is what another model is called; list {wanted} in models.yaml as well"])
    return [
        ModelSpec(id=name, path=path),
        *(replace(spec, aliases=tuple(alias for alias in spec.aliases if alias != name)) for spec in specs),
    ]


def _listed(file: Path) -> list[ModelSpec]:
    try:
        specs = msgspec.convert(read_file(file).models or [], list[ModelSpec])
    except msgspec.ValidationError as error:
        raise SettingsError([f"{file.name}: {str(error).replace('$', 'models')}"]) from None
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    return [_checked(spec, file) for spec in specs]


def _checked(spec: ModelSpec, file: Path) -> ModelSpec:
    if spec.cache_type == "standard" and (spec.kv_bits or spec.kv_group_size):
        raise SettingsError([f"{file.name}: {spec.id}: kv_bits and kv_group_size need `cache_type: quantized`"])
    try:
        memory = None if spec.memory is None else memory_size(spec.memory)
    except ValueError as error:
        raise SettingsError([f"{file.name}: {spec.id}: memory: {error}"]) from None
    try:
        whole(spec.limits)
    except ValueError as error:
        raise SettingsError([f"{file.name}: {spec.id}: limits: {error}"]) from None
    return replace(
        spec,
        path=_located(spec.path, file.parent, file.name),
        adapter=spec.adapter and _located(spec.adapter, file.parent, file.name),
        draft_model=spec.draft_model and _located(spec.draft_model, file.parent, file.name),
        memory=memory,
    )


def _located(path: str, base: Path, where: str) -> str:
    """A folder, seen from `base`, as an absolute path; anything else as it is: a hub id."""
    folder = base / os.path.expanduser(path)
    if folder.is_dir():
        return str(folder.resolve())
    if path.startswith((".", "/", "~")):
        raise SettingsError([f"{where}: there is no folder {path}"])
    return path
