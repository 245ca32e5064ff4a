from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from openai_gateway.types import ModelSpec
from openai_gateway.worker.bench_model import as_float32, write
from openai_gateway.worker.load import load
from tests.worker import tiny


def test_a_million_parameters_that_say_words_and_do_not_stop(tmp_path: Path) -> None:
    write(tmp_path / "model")
    loaded = load(ModelSpec(id="bench", path=str(tmp_path / "model")))
    assert 900_000 < (loaded.info.parameters or 0) < 1_100_000
    assert loaded.info.context_length == 32_768
    assert loaded.info.chat_template
    logits = loaded.model(mx.random.randint(0, 4096, (4, 64)))
    tokenizer = loaded.prompts.tokenizer
    chosen: Any = mx.argmax(logits, axis=-1).flatten().tolist()
    said = set(chosen)
    assert len(said) > 20, "what it says depends on what it read"
    assert not said & set(tokenizer.eos_token_ids)
    assert all(tokenizer.decode([token]).strip().isascii() for token in said)


def test_the_same_model_is_written_every_time(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    a, b = (mx.load(str(tmp_path / name / "model.safetensors")) for name in "ab")
    assert isinstance(a, dict) and isinstance(b, dict)
    assert all(mx.array_equal(a[name], b[name]) for name in a)
    assert (tmp_path / "a/tokenizer.json").read_text() == (tmp_path / "b/tokenizer.json").read_text()


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="only a CPU needs it")
def test_a_copy_in_float32_is_the_same_model(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source", tiny.LLAMA, dtype=mx.bfloat16)
    copy = as_float32(source, tmp_path / "copy")
    before, after = (load(ModelSpec(id="x", path=str(folder))).model for folder in (source, copy))
    stored = mx.load(str(copy / "model.safetensors"))
    assert isinstance(stored, dict)
    assert {weight.dtype for weight in stored.values()} == {mx.float32}
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(
        tree_flatten(before.parameters()), tree_flatten(after.parameters()), strict=True))  # fmt: skip
    assert {file.name for file in copy.iterdir()} == {file.name for file in source.iterdir()}


def test_it_is_made_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "openai_gateway.worker.bench_model", str(tmp_path / "model")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{tmp_path / 'model'}\n"
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps({"touched": True}))
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == said
    assert json.loads(config.read_text()) == {"touched": True}
