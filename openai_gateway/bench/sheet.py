"""What was measured: every sample, every failure, and the numbers that sum them up."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Metric(NamedTuple):
    """`more` says whether more of it is better; None where it is neither."""

    name: str
    unit: str
    more: bool | None = False


THROUGHPUT = Metric("throughput", "tokens/s", True)
FIRST = Metric("time to first token", "ms")
PER_TOKEN = Metric("time per output token", "ms")
ABOVE_IDLE = Metric("time to first token above idle", "ms")
GAP = Metric("longest gap between chunks", "ms")
TIMES = Metric("cold over this", "times", True)
CACHED = Metric("read from cache", "tokens", True)
PROMPT = Metric("prompt", "tokens", None)
CLIENT = Metric("load generator's processor time", "% of a core", None)


class Row(NamedTuple):
    """A line of the report: something that was measured on every server."""

    scenario: str
    case: str
    metric: Metric


@dataclass
class Sheet:
    """Samples by row and server, in the order in which they first came."""

    samples: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(scenario, case, server) → requests."""
    failures: dict[tuple[str, str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """(scenario, case, server) → reason → requests that failed for it."""
    notes: dict[str, None] = field(default_factory=dict)
    """What a reader should know; each once."""

    def page(self, scenario: str, server: str) -> Page:
        return Page(self, scenario, server)


@dataclass(frozen=True, slots=True)
class Page:
    """Where one scenario on one server writes what it measures."""

    sheet: Sheet
    scenario: str
    server: str

    def add(self, case: str, metric: Metric, *values: float | None) -> None:
        row = Row(self.scenario, case, metric)
        known = [value for value in values if value is not None]
        if known:
            self.sheet.samples.setdefault(row, {}).setdefault(self.server, []).extend(known)

    def asked(self, case: str, requests: int = 1) -> None:
        self.sheet.asked[self.scenario, case, self.server] += requests

    def fail(self, case: str, reason: str) -> None:
        self.sheet.failures[self.scenario, case, self.server][reason] += 1

    def note(self, text: str) -> None:
        self.sheet.notes[f"{self.server}: {text}"] = None


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest ranks, linearly, as numpy does by default. `values` is not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values: Sequence[float]) -> dict[str, float]:
    """The numbers that stand for some samples."""
    return {
        "mean": sum(values) / len(values),
        "min": min(values),
        **{f"p{percent}": percentile(values, percent) for percent in (50, 90, 99)},
        "max": max(values),
    }
