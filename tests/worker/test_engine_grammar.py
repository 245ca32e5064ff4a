"""Rows that are held to a form, in one batch with rows that are not."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jsonschema
import pytest

from openai_gateway.errors import InvalidRequest
from openai_gateway.reasoning import THINK
from openai_gateway.types import Grammar
from openai_gateway.worker.answers import Endings
from openai_gateway.worker.guide import Form, Guide
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.speculation import LONGEST, Lookup
from tests.worker import schemas
from tests.worker.session import Session, alone, prompt, token_of

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LONG = 450
"""More tokens than white space can stretch such a person to, in the contexts of the tiny models."""
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def form(loaded: Loaded, source: Any, kind: Any = "json") -> Form:
    """The form of a raw completion."""
    assert loaded.prompts.forms is not None
    text = source if isinstance(source, str) else json.dumps(source)
    made = loaded.prompts.forms.of(chat=False, answer=Grammar(kind=kind, source=text))
    assert made is not None
    return made


@pytest.mark.timeout(300)
def test_500_random_schemas_eight_at_a_time_at_temperature_1_beside_a_free_row(llama: Loaded) -> None:
    session = Session(llama, max_batch=9)
    asked = {number: schemas.schema(number) for number in range(500)}
    # White space is allowed in many places, and a model that knows nothing likes it as much as anything.
    fewer = {token_of(llama, byte): -4.0 for byte in (b" ", b"\n", b"\r", b"\t")}
    for number, schema in asked.items():
        session.submit(
            number, prompt(5, number), 300, form=form(llama, schema), temperature=1.0, seed=number, logit_bias=fewer
        )
        if number % 100 == 0:
            session.submit(1000 + number, prompt(6, number), 300, temperature=1.0, seed=number)
    session.run()
    assert Counter(session.finish(number) for number in asked) == {"stop": 500}
    for number, schema in asked.items():
        validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        validator.validate(json.loads(session.text(number)))


def test_free_rows_say_beside_guided_ones_what_they_say_alone(llama: Loaded) -> None:
    session = Session(llama)
    for id in range(4):
        temperature = 1.0 if id % 2 else 0.0
        session.submit(id, prompt(5, id), 40, temperature=temperature, seed=id)
        session.submit(100 + id, prompt(6, id), LONG, form=form(llama, PERSON), temperature=temperature, seed=id)
    session.run()
    for id in range(4):
        temperature = 1.0 if id % 2 else 0.0
        assert session.generated(id) == alone(llama, prompt(5, id), 40, temperature=temperature, seed=id)
        own = alone(llama, prompt(6, id), LONG, form=form(llama, PERSON), temperature=temperature, seed=id)
        assert session.generated(100 + id) == own
        jsonschema.validate(json.loads(session.text(100 + id)), PERSON)


@pytest.mark.parametrize("shape", ["gpt_oss", "recurrent"])
def test_other_architectures_follow_as_well(shapes: dict[str, Loaded], shape: str) -> None:
    loaded = shapes[shape]
    session = Session(loaded)
    for id in range(3):
        session.submit(id, prompt(5 + id), LONG, form=form(loaded, PERSON), temperature=1.0, seed=id)
    session.run()
    for id in range(3):
        jsonschema.validate(json.loads(session.text(id)), PERSON)


def test_the_grammar_decides_the_first_token_and_the_last(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), 50, form=form(llama, "(ab){3}c", "regex"), ignore_eos=False)
    session.run()
    assert session.text(0) == "abababc"
    assert session.finish(0) == "stop"
    assert len(session.generated(0)) == 7  # nothing but the end could follow, so it was not even said


def test_the_end_may_be_said_where_the_form_is_complete_and_nowhere_else(llama: Loaded) -> None:
    """Also by an id that only this request takes for an end."""
    marker = 257
    session = Session(llama)
    for id in range(40):
        session.submit(
            id, prompt(5), 60, form=form(llama, "[ab]{3,40}", "regex"), temperature=1.0, seed=id,
            logit_bias={256: 2.0, marker: 2.0}, ignore_eos=id % 2 == 0, stop_token_ids=(marker,), logprobs=0,
        )  # fmt: skip
    session.run()
    texts = [session.text(id) for id in range(40)]
    assert all(re.fullmatch("[ab]{3,40}", text) for text in texts)
    assert {session.finish(id) for id in range(40)} == {"stop"}
    assert len(set(texts)) > 5
    ends = [session.entries(id)[-1].token for id in range(40)]
    assert "<|turn|>" in ends[::2] and "<|end|>" not in ends[::2]
    assert "<|turn|>" in ends[1::2] and "<|end|>" in ends[1::2]


def test_a_form_is_kept_by_every_choice_of_a_request_and_each_goes_its_own_way(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), LONG, form=form(llama, PERSON), temperature=1.0, seed=3, n=4)
    session.run()
    texts = [session.text(0, index) for index in range(4)]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) == 4
    again = Session(llama)
    again.submit(0, prompt(5), LONG, form=form(llama, PERSON), temperature=1.0, seed=3, n=4)
    again.submit(1, prompt(9), 30)
    again.run()
    assert [again.text(0, index) for index in range(4)] == texts


def test_log_probabilities_are_those_of_the_model_and_finite(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), 60, form=form(llama, "(xyz){5}", "regex"), logprobs=3)
    session.run()
    entries = session.entries(0)
    assert [entry.token for entry in entries] == list("xyz" * 5)
    assert all(entry.logprob is not None and math.isfinite(entry.logprob) for entry in entries)
    # What the model would have said instead is reported, too.
    assert any(top[0] != entry.token for entry in entries for top in entry.top[:1])


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 0.7, "min_p": 0.3},
        {"frequency_penalty": 2.0, "presence_penalty": 1.0},
        {"logit_bias": {65: 100.0}},
        {"temperature": 1.0, "top_p": 0.05, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_the_form_holds_under_every_way_of_sampling(llama: Loaded, sampling: dict[str, Any]) -> None:
    session = Session(llama)
    for id in range(3):
        session.submit(id, prompt(5 + id), LONG, form=form(llama, PERSON), seed=id, **sampling)
    session.run()
    for id in range(3):
        jsonschema.validate(json.loads(session.text(id)), PERSON)


def test_penalties_and_bias_choose_within_the_form(llama: Loaded) -> None:
    session = Session(llama)
    b = token_of(llama, b"b")
    session.submit(0, prompt(5), 20, form=form(llama, "[ab]{20}", "regex"), logit_bias={b: 100.0})
    session.run()
    assert session.text(0) == "b" * 20


def test_stop_strings_and_max_tokens_cut_a_form_short(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), 50, form=form(llama, "abcdef", "regex"), stop=("cd",))
    session.submit(1, prompt(5), 3, form=form(llama, "abcdef", "regex"))
    session.submit(2, prompt(5), 6, form=form(llama, "abcdef", "regex"))
    session.run()
    assert (session.text(0), session.finish(0)) == ("ab", "stop")
    assert (session.text(1), session.finish(1)) == ("abc", "length")
    assert (session.text(2), session.finish(2)) == ("abcdef", "stop")


def test_a_row_that_was_put_off_goes_on_with_its_form(llama: Loaded) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), LONG, form=form(llama, PERSON), temperature=1.0, seed=5)
    session.submit(1, prompt(5), 30)
    session.until(lambda: len(session.deltas(0)) > 5)
    (row,) = [row for row in session.engine._running.rows if row.job.id == 0]
    session.engine._put_off(row)
    session.run()
    jsonschema.validate(json.loads(session.text(0)), PERSON)
    assert session.generated(0) == alone(llama, prompt(5), LONG, form=form(llama, PERSON), temperature=1.0, seed=5)


def test_what_goes_wrong_with_one_form_fails_that_row_alone(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(llama)
    for id in range(3):
        session.submit(id, prompt(5, id), LONG, form=form(llama, PERSON), seed=id)
    session.until(lambda: len(session.deltas(2)) > 3)
    row = next(row for row in session.engine._running.rows if row.job.id == 1)
    assert row.guide is not None
    with monkeypatch.context() as broken:
        broken.setattr(row.guide, "_allowance", -1.0)
        session.run()
    assert session.errors(1) == [InvalidRequest.__name__]
    for id in (0, 2):
        assert session.generated(id) == alone(llama, prompt(5, id), LONG, form=form(llama, PERSON), seed=id)


def test_a_row_with_a_form_is_not_guessed_at(llama: Loaded) -> None:
    session = Session(llama, drafter=Lookup)
    session.submit(0, prompt(5), 100, form=form(llama, "(ab){50}", "regex"))
    session.run()
    assert session.text(0) == "ab" * 50
    assert session.engine.stats.drafted_tokens == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a guide is asked what its row may say next."""
    asked: list[int] = []
    allowed = Guide.allowed

    def counted(guide: Guide, size: int) -> Any:
        asked.append(size)
        return allowed(guide, size)

    monkeypatch.setattr(Guide, "allowed", counted)
    return asked


def test_a_guide_is_asked_once_for_each_token_and_none_of_a_batch_without(llama: Loaded, asked: list[int]) -> None:
    session = Session(llama)
    session.submit(0, prompt(5), 20)
    session.run()
    assert not asked
    session.submit(1, prompt(5), 20, form=form(llama, "a{20}", "regex"))
    session.run()
    assert len(asked) == 20


def test_a_thinking_budget_holds_in_a_batch_and_costs_nothing_before(llama: Loaded, asked: list[int]) -> None:
    assert llama.prompts.forms is not None
    encode = partial(llama.prompts.tokenizer.encode, add_special_tokens=False)
    thinker = replace(llama.prompts.forms, tags=THINK, endings=Endings.of(encode, THINK, harmony=False))
    budget = thinker.of(chat=True, start_in="analysis", budget=20)
    free = alone(llama, prompt(5), 60)
    for drafter in (None, Lookup):
        asked.clear()
        session = Session(llama, drafter=drafter)
        session.submit(0, prompt(5), 60, form=budget)
        if drafter is None:
            session.submit(1, prompt(6), 60)
        session.run()
        tokens = session.generated(0)
        assert tokens[:20] == free[:20]
        assert bytes(map(byte_of(llama), tokens[20:31])) == b"\n</think>\n\n"
        assert len(tokens) == 60
        assert len(asked) <= 14 + LONGEST  # about the end of the thought, and not before or after
        if drafter is None:
            assert session.generated(1) == alone(llama, prompt(6), 60)


def byte_of(loaded: Loaded) -> Callable[[int], int]:
    return lambda token: loaded.prompts.table.bytes_of(token)[0]
