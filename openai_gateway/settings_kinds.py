"""The kinds of values that settings have, and how each is written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import asdict
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator

from openai_gateway.types import Limits

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=1024, le=2**31)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Pause = Annotated[float, Field(ge=0, le=31_536_000)]


def expanded(path: Path) -> Path:
    """The path, with a folder for its `~` or `~user`. Raises ValueError where there is no such user, or no home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"no home is known for `{path.parts[0]}`") from None


File = Annotated[Path, AfterValidator(expanded)]

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def memory_size(value: object) -> int | Literal["auto"]:
    """Bytes of a size such as `12GB` or `1.5 GiB`, or `auto`. Raises ValueError."""
    if value == "auto":
        return "auto"
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w*)", str(value).strip())
    if size is None or size[2] not in UNITS or not float(size[1]):
        raise ValueError("a size is `auto` or a number of bytes, which may be written as 12GB or 12GiB")
    return int(float(size[1]) * UNITS[size[2]])


def _blas(choice: str) -> str:
    if choice not in ("auto", "none") and not expanded(Path(choice)).is_file():
        raise ValueError("is neither `auto` nor `none`, nor a file")
    return choice


Blas = Annotated[str, AfterValidator(_blas)]
Memory = Annotated[int | Literal["auto"], BeforeValidator(memory_size)]


def _or_none(value: object) -> int | Literal["auto"]:
    return 0 if value in ("none", 0, "0") else memory_size(value)


MaybeMemory = Annotated[int | Literal["auto"], BeforeValidator(_or_none)]
Disk = Annotated[int, BeforeValidator(_or_none)]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that nothing has."""
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no {kind} `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")


def limits(value: object, base: Limits) -> Limits:
    """Limits by name, as a mapping or as `burst=5, requests_per_day=none`; `base` for those that are not named.

    Raises ValueError.
    """
    named: Any = value
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        named = {name.strip(): number.strip() for name, _, number in pairs}
    if isinstance(named, Limits):
        return named
    if not isinstance(named, dict):
        raise ValueError("limits are written as a mapping, or as name=number, name=number")
    return whole(numbers(named, base))


def numbers(named: Mapping[Any, object], base: Limits) -> Limits:
    """Limits by name, whatever they say together. Raises ValueError."""
    known = asdict(base)
    for name in named:
        if name not in known:
            raise ValueError(unknown("limit", str(name), known))
    given = {name: None if number == "none" else number for name, number in named.items()}
    try:
        return msgspec.convert(known | given, Limits, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        raise ValueError(f"`{name}` is a whole number or `none`, and at most 100000000") from None


def whole(limits: Limits) -> Limits:
    """The limits, unless they say something that has no effect. Raises ValueError."""
    if limits.burst is not None and limits.requests_per_minute is None:
        raise ValueError("`burst` needs `requests_per_minute`, which says how fast it is earned back")
    return limits


BASE = Limits(burst=10, requests_per_minute=60, requests_per_hour=1_000, requests_per_day=10_000)
_plain = PlainSerializer(msgspec.to_builtins)
KeyLimits = Annotated[Limits, PlainValidator(partial(limits, base=BASE)), _plain]
TotalLimits = Annotated[Limits, PlainValidator(partial(limits, base=Limits())), _plain]


def _shaped(pattern: str, message: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(message)
        return text

    return AfterValidator(check)


# Anything else would be compared with what clients send, and never match.
HostName = Annotated[str, _shaped(r"\*|[^\s/:*[\]]+|\[[0-9A-Fa-f:.]+]", "a host name has no scheme and no port")]
Origin = Annotated[str, _shaped(r"\*|[a-z][a-z0-9+.-]*://[^\s/]+", "an origin is scheme://host[:port], and no more")]
