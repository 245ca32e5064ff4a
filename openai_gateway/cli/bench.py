"""`openai-gateway bench`: how fast a server is, alone or beside others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openai_gateway.cli.client import BaseUrlOption, console, fail, locate

if TYPE_CHECKING:
    from openai_gateway.bench.session import Place, Results, Session

KeyOption = Annotated[str | None, typer.Option("--api-key", help="Key for the first server; else the settings' one.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to ask for; by default each server's first.")]
BesideOption = Annotated[
    list[str] | None,
    typer.Option("--beside", metavar="NAME=URL[#MODEL]", help="Another server; its key as http://:KEY@host/v1."),
]
ScenariosOption = Annotated[str, typer.Option("--scenarios", help="Which to run, with commas between them.")]
StreamsOption = Annotated[str, typer.Option("--streams", help="How many streams at once, one number or several.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=2, help="Tokens of each answer of `stream`.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="How often everything is measured.")]
ContextOption = Annotated[
    int | None, typer.Option("--context", min=1024, help="Context length in tokens, where the servers do not say it.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="Seconds that one answer may take.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write all samples to this file, or - for stdout.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Draw the results: a .png, .svg or .pdf file.")]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="MODEL",
        help="Start this gateway, mlx_lm.server and mlx-lm's plain generator on a model (tiny, demo, a folder or a hub "
        "id), and measure those.",
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="With --start: rows that are decoded together, by default 64.")
]
BlasOption = Annotated[
    str | None, typer.Option("--blas", help="With --start: auto, none or a library, for all that is started alike.")
]
AllocatorOption = Annotated[
    Literal["auto", "none"] | None,
    typer.Option("--allocator", help="With --start: auto (jemalloc) or none, for all that is started alike."),
]
SCENARIOS = "stream,prefix,arrival,divergence,edit,repeat,turns,stall,hits"


def bench(
    command: typer.Context,
    base_url: BaseUrlOption = None,
    api_key: KeyOption = None,
    model: ModelOption = None,
    beside: BesideOption = None,
    start: StartOption = None,
    scenarios: ScenariosOption = SCENARIOS,
    streams: StreamsOption = "1,8,32,100",
    max_tokens: TokensOption = 128,
    rounds: RoundsOption = 1,
    context: ContextOption = None,
    timeout: TimeoutOption = 600,
    batch: BatchOption = None,
    blas: BlasOption = None,
    allocator: AllocatorOption = None,
    as_json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure a server, alone or beside others: streams at once, reuse of prefixes, short requests beside long ones.

    A server on this machine shares its processors with the load generator, which is kept light for that reason.
    """
    from openai_gateway.bench.compare import Local
    from openai_gateway.bench.desk import Plan
    from openai_gateway.bench.plot import unable
    from openai_gateway.bench.session import Place, Session

    if plot is not None and (why := unable(plot)):
        fail(why, 2)
    for path in (as_json, plot):
        _check(path)
    if start is None and (batch or blas or allocator):
        fail("--batch, --blas and --allocator are for servers that are started here, with --start.", 2)
    source = command.get_parameter_source("base_url")
    named = source is not None and source.name == "COMMANDLINE"  # the SDK's variable may be set, and means no harm
    if start is not None and (named or api_key or model):
        fail("--base-url, --api-key and --model are for a server that runs already; beside --start, say --beside.", 2)
    try:
        session = Session(
            places=tuple([] if start else [_first(base_url, api_key, model)]) + tuple(map(Place.parse, beside or [])),
            local=Local(start, batch or 64, blas or "auto", allocator or "auto", timeout=timeout) if start else None,
            scenarios=tuple(name.strip() for name in scenarios.split(",") if name.strip()),
            plan=Plan(streams=_numbers(streams), max_tokens=max_tokens),
            rounds=rounds,
            context=context,
            timeout=timeout,
        )
    except ValueError as error:
        fail(str(error), 2)
    _report(_measured(session), as_json, plot)


def _first(base_url: str | None, api_key: str | None, model: str | None) -> Place:
    """The server that the options or the settings name."""
    from openai_gateway.bench.session import Place

    address = locate(base_url, api_key)
    return Place(address.parts.netloc.rpartition("@")[2], address, model)


def _check(path: Path | None) -> None:
    """That a report can be written there; asked before an hour is spent on measuring."""
    if path in (None, Path("-")):
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        fail(f"{path}: cannot be written.", 2)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise ValueError(f"`{text}` is no list of numbers, such as 1,8,32.") from None


def _measured(session: Session) -> Results:
    import uvloop
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from openai_gateway.bench.load import Failed

    # Drawn between measurements only: a thread that draws would take its time from them.
    bar = Progress(
        BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=console(stderr=True), auto_refresh=False, transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    task = bar.add_task("looking at the servers", total=1.0)

    def progress(description: str, done: float) -> None:
        bar.update(task, description=description, completed=done, refresh=True)

    with bar:
        bar.refresh()
        try:
            return uvloop.run(session.measure(progress))
        except Failed as failed:
            bar.stop()
            fail(str(failed))


def _report(results: Results, as_json: Path | None, plot: Path | None) -> None:
    from openai_gateway.bench import report
    from openai_gateway.bench.plot import draw

    text = json.dumps(report.as_json(results.sheet, results.servers, results.settings), indent=1)
    if as_json == Path("-"):
        typer.echo(text)
    else:
        report.show(console(), results.sheet, results.names)
    try:
        if as_json not in (None, Path("-")):
            as_json.write_text(f"{text}\n")
        if plot is not None:
            draw(results.sheet, results.names, plot)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
