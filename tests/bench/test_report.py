from __future__ import annotations

import io
import json

from rich.console import Console

from openai_gateway.bench.report import as_json, figure, show
from openai_gateway.bench.sheet import CLIENT, FIRST, PROMPT, THROUGHPUT, Sheet


def sheet() -> Sheet:
    found = Sheet()
    for name, rate, first in (("plain", 100.0, None), ("ours", 95.0, 10.0), ("theirs", 50.0, 30.0)):
        page = found.page("stream", name)
        page.asked("1 stream", 4)
        page.add("1 stream", THROUGHPUT, rate, rate)
        page.add("1 stream", FIRST, first)
        page.add("1 stream", PROMPT, 7.0)
    found.page("stream", "ours").add("1 stream", CLIENT, 3.0)
    found.page("stream", "theirs").fail("1 stream", "connection refused")
    found.page("turns", "ours").note("something to know")
    return found


def shown(*names: str) -> str:
    output = io.StringIO()
    show(Console(file=output, markup=False), sheet(), names)
    return output.getvalue()


def test_ratios_are_to_the_first_server_of_the_measure() -> None:
    cells = [line.split() for line in shown("plain", "ours", "theirs").splitlines()]
    last = {
        (line[-6], line[-5]): line[-1] for line in cells if len(line) > 5 and line[-6] in ("plain", "ours", "theirs")
    }
    assert last["theirs", "50.0"] == "0.50"
    assert last["ours", "95.0"] == "0.95"
    # The plain generator has no such time: the next one is what it is set beside.
    assert last["theirs", "30.0"] == "3.00"
    assert last["theirs", "7.00"] == "-"


def test_failures_and_notes_and_the_load_generators_share_are_told() -> None:
    text = shown("plain", "ours", "theirs")
    assert "theirs, stream, 1 stream: 1 of 4 requests failed: connection refused" in text
    assert "ours: something to know" in text
    assert "at most 3 % of a core" in text
    assert CLIENT.name not in text


def test_one_server_alone_has_no_ratios() -> None:
    assert "ratio" not in shown("ours")


def test_styles_do_not_reach_a_file() -> None:
    assert "\x1b" not in shown("plain", "ours")


def test_json_holds_every_sample_and_what_failed() -> None:
    found = json.loads(json.dumps(as_json(sheet(), [{"name": "ours"}], {"rounds": 2})))
    (result,) = [r for r in found["results"] if r["server"] == "ours" and r["metric"] == "throughput"]
    assert (result["samples"], result["p99"], result["more_is_better"]) == ([95.0, 95.0], 95.0, True)
    (failed,) = [r for r in found["requests"] if r["failures"]]
    assert (failed["server"], failed["requests"], failed["failures"]) == ("theirs", 4, {"connection refused": 1})
    assert found["machine"]["cpus"] >= 1
    assert found["machine"]["versions"]["openai-gateway"]


def test_figures_have_three_digits() -> None:
    assert [figure(value) for value in (0.1234, 12.34, 123.4, 12345.6)] == ["0.12", "12.3", "123", "12,346"]
