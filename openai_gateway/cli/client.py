"""What the commands share: their common options, settings, a client for a running gateway, tables, one-line errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    import ssl

    from openai import OpenAI, OpenAIError
    from openai.types import Model
    from rich.console import Console

    from openai_gateway.address import Address
    from openai_gateway.settings import Settings, SettingsError

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 lets the system choose.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Gateway processes on the port.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Id, folder or hub id of the default model.")]
ModelsFileOption = Annotated[Path | None, typer.Option("--models-file", help="The models.yaml to read.")]
LogLevelOption = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
LogFormatOption = Annotated[str | None, typer.Option("--log-format", help="text or json.")]
LogDirOption = Annotated[Path | None, typer.Option("--log-dir", help="Folder for log files.")]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        envvar="OPENAI_BASE_URL",
        help="Where the gateway is; by default where the settings put it. Their key goes nowhere else; without it, "
        "OPENAI_API_KEY goes to the URL that is given here.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that one listens on, but does not connect to."""
NO_KEY = "none"
"""The SDK insists on some key, the gateway only where one is set."""
CERTIFICATE = "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----"


def console(*, stderr: bool = False) -> Console:
    """Styles reach a terminal only; what is printed is never markup, and never broken into lines of some width."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)


def complain(message: str) -> None:
    console(stderr=True).print(message, style="red")


def fail(message: str, code: int = 1) -> NoReturn:
    complain(message)
    raise typer.Exit(code)


def read_settings(**options: object) -> Settings:
    """The settings under these command-line options (None: not given); ends the command where they are wrong."""
    from openai_gateway.settings import Settings, SettingsError

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        refuse(error)


def refuse(error: SettingsError) -> NoReturn:
    """End the command over wrong settings, one line for each problem."""
    for problem in error.problems:
        complain(problem)
    raise typer.Exit(2)


def address(settings: Settings) -> str:
    """The base URL under which this machine reaches a gateway with these settings."""
    if settings.port == 0:
        fail("The settings leave the port to the system; say --base-url.", 2)
    host = WILDCARDS.get(settings.host, settings.host)
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}/v1"


def is_local(url: str) -> bool:
    """Whether `url` is this machine, which no proxy from the environment stands in front of."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}


def locate(base_url: str | None, api_key: str | None = None) -> Address:
    """Where the gateway is, and the key for it; ends the command where `base_url` is none.

    The settings' key, and trust in their certificate, are for the settings' own address: a URL may stand in a variable
    that was set for somebody else's server.
    """
    from openai_gateway.address import Address

    settings = read_settings()
    elsewhere = os.environ.get("OPENAI_API_KEY") if base_url else None
    try:
        named = Address(base_url or address(settings), api_key or elsewhere)
        if not _is_own(named, settings):
            return named
    except ValueError as error:
        fail(str(error), 2)
    own = settings.api_key.get_secret_value() if settings.api_key else None
    trusted = _trust(settings.tls_certificate) if settings.tls_certificate else None
    return replace(named, key=api_key or own or named.key, trusted=trusted)


def _is_own(named: Address, settings: Settings) -> bool:
    if settings.port == 0:
        return False
    own = urlsplit(address(settings))
    same = named.parts.hostname == own.hostname or (is_local(named.url) and is_local(own.geturl()))
    return same and (named.parts.scheme, named.port) == (own.scheme, own.port)


def _trust(certificate: Path) -> ssl.SSLContext:
    """In whoever shows this very certificate. It is for the names that others use, hardly for 127.0.0.1."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # The first one is the server's own; behind it stand those of its signers, who sign for many.
        chain = re.findall(CERTIFICATE, certificate.read_text(), re.DOTALL)
        context.load_verify_locations(cadata="".join(chain[:1]))
    except (OSError, ValueError) as error:
        fail(f"tls_certificate: {certificate} cannot be read: {getattr(error, 'strerror', None) or error}", 2)
    return context


def connect(base_url: str | None, *, retries: int = 0) -> OpenAI:
    """A client for the gateway at `base_url`, or where the settings put it."""
    import httpx2
    import openai

    place = locate(base_url)
    http_client = openai.DefaultHttpxClient(trust_env=not is_local(place.url), verify=place.trusted or True)
    key = place.key or NO_KEY
    try:
        return openai.OpenAI(base_url=place.url, api_key=key, max_retries=retries, http_client=http_client)
    except httpx2.InvalidURL as error:
        fail(f"`{place.url}` is no base URL: {error}", 2)


def listed(client: OpenAI) -> list[Model]:
    """The models that a gateway serves, its default one first; ends the command where it does not tell."""
    import openai

    try:
        found = list(client.models.list().data)
        if all(isinstance(model.id, str) for model in found):
            return found
    except openai.OpenAIError as error:
        fail(explain(error, client))
    except (AttributeError, TypeError, ValueError):
        pass  # of what is no list of models, the SDK makes some object or other
    fail(f"{client.base_url} answers, but lists no models: is it the base URL of a gateway?")


def explain(error: OpenAIError, client: OpenAI) -> str:
    """An error of the SDK as one line for a person."""
    import httpx2
    import openai

    if isinstance(error, openai.APITimeoutError):
        text = f"No answer from {client.base_url} in time."
    elif isinstance(error, openai.APIConnectionError) and not isinstance(error.__cause__, httpx2.ConnectError):
        text = f"The connection to {client.base_url} failed: {error.__cause__ or error}"
    elif isinstance(error, openai.APIConnectionError):
        text = f"Cannot reach {client.base_url}: is the gateway running? `openai-gateway serve` starts it."
    elif isinstance(error, openai.AuthenticationError) and client.api_key == NO_KEY:
        text = f"{client.base_url} asks for a key: set OPENAI_API_KEY, and say --base-url {client.base_url}"
    elif isinstance(error, openai.APIStatusError):
        message = error.body.get("message") if isinstance(error.body, dict) else None
        text = f"{error.status_code}: {message or error.message}"
    else:
        text = str(error)
    return " ".join(clean(text).split())


def clean(text: str) -> str:
    """`text` without control characters: what a model or a server says must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns, in rich's table on a terminal, else as plain aligned text that no width cuts."""
    if sys.stdout.isatty():
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        console().print(table, soft_wrap=False)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (clean(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
