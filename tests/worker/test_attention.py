from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from openai_gateway.worker import attention
from openai_gateway.worker.attention import MLX, WORTH, attends
from openai_gateway.worker.load import Loaded
from openai_gateway.worker.model import Forward
from tests.worker import tiny
from tests.worker.session import prompt

Mask = Callable[[int, int], mx.array | str | None]


def causal(length: int, width: int) -> mx.array:
    return mx.arange(width - length, width)[:, None] >= mx.arange(width)


def window(length: int, width: int) -> mx.array:
    return causal(length, width) & (mx.arange(width - length, width)[:, None] < mx.arange(width) + 7)


def padded(length: int, width: int) -> mx.array:
    """Each of two rows begins where its padding ends; so the first queries of the second row see nothing."""
    return causal(length, width) & (mx.arange(width) >= mx.array([3, width - length + 2])[:, None, None, None])


def per_head(length: int, width: int) -> mx.array:
    slopes = mx.array([0.5, 0.1, 0.02, 0.7])[:, None, None]
    return mx.where(causal(length, width), -slopes * mx.arange(width)[::-1], -mx.inf)[None]


MASKS: dict[str, Mask] = {
    "none": lambda *_: None,
    "causal": lambda *_: "causal",
    "bools": causal,
    "window": window,
    "padding": padded,
    "floats of each head": per_head,
    "floats": lambda length, width: mx.random.normal((length, width)),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The queries of each block."""
    blocks: list[int] = []
    mean = attention.mean

    def count(queries: Any, *more: Any) -> Any:
        blocks.append(queries.shape[1])
        return mean(queries, *more)

    monkeypatch.setattr(attention, "mean", count)
    return blocks


def arrays(
    length: int, width: int, *, heads: int = 4, groups: int = 2, size: int = 8, dtype: mx.Dtype = mx.float32
) -> list[mx.array]:
    mx.random.seed(1)
    shapes = [(2, heads, length, size), (2, groups, width, size), (2, groups, width, size + 4)]
    return [mx.random.normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("length", "width"), [(90, 90), (33, 300), (7, 800)])
@pytest.mark.parametrize("block", [2**19, 1])
def test_it_is_the_attention_of_mlx(
    length: int, width: int, mask: str, sinks: bool, block: int, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    more: dict[str, Any] = {
        "scale": 0.3,
        "mask": MASKS[mask](length, width),
        "sinks": mx.array([2.0, -1, 0, 1]) if sinks else None,
    }
    given = arrays(length, width)
    found, expected = attention.attention(*given, **more), MLX(*given, **more)
    if mask == "padding":  # of what sees nothing, nothing is to be expected
        assert mx.isfinite(found).all()
        found, expected = (x[:, :, 3:] for x in (found, expected))
    assert found.shape == expected.shape
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert max(counted) == (length if block > 1 else min(length, attention.FEWEST // 2))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 2)])
def test_heads_of_queries_share_heads_of_keys(heads: int, groups: int, counted: list[int]) -> None:
    given = arrays(150, 150, heads=heads, groups=groups)
    found = attention.attention(*given, scale=0.3, mask="causal")
    assert mx.allclose(found, MLX(*given, scale=0.3, mask="causal"), rtol=1e-4, atol=1e-5)
    assert len(counted) == 2 * groups


def test_what_comes_in_16_bits_goes_in_16_bits(counted: list[int]) -> None:
    given = arrays(100, 100, dtype=mx.bfloat16)
    found = attention.attention(*given, scale=0.3, mask="causal")
    assert found.dtype == mx.bfloat16
    assert mx.allclose(found, MLX(*given, scale=0.3, mask="causal"), atol=0.02)
    assert counted


def test_a_window_costs_no_more_than_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 1)
    seen: list[int] = []
    mean = attention.mean

    def count(queries: Any, keys: Any, *more: Any) -> Any:
        seen.append(len(keys))
        return mean(queries, keys, *more)

    monkeypatch.setattr(attention, "mean", count)
    attention.attention(*arrays(160, 400), scale=1.0, mask=window(160, 400))
    assert set(seen) == {attention.FEWEST // 2 + 6}


@pytest.mark.parametrize("more", [{"mask": "causal"}, {"force_fused": False}])
def test_what_is_small_or_asks_for_more_is_left_to_mlx(more: dict[str, Any], counted: list[int]) -> None:
    length = 150 if "force_fused" in more else 40
    assert (2 * length * length < WORTH) is (length == 40)
    given = arrays(length, length)
    assert mx.array_equal(attention.attention(*given, scale=1.0, **more), MLX(*given, scale=1.0, **more))
    assert not counted


# Passes of a model


GEMMA2 = {
    "model_type": "gemma2", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 16,
}  # fmt: skip
SHARED_KEYS = {
    "model_type": "gemma4_text", "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16,
    "vocab_size_per_layer_input": 258, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 2,
    "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "all_of_it", "needed"),
    [
        (tiny.LLAMA, 2, 1),
        (tiny.QWEN3_NEXT, 1, 0),
        (tiny.JAMBA | {"attn_layer_offset": 0}, 1, 1),  # the state behind it needs it
        (SHARED_KEYS, 4, 1),  # of the second layer, and those without keys of their own
    ],
    ids=["attention", "states before", "states behind", "shared keys"],
)
def test_to_fill_a_cache_the_last_attention_is_not_computed(
    config: dict[str, Any], all_of_it: int, needed: int, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "WORTH", 1)
    model = tiny.build({"vocab_size": 258, **config})
    forward = Forward(model)
    caches, attended = [], []
    for filling in (False, True):
        cache = make_prompt_cache(model)
        forward(mx.array([prompt(50)]), cache, filling=filling)
        mx.eval([layer.state for layer in cache])
        caches.append(cache)
        attended.append(len(counted))
        counted.clear()
    assert attended == [all_of_it, needed]
    one, other = (forward(mx.array([[1, 2]]), cache) for cache in caches)
    assert mx.allclose(one, other, atol=1e-5)


def test_a_pass_that_was_to_fill_a_cache_has_right_logits_nevertheless(llama: Loaded) -> None:
    forward = Forward(llama.model)
    one, other = (forward(mx.array([prompt(100)]), llama.make_cache(), filling=filling) for filling in (False, True))
    assert mx.allclose(one, other, atol=1e-4)


def test_nothing_else_attends_by_numpy(llama: Loaded, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH", 1)
    forward = Forward(llama.model)
    with pytest.raises(AttributeError):
        forward(mx.array([[1, 2]]), [object(), object()])
    llama.model(mx.array([[1, 2]]), cache=llama.make_cache())
    assert mx.fast.scaled_dot_product_attention is MLX
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    Forward(llama.model)(mx.array([[1, 2]]), llama.make_cache())
    assert not counted


@pytest.mark.parametrize(
    ("config", "does"),
    [(tiny.LLAMA, True), (tiny.QWEN3_NEXT, True), (tiny.RWKV7, False), (GEMMA2, False)],
    ids=["llama", "qwen3_next", "rwkv7", "gemma2"],
)
def test_a_model_that_puts_its_scores_together_itself_is_known(config: dict[str, Any], does: bool) -> None:
    model = tiny.build({"vocab_size": 258, **config})
    assert attends(model, lambda: make_prompt_cache(model)) is does
    assert mx.fast.scaled_dot_product_attention is MLX
