from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openai_gateway.types import ModelSpec
from openai_gateway.worker.baseline import generate
from openai_gateway.worker.load import load
from tests.worker import tiny


class Counting:
    """A model that notes how many rows it was given at a time, when it decodes."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.rows: list[int] = []

    def __call__(self, tokens: object, **options: object) -> object:
        if tokens.shape[1] == 1:  # type: ignore[attr-defined]
            self.rows.append(tokens.shape[0])  # type: ignore[attr-defined]
        return self.model(tokens, **options)  # type: ignore[operator]

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


def test_every_row_gets_all_its_tokens_in_batches_of_the_given_size(tmp_path: Path) -> None:
    model = Counting(load(ModelSpec(id="x", path=str(tiny.save(tmp_path / "m", tiny.LLAMA)))).model)
    assert generate(model, [[1, 2, 3]] * 5, 6, batch=3, prefill_step=16) > 0
    assert max(model.rows) == 3
    assert sum(model.rows) >= 5 * 6


def test_it_prints_json(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m", tiny.LLAMA)
    options = ["--streams", "3", "--max-tokens", "5", "--batch", "2"]
    said = subprocess.run(
        [sys.executable, "-m", "openai_gateway.worker.baseline", str(folder), *options],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = json.loads(said)
    assert found["tokens"] == 15
    assert found["tokens_per_second"] == 15 / found["seconds"]
