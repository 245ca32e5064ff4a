from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import NewlineTokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openai_gateway.worker.detokenize import TokenTable

LINES = ["Hello world, the quick brown fox.", "Grüße aus Köln: 12 € 日本語 und 👍🏽 emoji", "  indented\n\n\ttext"]


def byte_level(decoder: Any = None, cls: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast) -> TokenizerWrapper:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoder or decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<｜end▁of▁turn｜>", special=True)])
    backend.add_tokens([AddedToken(word, special=False) for word in ("<think>", "two words", "<n>")])
    return TokenizerWrapper(cls(tokenizer_object=backend))


def sentencepiece(*, strips: bool) -> TokenizerWrapper:
    """Llama 2's arrangement: the mark for a space, bytes as <0x..>, one space put before every text."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁wor", "ld", "Hello", "ü"]
    pieces += list("abcdefghijklmnopqrstuvwxyz.,")
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strips)
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<end▁of▁turn>", special=True)])
    backend.add_tokens([AddedToken("▁▁▁", special=False)])
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend))


def wordpiece() -> TokenizerWrapper:
    words = ["[UNK]", "un", "##believ", "##able", "story", "new"]
    backend = Tokenizer(models.WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend))


BYTES = byte_level()
TABLE = TokenTable(BYTES)


def decoded(tokenizer: TokenizerWrapper, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def streamed(table: TokenTable, tokens: list[int], *, trim: bool = True) -> str:
    stream = table.stream(trim_leading_space=trim)
    return "".join([*map(stream.push, tokens), stream.finish()])


def ids(tokenizer: TokenizerWrapper, *pieces: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]


def byte_tokens(text: str) -> list[int]:
    """`text` in tokens of one byte each."""
    of = {TABLE.bytes_of(id_): id_ for id_ in range(len(TABLE)) if len(TABLE.bytes_of(id_)) == 1}
    return [of[bytes([byte])] for byte in text.encode()]


@given(st.lists(st.integers(0, len(TABLE) + 3)))
def test_any_tokens_streamed_read_as_the_tokenizer_decodes_them(tokens: list[int]) -> None:
    assert streamed(TABLE, tokens) == decoded(BYTES, tokens)


def test_a_byte_level_decoder_inside_a_sequence_is_recognised() -> None:
    tokenizer = byte_level(decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]))
    tokens = tokenizer.encode("12 € Köln")
    table = TokenTable(tokenizer)
    assert streamed(table, tokens) == "12 € Köln"
    assert b"".join(map(table.bytes_of, tokens)) == "12 € Köln".encode()


@given(st.text())
def test_a_character_comes_out_whole_and_with_its_last_byte(text: str) -> None:
    stream = TABLE.stream(trim_leading_space=True)
    raw = text.encode()
    out = ""
    for n, token in enumerate(byte_tokens(text), 1):
        out += stream.push(token)
        assert out == raw[:n].decode("utf-8", "ignore")
    assert stream.finish() == ""


def test_an_incomplete_character_shows_only_at_the_end() -> None:
    stream = TABLE.stream(trim_leading_space=True)
    *first, _last = byte_tokens("👍")
    assert [stream.push(token) for token in first] == ["", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_a_byte_level_stream_keeps_the_leading_space() -> None:
    tokens = BYTES.encode(" world")
    assert streamed(TABLE, tokens, trim=True) == streamed(TABLE, tokens, trim=False) == " world"


def test_each_token_has_its_bytes_and_special_ones_their_literal_text() -> None:
    tokens = BYTES.encode("Grüße 日本語", add_special_tokens=False)
    assert b"".join(map(TABLE.bytes_of, tokens)) == "Grüße 日本語".encode()
    end, turn, think, words = ids(BYTES, "<|end|>", "<｜end▁of▁turn｜>", "<think>", "two words")
    assert TABLE.bytes_of(end) == b"<|end|>"
    assert TABLE.bytes_of(turn) == "<｜end▁of▁turn｜>".encode()
    assert TABLE.bytes_of(words) == b"two words"
    assert [TABLE.is_special(token) for token in (end, turn, think, words, tokens[0])] == [True, True, *[False] * 3]


def test_ids_beyond_the_tokenizer_stand_for_nothing() -> None:
    table = TokenTable(BYTES, size=512)
    assert len(table) == 512
    assert len(TABLE) == len(BYTES)
    assert table.bytes_of(511) == table.bytes_of(10_000) == table.bytes_of(-1) == b""
    assert streamed(table, [511, 10_000, *BYTES.encode("fox")]) == "fox"
    assert not table.is_special(10_000)


def test_an_added_token_wins_over_a_piece_with_its_id() -> None:
    # The vocabulary has a hole, and the tokenizer numbers what is added by the count of what is there.
    backend = Tokenizer(models.BPE({"a": 0, "b": 2}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert backend.token_to_id("<|end|>") == backend.token_to_id("b") == 2
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert TokenTable(tokenizer).bytes_of(2).decode() == tokenizer.decode([2]) == "<|end|>"


def test_a_bare_fast_tokenizer_will_do() -> None:
    table = TokenTable(BYTES._tokenizer)
    assert table.bytes_of(BYTES.encode("€")[0]) == TABLE.bytes_of(BYTES.encode("€")[0])


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("text", ["Hello world", "  Hello", "über 日本 👍", "a  b", "."])
def test_sentencepiece_reads_as_the_tokenizer_decodes_it(text: str, strips: bool) -> None:
    tokenizer = sentencepiece(strips=strips)
    tokens = tokenizer.encode(text)
    assert streamed(TokenTable(tokenizer), tokens, trim=True) == decoded(tokenizer, tokens)


def test_sentencepiece_loses_its_first_space_only_when_asked_and_only_if_its_decoder_strips() -> None:
    for strips, trim, expected in [(True, True, "Hello"), (True, False, " Hello"), (False, True, " Hello")]:
        tokenizer = sentencepiece(strips=strips)
        hello, mark = ids(tokenizer, "▁Hello", "▁")
        table = TokenTable(tokenizer)
        assert streamed(table, [hello], trim=trim) == expected
        assert streamed(table, [mark, hello], trim=trim) == (" " + expected)


def test_sentencepiece_byte_tokens_make_characters_of_any_length() -> None:
    tokenizer = sentencepiece(strips=True)
    table = TokenTable(tokenizer)
    tokens = ids(tokenizer, *(f"<0x{byte:02X}>" for byte in "日".encode()))
    stream = table.stream(trim_leading_space=True)
    assert [stream.push(token) for token in tokens] == ["", "", "日"]
    assert table.bytes_of(tokens[0]) == b"\xe6"
    # The first space goes even where it comes as a byte, and one that is not the first stays.
    (space,) = ids(tokenizer, "<0x20>")
    assert streamed(table, [space, space]) == " "


def test_sentencepiece_marks_are_spaces_in_added_words_and_literal_in_special_tokens() -> None:
    tokenizer = sentencepiece(strips=True)
    table = TokenTable(tokenizer)
    spaces, turn = ids(tokenizer, "▁▁▁", "<end▁of▁turn>")
    assert table.bytes_of(spaces) == b"   "
    assert table.bytes_of(turn) == "<end▁of▁turn>".encode()


def test_another_kind_of_tokenizer_is_streamed_by_its_own_decoder() -> None:
    tokenizer = wordpiece()
    table = TokenTable(tokenizer)
    tokens = tokenizer.encode("new unbelievable story")
    assert len(tokens) == 5
    stream = table.stream(trim_leading_space=True)
    assert [*map(stream.push, tokens), stream.finish()] == ["new", " un", "believ", "able", " story", ""]
    assert table.bytes_of(tokens[0]) == b"new"
    assert stream.push(10_000) == ""


def test_a_tokenizer_with_a_decode_of_its_own_is_asked_for_it() -> None:
    tokenizer = byte_level(cls=NewlineTokenizer)
    table = TokenTable(tokenizer)
    (newline,) = ids(tokenizer, "<n>")
    assert streamed(table, [*BYTES.encode("fox"), newline, *BYTES.encode("world")]) == "fox\nworld"
    assert table.bytes_of(newline) == b"\n"
