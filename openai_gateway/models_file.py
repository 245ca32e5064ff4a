"""The list of models: what models.yaml says there is to serve, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml
from msgspec.structs import replace

from openai_gateway.settings import Settings, SettingsError
from openai_gateway.settings_kinds import memory_size, whole
from openai_gateway.settings_sources import yaml_problem
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
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        models = content.get("models") if isinstance(content, dict) else content
        specs = msgspec.convert(models or [], list[ModelSpec])
    except msgspec.ValidationError as error:
        raise SettingsError([f"{file.name}: {str(error).replace('$', 'models')}"]) from None
    except OSError as error:
        raise SettingsError([f"{file.name}: cannot be read: {error.strerror}"]) from None
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError([yaml_problem(file.name, error)]) from None
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
