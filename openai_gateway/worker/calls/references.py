"""What parts of a JSON Schema refer to, within the schema that they were cut out of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a schema refers to within `root`; Pydantic writes each nested model and each enum as such a reference."""
    for _ in range(8):
        reference = _reference(schema)
        found = None if reference is None else _target(reference, root)
        if found is None:
            break
        schema = found
    return schema


def missing(schema: Any) -> frozenset[str]:
    """The references of a schema that lead nowhere within it; those by `$anchor` are left to others to judge."""
    return frozenset(
        reference
        for reference in _references(schema)
        if not reference.startswith("#") or (reference.startswith("#/") and _target(reference, schema) is None)
    )


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
        yield reference
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for one in inner:
        yield from _references(one)


def apart(part: Any, root: Mapping[str, Any]) -> Any:
    """A part of `root` by itself: all that it refers to comes with it, as numbered definitions."""
    numbers: dict[str, str] = {}
    moved = _moved(part, numbers)
    definitions: dict[str, Any] = {}
    while found := list(numbers)[len(definitions) :]:  # what was found refers to more
        for reference in found:
            target = _target(reference, root)
            # What is not there is left for an error to name.
            definition = {"$ref": reference} if target is None else _moved(target, numbers)
            definitions[numbers[reference]] = definition
    return {**moved, "$defs": definitions} if definitions else moved


def _moved(schema: Any, numbers: dict[str, str]) -> Any:
    """A copy that refers to definitions by their numbers; `numbers` grows by those that had none yet."""
    if isinstance(schema, list):
        return [_moved(one, numbers) for one in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _moved(value, numbers) for key, value in schema.items()}
    if (reference := _reference(schema)) is not None:
        copy["$ref"] = f"#/$defs/{numbers.setdefault(reference, str(len(numbers)))}"
    return copy


def _reference(schema: Any) -> str | None:
    """The reference of a schema, if that is a JSON Pointer (RFC 6901) into the schema that it is a part of."""
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    return reference if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")) else None


def _target(reference: Any, root: Any) -> Any:
    """What is at a local reference; None where there is nothing."""
    found = root
    for key in unquote(reference).split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(key)] if key.isdecimal() and int(key) < len(found) else None
        else:
            found = found.get(key) if isinstance(found, dict) else None
    return found
