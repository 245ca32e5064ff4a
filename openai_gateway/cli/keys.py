"""`openai-gateway keys`: make and end API keys, in the store itself; every gateway on this machine knows at once."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openai_gateway.cli.client import JsonOption, console, fail, print_table, read_settings

if TYPE_CHECKING:
    from openai_gateway.access.keys import Key, KeyStore, Usage

keys = typer.Typer(help="Make, show and end API keys.", no_args_is_help=True, rich_markup_mode=None)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or its name where no other has the same.")]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", help="A permission; may be repeated. By default, all but metrics and admin."),
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="A model that it may use; may be repeated. By default, all.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=NUMBER", help="A limit of its own, as requests_per_minute=60; repeatable."),
]
ExpiresOption = Annotated[
    str | None, typer.Option("--expires", help="After 90d, 12h or 30m, or at a date such as 2027-01-31.")
]

UNITS = {"m": 60, "h": 3600, "d": 86_400}


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    allow: AllowOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    expires: ExpiresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key, and show it this once."""
    with _store() as (store, actor):
        fields: dict[str, Any] = {"permissions": allow} if allow else {}
        fields |= {"models": model, "limits": _limits(limit or []), "expires": _expiry(expires)}
        _tell(*store.create(name, actor=actor, **fields), as_json=as_json)


@keys.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys."""
    with _store() as (store, _):
        found = store.list()
    if as_json:
        typer.echo(json.dumps([_fields(key, usage) for key, usage in found], indent=2))
    else:
        headers = ("ID", "NAME", "KEY", "STATE", "PERMISSIONS", "REQUESTS", "TOKENS", "LAST USED")
        print_table(headers, [_row(key, usage) for key, usage in found])


@keys.command()
def show(key: KeyArgument, as_json: JsonOption = False) -> None:
    """Show what is known of a key; the key itself is not."""
    with _store() as (store, _):
        fields = _fields(*store.get(key))
    if as_json:
        typer.echo(json.dumps(fields, indent=2))
    else:
        print_table(("FIELD", "VALUE"), [(name, _text(name, value)) for name, value in fields.items()])


@keys.command()
def rotate(key: KeyArgument, as_json: JsonOption = False) -> None:
    """Give a key another secret, and show it this once; the old one is refused from now on."""
    with _store() as (store, actor):
        _tell(*store.rotate(key, actor=actor), as_json=as_json)


@keys.command()
def revoke(key: KeyArgument) -> None:
    """Refuse a key from now on; it stays in the list."""
    with _store() as (store, actor):
        console().print(f"revoked {store.revoke(key, actor=actor).id}")


@keys.command()
def delete(
    key: KeyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget a key and what it was used for."""
    with _store() as (store, actor):
        found, _ = store.get(key)
        if not yes:
            typer.confirm(f"Forget {found.id} ({found.name}) and its usage?", abort=True)
        console().print(f"deleted {store.delete(found.id, actor=actor).id}")


@contextlib.contextmanager
def _store() -> Iterator[tuple[KeyStore, str]]:
    """The keys of the settings' store, and who works on them; errors end the command with one line."""
    from openai_gateway.access.audit import COMMAND_LINE
    from openai_gateway.access.keys import KeyStore
    from openai_gateway.access.store import Store
    from openai_gateway.errors import GatewayError

    path = read_settings().keys_file
    try:
        yield KeyStore(Store(path)), COMMAND_LINE
    except GatewayError as error:
        fail(f"{path}: {error.__cause__}" if error.__cause__ else error.message)


def _limits(given: list[str]) -> Any:
    from openai_gateway.access.limits import inherited
    from openai_gateway.settings_kinds import numbers, whole
    from openai_gateway.types import Limits

    for item in given:
        if not re.fullmatch(r"\w+=\d+", item, re.ASCII):
            fail(f"--limit: `{item}` is not NAME=NUMBER with a whole number", 2)
    try:
        own = numbers(dict(item.split("=") for item in given), Limits())
        whole(inherited(own, read_settings().limits))
        return own
    except ValueError as error:
        fail(f"--limit: {error}; the limits are {', '.join(Limits.__struct_fields__)}", 2)


def _expiry(text: str | None) -> float | None:
    """A time in seconds of Unix time."""
    if text is None:
        return None
    now = time.time()
    try:
        span = re.fullmatch(r"(\d+)([mhd])", text)
        when = now + int(span[1]) * UNITS[span[2]] if span else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        fail(f"--expires: {text} is neither 90d, 12h or 30m, nor a date", 2)
    return when if when > now else fail(f"--expires: {text} is not in the future", 2)


def _tell(key: Key, secret: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**_fields(key), "secret": secret}, indent=2))
        return
    # Alone on stdout, so that a script can take it.
    console(stderr=True).print(f"{key.id}: this key is not shown again.")
    typer.echo(secret)


def _fields(key: Key, usage: Usage | None = None) -> dict[str, Any]:
    import msgspec

    fields = {**msgspec.to_builtins(key), "state": key.state}
    return fields if usage is None else {**fields, **msgspec.to_builtins(usage)}


def _row(key: Key, usage: Usage) -> tuple[str, ...]:
    tokens = usage.prompt_tokens + usage.completion_tokens
    permissions = ", ".join(key.permissions)
    used = _text("last_used", usage.last_used)
    return key.id, key.name, key.shown, key.state, permissions, str(usage.requests), str(tokens), used


def _text(name: str, value: object) -> str:
    if name in ("created", "expires", "revoked", "last_used"):
        return f"{datetime.fromtimestamp(value):%Y-%m-%d %H:%M}" if isinstance(value, float) and value else "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
