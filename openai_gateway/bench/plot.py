"""The same results as a picture: tokens per second by the number of streams, and times to first token."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from openai_gateway.bench.sheet import FIRST, THROUGHPUT, Sheet, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which the colour-blind tell apart."""
MISSING = f"A plot needs matplotlib: {sys.executable} -m pip install matplotlib"
FORMATS = (".png", ".svg", ".pdf")


def unable(path: Path) -> str | None:
    """Why no plot can be written there; asked before an hour is spent on measuring."""
    if path.suffix not in FORMATS:
        return f"{path}: a plot is one of {', '.join(FORMATS)}."
    return MISSING if find_spec("matplotlib") is None else None


def draw(sheet: Sheet, names: Sequence[str], path: Path) -> None:
    """Write the picture; its format is that of the file's name."""
    # Not pyplot, which would keep the figure and look for a display.
    from matplotlib.figure import Figure

    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    cases = [row for row in sheet.samples if row.metric == FIRST]
    streams = any(row.metric == THROUGHPUT for row in sheet.samples)
    figure = Figure(
        figsize=(12 if streams else 7, max(4.5, 0.22 * len(cases) * len(names) + 1.5)), layout="constrained"
    )
    panels = figure.subplots(1, 2 if streams else 1, squeeze=False)[0]
    if streams:
        _throughput(panels[0], sheet, colours)
    _first(panels[-1], sheet, colours)
    handles = [panels[-1].plot([], [], "s", color=colour, label=name)[0] for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=144)


def _throughput(panel: Axes, sheet: Sheet, colours: dict[str, str]) -> None:
    lines: dict[str, list[tuple[int, list[float]]]] = {}
    for row, by_server in sheet.samples.items():
        if row.metric == THROUGHPUT and (count := re.match(r"\d+", row.case)):
            for server, values in by_server.items():
                lines.setdefault(server, []).append((int(count[0]), values))
    for server, points in lines.items():
        points.sort()
        counts = [count for count, _ in points]
        middles = [percentile(values, 50) for _, values in points]
        spread = [
            [middle - min(values) for middle, (_, values) in zip(middles, points, strict=True)],
            [max(values) - middle for middle, (_, values) in zip(middles, points, strict=True)],
        ]
        panel.errorbar(counts, middles, yerr=spread, marker="o", capsize=3, color=colours[server])
    ticks = sorted({count for points in lines.values() for count, _ in points})
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_xlabel("streams at once")
    panel.set_ylabel("tokens per second, all streams together")
    panel.set_title("Throughput (median, and range over the rounds)")
    panel.grid(alpha=0.3)


def _first(panel: Axes, sheet: Sheet, colours: dict[str, str]) -> None:
    labels: list[tuple[float, str]] = []
    place = 0.0
    for row, by_server in sheet.samples.items():
        if row.metric != FIRST:
            continue
        top = place
        for server in (name for name in colours if name in by_server):
            drawn = panel.boxplot(
                [by_server[server]],
                positions=[place],
                orientation="horizontal",
                widths=0.7,
                whis=(0, 100),
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": colours[server], "alpha": 0.6},
                medianprops={"color": colours[server], "linewidth": 2},
            )
            for part in (*drawn["whiskers"], *drawn["caps"], *drawn["boxes"]):
                part.set_color(colours[server])
            place += 1
        labels.append(((top + place - 1) / 2, f"{row.scenario}: {row.case}"))
        place += 0.6
    panel.set_yticks([middle for middle, _ in labels], [label for _, label in labels])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("milliseconds")
    panel.set_title("Time to first token (range, quartiles, median)")
    panel.grid(axis="x", alpha=0.3)
