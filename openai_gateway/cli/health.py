"""`openai-gateway health`: is a gateway up, and can it answer? For people, scripts and container probes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from openai_gateway.cli.client import BaseUrlOption, clean, console, is_local, locate

if TYPE_CHECKING:
    import httpx2

INTERVAL = 0.2
"""Seconds between two looks while waiting."""

WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait until it is ready.")]


def health(base_url: BaseUrlOption = None, wait: WaitOption = 0) -> None:
    """Say whether a gateway is ready; if not, exit with 1."""
    import httpx2

    place = locate(base_url)
    root = place.url.rstrip("/").removesuffix("/v1")
    with httpx2.Client(timeout=5, trust_env=not is_local(root), verify=place.trusted or True) as client:
        until = time.monotonic() + wait
        with _spinner(f"waiting for {root}") if wait else contextlib.nullcontext():
            while (ready := _look(client, f"{root}/health/ready")) != "ok" and time.monotonic() < until:
                time.sleep(INTERVAL)
        live = _look(client, f"{root}/health/live")
    typer.echo(f"live:  {live}\nready: {ready}")
    if (live, ready) != ("ok", "ok"):
        raise typer.Exit(1)


def _spinner(text: str) -> contextlib.AbstractContextManager[object]:
    return console(stderr=True).status(text)


def _look(client: httpx2.Client, url: str) -> str:
    """`ok`, or why not, in one line."""
    import httpx2

    try:
        answer = client.get(url)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"no answer from {url} ({type(error).__name__})"
    if answer.status_code == 200:
        return "ok"
    try:
        body = answer.json()
        reason = body.get("reason") or body["error"]["message"]
    except (ValueError, LookupError, TypeError, AttributeError):
        reason = answer.text
    return " ".join(clean(f"{answer.status_code} {reason}").split())[:200]
