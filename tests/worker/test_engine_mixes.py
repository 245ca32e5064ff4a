"""Whatever else is in the engine, each row gets the tokens that it gets alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from openai_gateway.worker.load import Loaded
from openai_gateway.worker.speculation import Lookup
from tests.worker.session import MEGABYTES, SHAPES, Session, prompt

REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    tokens: list[int]
    max_tokens: int
    settings: dict[str, Any]
    cancelled: bool

    @property
    def choices(self) -> int:
        return int(self.settings.get("n", 1))


def asked(rng: random.Random, letters: str) -> Asked:
    settings: dict[str, Any] = {"seed": rng.randrange(100)}
    if rng.random() < 0.5:
        settings |= {
            "temperature": rng.choice([0.5, 1.0, 1.3]),
            "top_k": rng.choice([0, 0, 5, 40]),
            "top_p": rng.choice([1.0, 0.9, 0.5]),
            "min_p": rng.choice([0.0, 0.0, 0.05]),
        }
    if rng.random() < 0.3:
        settings |= {"frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": {65: 2.0}}
    if rng.random() < 0.3:
        settings["logprobs"] = rng.choice([0, 2, 5])
    if rng.random() < 0.3:
        settings["stop"] = tuple(rng.choices(letters, k=2))
    if rng.random() < 0.2:
        settings["ignore_eos"] = False
    if rng.random() < 0.3:
        settings["n"] = rng.choice([2, 3])
    stem = prompt(rng.choice([33, 70]), rng.randrange(2)) if rng.random() < 0.6 else []
    tokens = stem[: rng.randrange(1, 71)] + prompt(rng.randrange(1, 40), rng.randrange(1000))
    return Asked(tokens, rng.choice([1, 2, 5, 12, 40]), settings, rng.random() < 0.15)


def engine(rng: random.Random, loaded: Loaded) -> Session:
    """One of any size; for all requests to be served, there is room for the largest of them."""
    tight = loaded.footprint.batch(3, 160) + rng.randrange(loaded.footprint.batch(1, 160))
    return Session(
        loaded,
        max_batch=rng.choice([3, 5, 16]),
        prefill_step=rng.choice([5, 16, 64]),
        prefix_bytes=rng.choice([0, 20_000, MEGABYTES]),
        shared=rng.random() < 0.5,
        room=rng.choice([1 << 62, tight]),
        drafter=rng.choice([None, Lookup]),
    )


def answers(session: Session, id: int, request: Asked) -> list[Any]:
    """Of each choice its tokens, its text, why it ended, and what log-probabilities stand for."""
    return [
        (
            session.generated(id, index),
            session.text(id, index),
            session.finish(id, index),
            [(entry.raw, len(entry.top)) for entry in session.entries(id, index)],
        )
        for index in range(request.choices)
    ]


def run(rng: random.Random, session: Session, requests: list[Asked]) -> None:
    for id, request in enumerate(requests):
        owner, priority = rng.choice(["one", "other"]), rng.choice([0, 0, 1])
        session.submit(id, request.tokens, request.max_tokens, owner=owner, priority=priority, **request.settings)
        for _ in range(rng.choice([0, 0, 1, 5, 30])):
            session.step()
        for earlier in range(id + 1):
            if requests[earlier].cancelled and rng.random() < 0.3:
                session.engine.cancel(earlier)
    session.run()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_of_a_random_mix_gets_what_it_gets_alone(
    shapes: dict[str, Loaded], shape: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(f"{shape} {seed}")
    loaded = shapes[shape]
    requests = [asked(rng, "abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(REQUESTS)]
    session = engine(rng, loaded)
    run(rng, session, requests)
    for id, request in enumerate(requests):
        assert not session.errors(id)
        if not request.cancelled:
            cold = Session(loaded)
            cold.submit(id, request.tokens, request.max_tokens, **request.settings)
            cold.run()
            assert answers(session, id, request) == answers(cold, id, request), (id, request)
    assert not session.rows
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
