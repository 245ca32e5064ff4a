"""Log-probabilities have the bytes that the SDK's classes give, and long ones are made in parts."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs

from openai_gateway.api.logprobs import FLOOR, Layout, all_entries, entries, in_pieces, sliced
from openai_gateway.api.stencil import encode
from openai_gateway.types import AT_ONCE, Delta, TokenLogprob

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.floats(-20_000, 0) | st.just(float("-inf"))
BYTES = st.binary(max_size=5)
TOPS = st.lists(st.tuples(TEXTS, BYTES, NUMBERS), max_size=3).map(tuple)
TOKENS = st.builds(TokenLogprob, TEXTS, BYTES, NUMBERS, TOPS)
MANY = tuple(
    TokenLogprob(chr(97 + i % 26), b"a", -i / 7, ((chr(98 + i % 25), b"b", -0.5),)) for i in range(3 * AT_ONCE + 1)
)


@given(TOKENS)
def test_an_entry_is_what_the_sdk_renders(token: TokenLogprob) -> None:
    top = [TopLogprob(token=text, bytes=list(raw), logprob=max(value, FLOOR)) for text, raw, value in token.top]
    entry = ChatCompletionTokenLogprob(
        token=token.token, bytes=list(token.raw), logprob=max(token.logprob or 0, FLOOR), top_logprobs=top
    )
    assert encode(entries([token])) == b"[%b]" % entry.model_dump_json().encode()


@given(st.lists(TOKENS, max_size=4))
def test_the_arrays_are_what_the_sdk_renders(tokens: list[TokenLogprob]) -> None:
    rendered = encode(Layout().arrays(tokens, ""))
    assert rendered == Logprobs.model_validate_json(rendered).model_dump_json().encode()
    assert list(json.loads(rendered)) == list(Logprobs.model_fields)


def test_parts_of_characters_are_told_apart_by_their_bytes() -> None:
    part = TokenLogprob(
        "\ufffd", b"\xe4", -3.0, (("\ufffd", b"\xe5", -0.2), (" \ufffd", b" \xe4", -4.0), ("ä", b"\xc3\xa4", -5.0))
    )
    arrays = Layout().arrays([part], "")
    assert arrays.tokens == [r"bytes:\xe4"]
    assert arrays.top_logprobs == [{r"bytes:\xe4": -3.0, r"bytes:\xe5": -0.2, r"bytes: \xe4": -4.0, "ä": -5.0}]
    (entry,) = entries([part])
    assert (entry.token, entry.bytes, entry.top_logprobs[0].token) == ("\ufffd", [0xE4], "\ufffd")


def test_offsets_count_a_character_where_its_last_part_ends_also_the_first_of_a_prompt() -> None:
    first, *others = (bytes([byte]) for byte in "中a".encode())
    prompt = [TokenLogprob("\ufffd", first, None), *(TokenLogprob("\ufffd", raw, -1.0) for raw in others)]
    assert Layout().arrays(prompt, "中a").text_offset == [0, 0, 0, 1]
    begin = TokenLogprob("<s>", b"<s>", None)
    assert Layout().arrays([begin, TokenLogprob("a", b"a", -1.0)], "a").text_offset == [0, 0]


@pytest.mark.anyio
async def test_a_whole_answer_is_made_in_parts_between_which_others_have_their_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await all_entries(MANY) == encode(entries(MANY))
    assert turns >= 3
    before = turns
    assert await Layout().all_arrays([(), *in_pieces(MANY)], "") == encode(Layout().arrays(MANY, ""))
    assert turns - before >= 3
    assert await all_entries(()) == b"[]"
    assert await Layout().all_arrays([], "") == encode(Layout().arrays((), ""))
    task.cancel()


def test_a_long_delta_is_sliced_with_its_text_first_and_its_end_last() -> None:
    first, *middle, last = sliced(Delta(2, "text", "why", MANY, 9, finish="stop"))
    assert (first.content, first.reasoning, first.finish) == ("text", "why", None)
    assert all((part.content, part.reasoning, part.finish) == ("", "", None) for part in middle)
    assert (last.content, last.finish) == ("", "stop")
    assert sum((part.logprobs for part in (first, *middle, last)), ()) == MANY
    assert max(len(part.logprobs) for part in (first, *middle, last)) == AT_ONCE
    assert list(sliced(Delta(0))) == [Delta(0)]
