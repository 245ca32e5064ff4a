"""`openai-gateway config`: every setting, its value, where that came from, and what it is for."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from openai_gateway.cli.client import (
    HostOption,
    JsonOption,
    LogDirOption,
    LogFormatOption,
    LogLevelOption,
    ModelOption,
    ModelsFileOption,
    PortOption,
    print_table,
    read_settings,
)

ExplainOption = Annotated[bool, typer.Option("--explain", help="Say what each setting is for.")]


def config(
    host: HostOption = None,
    port: PortOption = None,
    model: ModelOption = None,
    models_file: ModelsFileOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    log_dir: LogDirOption = None,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the settings, and where they come from."""
    settings = read_settings(
        host=host,
        port=port,
        model=model,
        models_file=models_file,
        log_level=log_level,
        log_format=log_format,
        log_dir=log_dir,
    )
    from openai_gateway.settings import sources

    meant = {name: field.description or "" for name, field in type(settings).model_fields.items()}
    rows = sources(settings)
    if as_json:
        fields = {name: {"value": value, "source": source, "meaning": meant[name]} for name, value, source in rows}
        typer.echo(json.dumps(fields, indent=2))
    else:
        width = 4 if explain else 3
        table = [(name, _text(value), source, meant[name])[:width] for name, value, source in rows]
        print_table(("SETTING", "VALUE", "SOURCE", "MEANING")[:width], table)


def _text(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return str(int(value) if value.is_integer() else value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
