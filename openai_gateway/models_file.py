"""The list of models: what models.yaml says there is to serve, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import replace

from openai_gateway.settings import Settings, SettingsError
from openai_gateway.settings_kinds import limits, memory_size, unknown
from openai_gateway.settings_sources import read_file
from openai_gateway.types import Defaults, Limits, ModelSpec

EMBEDDED = ModelSpec(id="gateway-demo", path=str(Path(__file__).parent / "demo"), aliases=("demo",))
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WORDS = {"object": "mapping", "array": "list", "str": "text", "int": "whole number", "float": "number", "null": "none"}
"""What msgspec calls kinds of values → what models.yaml's readers do."""


def read_models(settings: Settings) -> list[ModelSpec]:
    """What there is to serve, the default model first. Raises `SettingsError` with what is wrong in models.yaml.

    Without a models.yaml that lists models there is the embedded one. `settings.model` goes first, and may be
    something else than an entry: a folder, or a hub id. Requests can only name what is in this list.
    """
    specs = _listed(settings.models_file) if settings.models_file is not None else []
    specs = specs or [EMBEDDED]
    names = [name for spec in specs for name in (spec.id, *spec.aliases)]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise SettingsError([f"{settings.models_file}: {', '.join(sorted(doubled))} names more than one model"])
    return specs if settings.model is None else _first(settings.model, specs)


def _first(wanted: str, specs: list[ModelSpec]) -> list[ModelSpec]:
    """The wanted model before the others, be it one of them or not; an alias gives way to the name of its folder."""
    for spec in specs:
        if wanted in (spec.id, *spec.aliases):
            return [spec, *(other for other in specs if other is not spec)]
    try:
        path = _located(wanted, Path())
    except ValueError as error:
        raise SettingsError([f"model: {error}"]) from None
    name = Path(path).name if Path(path).is_absolute() else path
    if any(name == spec.id for spec in specs):
        raise SettingsError([f"model: {name} is what another model is called; list {wanted} in models.yaml as well"])
    return [
        ModelSpec(id=name, path=path),
        *(replace(spec, aliases=tuple(alias for alias in spec.aliases if alias != name)) for spec in specs),
    ]


def _listed(file: Path) -> list[ModelSpec]:
    try:
        written = read_file(file)
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    entries = written.models or []
    if not isinstance(entries, list):
        raise SettingsError([f"{written.place('models')}: `models` is a list of entries with `id` and `path`"])
    return [_spec(entry, file.parent, partial(written.place, "models", number)) for number, entry in enumerate(entries)]


def _spec(entry: object, base: Path, place: Callable[..., str]) -> ModelSpec:
    """A model as its entry says, with folders seen from `base`; `place` is where in the file some field stands."""
    if not isinstance(entry, dict):
        raise SettingsError([f"{place()}: an entry is a mapping with `id` and `path`"])
    readers: dict[str, Callable[[Any], object]] = {
        **dict.fromkeys(("path", "adapter", "draft_model"), partial(_located, base=base)),
        "memory": memory_size,
        "limits": partial(limits, base=Limits()),
    }
    fields = {str(name): value for name, value in entry.items()}
    for name, read in readers.items():
        try:
            if fields.get(name) is not None:
                fields[name] = read(fields[name])
        except ValueError as error:
            raise SettingsError([f"{place(name)}: {name}: {error}"]) from None
    try:
        spec = msgspec.convert(fields, ModelSpec)
    except msgspec.ValidationError as error:
        raise SettingsError([_explained(str(error), place)]) from None
    if spec.cache_type == "standard" and (spec.kv_bits or spec.kv_group_size):
        raise SettingsError([f"{place()}: kv_bits and kv_group_size need `cache_type: quantized`"])
    return spec


def _explained(error: str, place: Callable[..., str]) -> str:
    """What msgspec says of a field, with its line and what would be right."""
    what, _, where = error.partition(" - at `$")
    steps = re.findall(r"\w+", where)
    struct, others = (Defaults, ()) if steps[:1] == ["defaults"] else (ModelSpec, Defaults.__struct_fields__)
    known = (*struct.__struct_fields__, *(f"defaults.{name}" for name in others))
    if strange := re.fullmatch("Object contains unknown field `(.*)`", what):
        return f"{place(*steps, strange[1])}: {unknown('field', strange[1], known)}"
    if not steps:
        return f"{place()}: {what.replace('Object missing required field', 'this model has no')}"
    kind = get_type_hints(struct).get(steps[-1])
    choices = [value for part in (kind, *get_args(kind)) if get_origin(part) is Literal for value in get_args(part)]
    right = f"; there are {', '.join(map(str, choices))}" if choices else ""
    plain = re.sub(r"\w+", lambda word: WORDS.get(word[0], word[0]), what)
    return f"{place(*steps)}: {'.'.join(steps)}: {plain}{right}"


def _located(path: Any, base: Path) -> Any:
    """A folder, seen from `base`, as an absolute path; anything else as it is: a hub id. Raises ValueError."""
    if not isinstance(path, str):
        return path  # for others to refuse
    folder = base / os.path.expanduser(path)
    if folder.is_dir():
        return str(folder.resolve())
    if not HUB_ID.fullmatch(path) or path.startswith("."):
        raise ValueError(f"there is no folder {path}")
    return path
