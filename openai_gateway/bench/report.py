"""What comes out: a table for people, and JSON with all samples."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openai_gateway.bench.sheet import CLIENT, Metric, Row, Sheet, summary

PACKAGES = ("openai-gateway", "mlx", "mlx-lm", "uvloop", "httptools")
STYLES = {True: "green", False: "red", None: ""}
WIDE = 200
"""Columns where no terminal says how many there are: lines are not broken for a file."""
RATIO = "ratio: p50 beside that of the first server of the same measure; for times, less is better."
SHARED_MACHINE = (
    "Servers and load generator share this machine where a base URL is local: its processor time is theirs."
)


def machine() -> dict[str, Any]:
    """What the figures depend on, besides the servers."""
    cpus = os.cpu_count()
    if sys.platform == "linux":
        cpus = len(os.sched_getaffinity(0))
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": cpus,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "preload": os.environ.get("LD_PRELOAD"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def as_json(sheet: Sheet, servers: Sequence[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """All there is, in plain JSON values."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "servers": list(servers),
        "settings": settings,
        "results": [
            {
                "scenario": row.scenario,
                "case": row.case,
                "metric": row.metric.name,
                "unit": row.metric.unit,
                "more_is_better": row.metric.more,
                "server": server,
                "samples": values,
                **summary(values),
            }
            for row, by_server in sheet.samples.items()
            for server, values in by_server.items()
        ],
        "requests": [
            {
                "scenario": scenario,
                "case": case,
                "server": server,
                "requests": count,
                "failures": dict(sheet.failures.get((scenario, case, server), {})),
            }
            for (scenario, case, server), count in sheet.asked.items()
        ],
        "notes": list(sheet.notes),
    }


def show(console: Console, sheet: Sheet, names: Sequence[str]) -> None:
    """The tables, one for each scenario, then what went wrong and what to know."""
    if not console.is_terminal:
        console.width = WIDE
    for scenario in dict.fromkeys(row.scenario for row in sheet.samples):
        console.print(_table(sheet, scenario, names), soft_wrap=False)
    for line in _failures(sheet):
        console.print(line, style="red", soft_wrap=True)
    for note in (*([RATIO] if len(names) > 1 else []), *sheet.notes, *_generator(sheet), SHARED_MACHINE):
        console.print(note, style="dim", soft_wrap=True)


def _table(sheet: Sheet, scenario: str, names: Sequence[str]) -> Table:
    several = len(names) > 1
    table = Table(title=scenario, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("case")
    table.add_column("measure")
    if several:
        table.add_column("server", no_wrap=True)
    for header in ("p50", "p90", "max", "n", *(["ratio"] if several else [])):
        table.add_column(header, justify="right", no_wrap=True)
    shown: tuple[str, str] | None = None
    for row, by_server in sorted(
        ((row, by_server) for row, by_server in sheet.samples.items() if row.scenario == scenario),
        key=lambda item: _place(sheet, item[0]),
    ):
        if row.metric == CLIENT:
            continue
        for server in (name for name in names if name in by_server):
            label = (row.case, f"{row.metric.name}, {row.metric.unit}")
            cells = ("" if shown and shown[0] == label[0] else label[0], "" if shown == label else label[1])
            shown = label
            table.add_row(*map(Text, cells), *_figures(row.metric, by_server, server, names))
    return table


def _place(sheet: Sheet, row: Row) -> int:
    """Rows of one case stand together, cases in the order in which they were measured."""
    return next(number for number, known in enumerate(sheet.samples) if known[:2] == row[:2])


def _figures(metric: Metric, by_server: dict[str, list[float]], server: str, names: Sequence[str]) -> Iterable[Text]:
    values = by_server[server]
    found = summary(values)
    if len(names) > 1:
        yield Text(server)
    yield from (Text(figure(found[name])) for name in ("p50", "p90", "max"))
    yield Text(str(len(values)))
    if len(names) > 1:
        first = summary(by_server[next(name for name in names if name in by_server)])["p50"]
        ratio = found["p50"] / first if first and metric.more is not None else None
        # What is hardly different is not coloured: it would say more than was measured.
        better = None if ratio is None or 0.95 < ratio < 1.05 else (ratio > 1) == metric.more
        yield Text("-" if ratio is None else f"{ratio:.2f}", style=STYLES[better])


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _failures(sheet: Sheet) -> Iterable[str]:
    for (scenario, case, server), reasons in sheet.failures.items():
        requests = sheet.asked[scenario, case, server]
        for reason, count in reasons.most_common():
            yield f"{server}, {scenario}, {case}: {count} of {requests} requests failed: {reason}"


def _generator(sheet: Sheet) -> Iterable[str]:
    shares = [
        value for row, found in sheet.samples.items() if row.metric == CLIENT for v in found.values() for value in v
    ]
    if shares:
        yield f"The load generator itself used at most {max(shares):.0f} % of a core."
