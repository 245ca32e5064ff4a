"""`openai-gateway models`: what a running gateway serves."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from openai_gateway.cli.client import BaseUrlOption, JsonOption, connect, listed, print_table

if TYPE_CHECKING:
    from openai.types import Model


def models(base_url: BaseUrlOption = None, as_json: JsonOption = False) -> None:
    """List the models of a running gateway."""
    with connect(base_url) as client:
        found = listed(client)
    if as_json:
        typer.echo(json.dumps([model.to_dict() for model in found], indent=2))
    else:
        print_table(("MODEL", "OWNER", "CONTEXT", "LOADED", "CREATED"), [_row(model) for model in found])


def _row(model: Model) -> tuple[str, ...]:
    extra = model.model_extra or {}
    loaded = {"True": "yes", "False": "no"}.get(str(extra.get("loaded")), "-")
    created = f"{datetime.fromtimestamp(model.created):%Y-%m-%d %H:%M}" if model.created else "-"
    return model.id, model.owned_by or "-", str(extra.get("context_length") or "-"), loaded, created
