from __future__ import annotations

import json
import queue
import threading
from typing import Any

import pytest

from openai_gateway.types import ChatRequest, CompletionRequest, Grammar, Message, Sampling
from openai_gateway.worker import wire
from openai_gateway.worker.arrivals import Arrivals, Item, Lanes, Refused
from openai_gateway.worker.engine import INTERNAL, failed
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.prompt import Job, Prompts

LARGE = json.dumps({"properties": {f"p{n}": {"type": "integer"} for n in range(1500)}})
SMALL = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})


def asked(id: int, *, schema: str | None = None, owner: str = "") -> wire.Generate:
    grammar = Grammar(kind="json", source=schema, param="response_format") if schema is not None else None
    request = CompletionRequest(model="m", prompt="x", grammar=grammar, owner=owner, sampling=Sampling(max_tokens=4))
    return wire.Generate(id, request)


def arriving(arrivals: Arrivals, count: int) -> list[Item]:
    return [arrivals.inbox.get(timeout=60) for _ in range(count)]


def ids(items: list[Item]) -> list[int]:
    return [item.id for item in items]


def test_requests_become_jobs_in_the_order_in_which_they_came(llama: Loaded) -> None:
    arrivals = Arrivals()
    for id in range(20):
        arrivals.add(asked(id))
    arrivals.prepare(llama.prompts)
    items = arriving(arrivals, 20)
    assert ids(items) == list(range(20)) and all(isinstance(item, Job) for item in items)


def test_owners_take_turns_with_the_one_thread_that_makes_prompts(llama: Loaded) -> None:
    arrivals = Arrivals()
    for id in range(3):
        arrivals.add(asked(id, owner="a"))
    for id in (10, 11):
        arrivals.add(asked(id, owner="b"))
    arrivals.add(asked(20, owner="c"))
    arrivals.cancel(wire.Cancel(1))
    arrivals.prepare(llama.prompts)
    assert ids(arriving(arrivals, 5)) == [0, 10, 20, 11, 2]


def test_a_large_form_holds_up_neither_plain_requests_nor_the_forms_of_other_owners(llama: Loaded) -> None:
    arrivals = Arrivals()
    for id in range(4):
        arrivals.add(asked(id, schema=LARGE.replace("p1", f"q{id}"), owner="a"))
    arrivals.add(asked(10))
    arrivals.add(asked(11, schema=SMALL, owner="b"))
    arrivals.prepare(llama.prompts)
    order = ids(arriving(arrivals, 6))
    assert order[0] == 10
    assert order.index(11) < order.index(2)
    assert [id for id in order if id < 10] == [0, 1, 2, 3]


def test_a_request_that_is_cancelled_before_its_job_is_made_is_never_heard_of(llama: Loaded) -> None:
    arrivals = Arrivals()
    arrivals.add(asked(1, schema=LARGE))
    arrivals.add(asked(2))
    arrivals.cancel(wire.Cancel(2))
    arrivals.prepare(llama.prompts)
    arrivals.add(asked(3))
    assert ids(arriving(arrivals, 1)) == [3]
    arrivals.cancel(wire.Cancel(1))
    arrivals.add(asked(4, schema=SMALL))
    assert ids(arriving(arrivals, 1)) == [4]


def test_a_request_that_is_cancelled_later_is_left_to_the_engine_behind_its_job(llama: Loaded) -> None:
    arrivals = Arrivals()
    arrivals.prepare(llama.prompts)
    arrivals.add(asked(1))
    job = arrivals.inbox.get(timeout=60)
    arrivals.cancel(wire.Cancel(1))
    assert isinstance(job, Job) and arrivals.inbox.get(timeout=60) == wire.Cancel(1)


def test_what_is_wrong_with_a_form_is_said_of_its_own_request(llama: Loaded) -> None:
    arrivals = Arrivals()
    arrivals.prepare(llama.prompts)
    arrivals.add(asked(1, schema='{"type": "object", "required": ["a"], "additionalProperties": false}'))
    arrivals.add(asked(2, schema=SMALL))
    refused, job = arriving(arrivals, 2)
    assert isinstance(refused, Refused) and refused.id == 1 and refused.reason.param == "response_format"
    assert isinstance(job, Job) and job.form is not None


def test_a_failure_that_nobody_expected_is_that_of_its_request_alone(llama: Loaded) -> None:
    arrivals = Arrivals()
    arrivals.prepare(llama.prompts)
    odd = ChatRequest(model="m", messages=(Message("user", None, tool_calls=(None,)),))  # type: ignore[arg-type]
    arrivals.add(wire.Generate(1, odd))
    arrivals.add(asked(2))
    refused, job = arriving(arrivals, 2)
    assert isinstance(refused, Refused) and refused.reason == failed(INTERNAL)
    assert ids([job]) == [2]


class Panic(BaseException):
    """As what libraries in Rust panic with."""


@pytest.mark.parametrize("step", ["draft", "held"])
def test_a_panic_is_the_failure_of_its_request_and_ends_no_thread(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    work = getattr(Prompts, step)
    begun: list[str] = []

    def failing(*args: Any) -> Any:
        begun.append(step)
        if len(begun) == 1:
            raise Panic
        return work(*args)

    monkeypatch.setattr(Prompts, step, failing)
    arrivals = Arrivals()
    for id in range(3):
        arrivals.add(asked(id, schema=SMALL, owner="a"))
    arrivals.prepare(llama.prompts)
    refused, *jobs = arriving(arrivals, 3)
    assert isinstance(refused, Refused) and refused.reason == failed(INTERNAL)
    assert ids(jobs) == [1, 2] and all(isinstance(job, Job) for job in jobs)


def test_what_fails_in_a_lane_does_not_hold_up_what_is_behind_it() -> None:
    lanes, done = Lanes(threads=1), queue.SimpleQueue[str]()

    def failing() -> None:
        raise Panic

    lanes.submit("a", failing)
    lanes.submit("a", lambda: done.put("a"))
    assert done.get(timeout=30) == "a"


def test_one_owner_has_one_thread_and_others_go_on_beside_it() -> None:
    lanes, done = Lanes(threads=2), queue.SimpleQueue[str]()
    gate = threading.Event()

    def first() -> None:
        gate.wait(30)
        done.put("a1")

    lanes.submit("a", first)
    lanes.submit("a", lambda: done.put("a2"))
    lanes.submit("b", lambda: done.put("b1"))
    lanes.submit("b", lambda: done.put("b2"))
    assert [done.get(timeout=30) for _ in range(2)] == ["b1", "b2"]
    gate.set()
    assert [done.get(timeout=30) for _ in range(2)] == ["a1", "a2"]
    lanes.submit("a", lambda: done.put("a3"))
    assert done.get(timeout=30) == "a3"
