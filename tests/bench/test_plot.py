from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openai_gateway.bench.plot import draw, unable
from openai_gateway.bench.sheet import FIRST, THROUGHPUT, Sheet


def sheet(*, streams: bool) -> Sheet:
    found = Sheet()
    for name, rate in (("ours", 100.0), ("theirs", 50.0)):
        for count in (1, 8) if streams else ():
            found.page("stream", name).add(f"{count} streams", THROUGHPUT, rate * count, rate)
        found.page("turns", name).add("cold", FIRST, rate, 2 * rate)
    return found


def drawn(path: Path) -> set[str]:
    # With text as text, and not as outlines.
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(sheet(streams=True), ["ours", "theirs"], path)
    return {"".join(element.itertext()).strip() for element in ElementTree.parse(path).iter() if "text" in element.tag}


def test_axes_have_names_and_units_and_servers_a_legend(tmp_path: Path) -> None:
    texts = drawn(tmp_path / "plot.svg")
    assert {"streams at once", "tokens per second, all streams together", "milliseconds"} <= texts
    assert {"1", "8", "turns: cold", "ours", "theirs"} <= texts


@pytest.mark.parametrize("streams", [True, False])
def test_a_picture_is_written(tmp_path: Path, streams: bool) -> None:
    draw(sheet(streams=streams), ["ours", "theirs"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert unable(Path("plot.png")) == f"A plot needs matplotlib: {sys.executable} -m pip install matplotlib"


def test_other_formats_are_refused_before_anything_is_measured() -> None:
    assert unable(Path("plot.png")) is None
    assert unable(Path("plot.xlsx")) == "plot.xlsx: a plot is one of .png, .svg, .pdf."
