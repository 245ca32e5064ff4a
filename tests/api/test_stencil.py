"""Chunks that are filled in have the very bytes that the SDK's classes give."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.chat import chat_completion_chunk as part
from pydantic import BaseModel

from openai_gateway.api.stencil import HOLE, Stencil, encode

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


class Holder(BaseModel):
    text: str
    number: float = 0.0


def chunk(content: str) -> bytes:
    """A chunk with this content, as pydantic writes it."""
    choice = part.Choice(index=0, delta=part.ChoiceDelta(content=content), finish_reason=None, logprobs=None)
    whole = ChatCompletionChunk(
        id="chatcmpl-1", object="chat.completion.chunk", created=1, model='a "model" \\ ∞', choices=[choice]
    )
    return whole.model_dump_json(exclude_unset=True).encode()


@given(TEXTS)
def test_a_filled_chunk_is_what_the_sdk_renders(content: str) -> None:
    assert Stencil(chunk(HOLE)).filled(encode(content)) == chunk(content)


def test_every_character_is_escaped_as_pydantic_does() -> None:
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert b'{"text":%b}' % encode(text) == Holder(text=text).model_dump_json(exclude_unset=True).encode()


@given(st.floats(-9999, 0))
def test_numbers_are_written_as_pydantic_does(number: float) -> None:
    assert b'{"text":"","number":%b}' % encode(number) == Holder(text="", number=number).model_dump_json().encode()


def test_holes_are_filled_from_left_to_right_and_may_be_none() -> None:
    assert Stencil(f'{{"a":"{HOLE}","b":["{HOLE}","\\u0000"]}}'.encode()).filled(b"1", b"[2]") == (
        b'{"a":1,"b":[[2],"\\u0000"]}'
    )
    assert Stencil(b"{}").filled() == b"{}"
