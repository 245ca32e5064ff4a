"""Models to measure with: `python -m openai_gateway.worker.bench_model FOLDER [--like FOLDER]` prints where one is.

By default it has a million random weights, so small that what a server adds to them shows. It must say text that can be
read off a stream, and never end by itself: otherwise servers that do not know `ignore_eos` could not be compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONFIG: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32_768, "tie_word_embeddings": True, "vocab_size": 4096,
}  # fmt: skip
END, TURN = "<|end|>", "<|turn|>"
CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)
SYLLABLES = [first + vowel for first, vowel in product("bdfghklmnprstvwz", "aeiou")]


def write(folder: Path) -> None:
    """Write a model as mlx-lm reads them: weights from a fixed seed, a tokenizer, and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _write_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    config = CONFIG | {"vocab_size": size, "eos_token_id": tokenizer.token_to_id(END)}
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    mx.random.seed(0)
    # Large enough that what it says depends on what it read.
    model.apply(lambda weight: mx.random.normal(weight.shape, scale=3 * weight.shape[-1] ** -0.5))
    table = model.model.embed_tokens
    # A row of zeros has the logit zero, and is never the largest of thousands.
    speakable = mx.array([_is_word(tokenizer, id) for id in range(size)])
    table.weight = mx.where(speakable[:, None], table.weight, 0)
    _save(model, folder)
    (folder / "config.json").write_text(json.dumps(config))


def as_float32(source: Path, folder: Path) -> Path:
    """The model at `source` as a CPU computes it fast; as it is where the device is no CPU.

    The gateway converts a model when it loads it. The others shall not be slower only for not doing so.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return source
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            weights: Any = mx.load(str(file))
            floats = {n: w.astype(mx.float32) for n, w in weights.items() if mx.issubdtype(w.dtype, mx.floating)}
            mx.save_safetensors(str(folder / file.name), weights | floats, {"format": "mlx"})
        elif file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    return folder


def _save(model: nn.Module, folder: Path) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})


def _write_tokenizer(folder: Path) -> Tokenizer:
    """Byte-level pairs, as most models have them, learnt from made-up words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in (END, TURN)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((f" {a}{b}" for a, b in product(SYLLABLES, repeat=2)), trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return backend


def _is_word(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is more than a byte, and no special one."""
    return token >= 2 and len(tokenizer.id_to_token(token) or "") > 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model to measure with, unless it is there, and say where.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--like", type=Path, help="a model to convert to float32 where that is faster")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if not (folder / "complete").exists():
        if arguments.like is None:
            write(folder)
        else:
            folder = as_float32(arguments.like, folder)
        if folder == arguments.folder:
            (folder / "complete").touch()
    print(folder.resolve())


if __name__ == "__main__":
    main()
