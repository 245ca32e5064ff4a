from __future__ import annotations

import pytest

from openai_gateway.address import Address
from openai_gateway.bench.compare import Local
from openai_gateway.bench.desk import Plan
from openai_gateway.bench.session import Place, Session
from openai_gateway.bench.sheet import THROUGHPUT
from tests.support import Server


def test_a_server_is_named_with_its_model_and_its_key() -> None:
    place = Place.parse("peer=https://:s%40cret@host:81/v1#org/model")
    assert place == Place("peer", Address("https://host:81/v1", "s@cret"), "org/model")
    assert Place.parse("b=http://localhost:1/v1") == Place("b", Address("http://localhost:1/v1"))


@pytest.mark.parametrize("text", ["http://localhost:1/v1", "=http://x/v1", "peer=localhost:1"])
def test_what_names_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="http://localhost"):
        Place.parse(text)


def test_names_are_told_apart_and_scenarios_known() -> None:
    place = Place("plain", Address("http://x/v1"))
    with pytest.raises(ValueError, match="`plain`"):
        Session((place, place))
    with pytest.raises(ValueError, match="`plain`"):
        Session((place,), Local("tiny"))
    with pytest.raises(ValueError, match=r"no scenario `sprint`; there are stream, .*stall"):
        Session((place,), scenarios=("stream", "sprint"))
    with pytest.raises(ValueError, match="nothing to measure"):
        Session((place,), plan=Plan(streams=(0,)))


@pytest.mark.anyio
async def test_servers_are_measured_beside_each_other(gateway: Server) -> None:
    places = tuple(Place(name, Address(gateway.base_url)) for name in ("a", "b"))
    plan = Plan(streams=(1, 2), max_tokens=8)
    results = await Session(places, scenarios=("stream",), plan=plan, rounds=2).measure(lambda _, __: None)
    assert results.names == ["a", "b"]
    throughput = {row.case: found for row, found in results.sheet.samples.items() if row.metric == THROUGHPUT}
    assert {case: [len(found[name]) for name in "ab"] for case, found in throughput.items()} == {
        "1 stream": [2, 2],
        "2 streams": [2, 2],
    }
    assert results.plan.context == results.servers[0]["context_length"] > 1024
