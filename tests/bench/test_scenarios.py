"""Every scenario on a real gateway, with little to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openai_gateway.address import Address
from openai_gateway.bench.desk import Desk, Plan
from openai_gateway.bench.load import Answer, Failed
from openai_gateway.bench.prompts import Writer
from openai_gateway.bench.run import Remote, Step
from openai_gateway.bench.scenarios import longest_gap, stream
from openai_gateway.bench.server import Server as Asked
from openai_gateway.bench.server import meet
from openai_gateway.bench.sheet import CACHED, CLIENT, FIRST, GAP, PER_TOKEN, THROUGHPUT, TIMES, Sheet
from tests.bench.support import DONE, HEAD, says, serving, whole
from tests.support import Server

pytestmark = pytest.mark.anyio

SMALL = Plan(streams=(2,), max_tokens=16, context=1024, clients=2, arrivals=3)


async def measured(gateway: Server, scenario: str, streams: int = 0) -> dict[tuple[str, str], list[float]]:
    """(case, metric) → samples; nothing may have failed."""
    server = await meet("ours", Address(gateway.base_url), timeout=60)
    sheet = Sheet()
    await Remote(server).measure(Step(scenario, streams), SMALL, sheet.page(scenario, "ours"))
    assert not sheet.failures
    return {(row.case, row.metric.name): found["ours"] for row, found in sheet.samples.items()}


async def test_streams_at_once_are_counted_together(gateway: Server) -> None:
    found = await measured(gateway, "stream", 2)
    assert {name for _, name in found} >= {metric.name for metric in (THROUGHPUT, FIRST, CLIENT)}
    assert len(found["2 streams", FIRST.name]) == 2
    assert len(found["2 streams", THROUGHPUT.name]) == 1


async def test_a_prefix_is_asked_for_cold_then_warm_one_by_one_then_all_at_once(gateway: Server) -> None:
    found = await measured(gateway, "prefix")
    first = {case: len(values) for (case, name), values in found.items() if name == FIRST.name}
    assert first == {"cold": 1, "warm": 2, "warm, 2 at once": 2}


async def test_arrivals_are_measured_idle_and_beside_a_long_answer(gateway: Server) -> None:
    found = await measured(gateway, "arrival")
    assert len(found["idle", FIRST.name]) == 3
    assert found["during a long answer", FIRST.name]


@pytest.mark.parametrize(
    ("scenario", "case"),
    [
        ("divergence", "changed in the middle"),
        ("edit", "edited in the middle"),
        ("repeat", "again"),
        ("turns", "next turn"),
    ],
)
async def test_conversations_are_asked_for_cold_and_then_warm(gateway: Server, scenario: str, case: str) -> None:
    found = await measured(gateway, scenario)
    ratio = found["cold", FIRST.name][0] / found[case, FIRST.name][0]
    assert found[case, TIMES.name] == [pytest.approx(ratio)]
    assert (case, CACHED.name) in found


async def test_running_streams_are_watched_while_a_long_prompt_is_read(gateway: Server) -> None:
    found = await measured(gateway, "stall")
    assert len(found["running streams, before", GAP.name]) == 2
    assert len(found["running streams, meanwhile", GAP.name]) == 2
    assert found["the newcomer", FIRST.name]
    assert found["the long prompt", FIRST.name]


async def test_requests_that_fail_are_counted_and_the_others_measured() -> None:
    asked = 0

    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(HEAD + says("a") + says("b") + DONE if asked % 2 else whole("503 Full", {"error": "full"}))

    sheet = Sheet()
    async with serving(reply) as address:
        desk = Desk(Asked("peer", address, "m"), SMALL, sheet.page("stream", "peer"), Writer())
        await stream(desk, 4, "4 streams")
    place = ("stream", "4 streams", "peer")
    assert (sheet.asked[place], dict(sheet.failures[place])) == (4, {"status 503: full": 2})
    counts = {row.metric: len(found["peer"]) for row, found in sheet.samples.items()}
    assert counts == {FIRST: 2, PER_TOKEN: 2, THROUGHPUT: 1, CLIENT: 1}
    assert any("ignore_eos" in note for note in sheet.notes)


async def test_a_scenario_ends_where_its_first_request_fails() -> None:
    async def reply(_: str, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("500 Broken", {}))

    sheet = Sheet()
    async with serving(reply) as address:
        server = Asked("peer", address, "m")
        await Remote(server).measure(Step("turns"), SMALL, sheet.page("turns", "peer"))
        with pytest.raises(Failed):
            await Desk(server, SMALL, sheet.page("turns", "peer"), Writer()).ask("cold", Writer().question())
    assert sheet.failures["turns", "cold", "peer"].total() == 2
    assert not sheet.samples


def test_prompts_and_answers_fit_into_the_context() -> None:
    plan = Plan(context=2048, tokens_per_word=2.0)
    assert plan.words(20_000) == (2048 - 256) / 2
    assert plan.words(100) == 50
    assert plan.room(3000) == 2048 - 256


def test_a_gap_is_measured_where_it_meets_the_time_in_question() -> None:
    answer = Answer(pieces=[(moment, b"") for moment in (0.0, 1.0, 1.5, 4.0, 4.1)])
    assert longest_gap(answer, 0.0, 1.2) == pytest.approx(1000)
    assert longest_gap(answer, 1.2, 1.6) == pytest.approx(500)
    assert longest_gap(answer, 2.0, 4.05) == pytest.approx(2500)
    # Silent ever since: that is a gap as well.
    assert longest_gap(answer, 3.0, 9.1) == pytest.approx(5000)
