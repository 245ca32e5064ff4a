"""A worker whose device fails at a prompt of 30 tokens: `python -m tests.worker.failing FD MODEL LOGS`."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from openai_gateway import logs
from openai_gateway.worker.__main__ import main
from openai_gateway.worker.model import Forward
from tests.worker.test_fatal import NO_MEMORY

forward = Forward.__call__


def fail(model: Forward, tokens: mx.array, cache: Any, **more: Any) -> mx.array:
    if tokens.shape[1] == 30:
        raise RuntimeError(NO_MEMORY)
    return forward(model, tokens, cache, **more)


if __name__ == "__main__":
    logs.configure(logs.Logs.read(sys.argv[3]))
    with patch.object(Forward, "__call__", fail):
        main(int(sys.argv[1]))
