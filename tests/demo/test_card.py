"""The model card says what is there."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import pytest
from safetensors import safe_open

from openai_gateway.demo.training import cases, evaluate
from openai_gateway.demo.training.facts import facts
from openai_gateway.demo.training.tokenizer import SPECIAL_TOKENS

FOLDER = evaluate.CARD.parent
CONFIG = json.loads((FOLDER / "config.json").read_text())
CARD = evaluate.CARD.read_text()
MOST_PARAMETERS, MOST_BYTES = 4_000_000, 10_000_000


def row(name: str) -> str:
    """What the card's first table says of `name`."""
    found = re.search(rf"^\| {name} \| (.*) \|$", CARD, re.MULTILINE)
    assert found, name
    return found[1]


def measured() -> dict[str, list[str]]:
    """The rows of the table of results."""
    table = CARD.partition(evaluate.BEGIN)[2].partition(evaluate.END)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {name: cells for name, *cells in lines[2:]}


def test_the_model_is_as_small_as_it_must_be() -> None:
    with safe_open(str(FOLDER / "model.safetensors"), "numpy") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    count = sum(math.prod(shape) for shape in shapes)
    assert count <= MOST_PARAMETERS
    assert row("parameters") == f"{count:,}"
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= MOST_BYTES


def test_the_card_describes_the_configuration() -> None:
    assert row("layers").startswith(
        f"{CONFIG['num_hidden_layers']}: sliding-window ({CONFIG['sliding_window']} tokens)"
    )
    assert row("hidden size") == str(CONFIG["hidden_size"])
    assert row("attention").startswith(f"{CONFIG['num_attention_heads']} heads of {CONFIG['head_dim']}")
    experts = f"{CONFIG['num_local_experts']} per layer, {CONFIG['num_experts_per_tok']} per token"
    assert row("experts") == f"{experts}, inner size {CONFIG['intermediate_size']}"
    assert row("vocabulary").startswith(f"{CONFIG['vocab_size']} byte-level BPE tokens, {len(SPECIAL_TOKENS)} of them")
    assert f"{len(facts())} facts" in CARD


def test_the_card_has_a_row_for_every_measurement() -> None:
    asked = Counter(job.row for job in evaluate.jobs())
    found = {name: int(cells[0]) for name, cells in measured().items()}
    assert {name: count for name, count in found.items() if not name.startswith("values of ")} == asked
    for name in OBJECTS:
        assert found[f"values of {name}"] >= 2 * found[name]


OBJECTS = {job.row for job in evaluate.jobs() if job.case.skill == "objects"}
TARGETS = {f"values of {job.row}" if job.row in OBJECTS else job.row for job in evaluate.jobs() if job.target}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_was_measured_reaches_its_target(name: str) -> None:
    _, right, target, _ = measured()[name]
    assert float(right.strip("%")) >= float(target.strip("%"))


def test_the_weather_in_paris_is_among_the_measured_calls() -> None:
    assert cases.call_cases(1)[0].messages[-1]["content"] == "What is the weather in Paris?"
