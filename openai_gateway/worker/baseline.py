"""What this machine can do without any server: mlx-lm's batch generator, and nothing around it.

`python -m openai_gateway.worker.baseline MODEL --streams 8 --batch 64 --max-tokens 128` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from openai_gateway.types import ModelSpec
from openai_gateway.worker.load import keep_wired_limit, load


def generate(model: Any, prompts: list[list[int]], max_tokens: int, *, batch: int, prefill_step: int) -> float:
    """Seconds until each of the prompts has its `max_tokens`, greedily; `batch` of them are decoded together."""
    started = time.perf_counter()
    generator = BatchGenerator(
        model,
        completion_batch_size=batch,
        prefill_batch_size=batch,
        prefill_step_size=prefill_step,
        stream=mx.default_stream(mx.default_device()),
    )
    generator.insert(prompts, [max_tokens] * len(prompts))
    left = len(prompts)
    while left:
        _, responses = generator.next()
        left -= sum(response.finish_reason is not None for response in responses)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mlx-lm's plain batch generator.")
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("--streams", type=int, default=8, help="prompts at once")
    parser.add_argument("--batch", type=int, default=64, help="rows that are decoded together")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens that each of them gets")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="length of the prompts")
    parser.add_argument("--prefill-step", type=int, default=512, help="prompt tokens read at once")
    arguments = parser.parse_args()

    keep_wired_limit()
    loaded = load(ModelSpec(id="baseline", path=arguments.model))
    size = min(loaded.info.vocab_size, 1000)
    prompts = [[random.randrange(size) for _ in range(arguments.prompt_tokens)] for _ in range(arguments.streams)]
    options = {"batch": arguments.batch, "prefill_step": arguments.prefill_step}
    generate(loaded.model, prompts, 4, **options)  # what only the first steps cost
    seconds = generate(loaded.model, prompts, arguments.max_tokens, **options)
    tokens = arguments.streams * arguments.max_tokens
    print(json.dumps({"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}))


if __name__ == "__main__":
    main()
