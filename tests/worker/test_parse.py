from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openai_gateway.worker.channels import Channels, PlainChannels, ThinkChannels
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.parse import Rendered, TextPath

LINES = ["Let me think. 2+2=4\n\n", "The answer is 4.\n", "<think>Hm</think>", "日本語 € 👍"]
MERGED = ">\n\nFo"
SPECIAL = ["<|end|>", "<|channel>", "<channel|>"]


def byte_level() -> TokenizerWrapper:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(MERGED, special=False)])
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend))


TOKENIZER = byte_level()
TABLE = TokenTable(TOKENIZER)
END, CHANNEL, CHANNEL_END = (TOKENIZER.convert_tokens_to_ids(text) for text in SPECIAL)
OF_BYTE = {TABLE.bytes_of(id_): id_ for id_ in range(len(TABLE)) if len(TABLE.bytes_of(id_)) == 1}


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def byte_tokens(text: str) -> list[int]:
    return [OF_BYTE[bytes([byte])] for byte in text.encode()]


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[int]:
    """Tokens of `text`, cut anywhere: words of the vocabulary here, single bytes there."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [token for piece in pieces for token in (encode if draw(st.booleans()) else byte_tokens)(piece)]


def plain() -> PlainChannels:
    return PlainChannels(TABLE.stream(trim_leading_space=False))


def think(*, inside: bool = False, tags: tuple[str, str] = ("<think>", "</think>")) -> ThinkChannels:
    return ThinkChannels(TABLE.stream(trim_leading_space=False), *tags, inside=inside)


def run(channels: Channels, tokens: list[int], stops: tuple[str, ...] = ()) -> list[Rendered[Any]]:
    """Every token's result and that of the end; each token's entry is its bytes."""
    path: TextPath[bytes] = TextPath(channels, stops, table=TABLE)
    return [*(path.push(token, TABLE.bytes_of(token)) for token in tokens), path.finish()]


def texts(rendered: list[Rendered[Any]]) -> tuple[str, str]:
    return "".join(r.reasoning for r in rendered), "".join(r.content for r in rendered)


def entries(rendered: list[Rendered[Any]]) -> list[bytes]:
    return [entry for r in rendered for entry in r.entries]


# Plain


@given(st.text(), st.data())
def test_plain_text_is_all_content_however_it_is_cut(text: str, data: st.DataObject) -> None:
    rendered = run(plain(), data.draw(cut(text)))
    assert texts(rendered) == ("", text)
    assert b"".join(entries(rendered)) == text.encode()


def test_special_tokens_are_no_content_and_have_no_entry() -> None:
    rendered = run(plain(), [CHANNEL, *encode("4."), END])
    assert texts(rendered) == ("", "4.")
    assert b"".join(entries(rendered)) == b"4."
    assert not any(r.reasoning_token for r in rendered)


# Thoughts

ANSWERS = [
    ("plain", "", "plain"),
    (" world\n\n", "", " world\n\n"),
    ("\n\n", "", "\n\n"),
    ("<think>\nHm.\n</think>\n\nFour.\n", "Hm.", "Four.\n"),
    ("\n<think>Hm.\n\n  So\n</think>Four.", "Hm.\n\n  So", "Four."),
    ("<think>\n\n</think>\n\n  Four.", "", "  Four."),
    ("<think>Hm.</think>\n<think>Oh.</think>\nFour.", "Hm.Oh.", "Four."),
    ("<think><think>Hm.</think></think>Four.", "Hm.", "Four."),
    ("</think>Four.", "", "Four."),
    ("<thin", "", "<thin"),
    ("<thin air>", "", "<thin air>"),
    ("<think>a <think> b</thi", "a <think> b</thi", ""),
    ("<think>cut\n\n", "cut\n\n", ""),
    ("<think>\n\n", "", ""),
    ("<think>a</b></think>b", "a</b>", "b"),
    ("The tag <think> opens, </think> ends.", "", "The tag <think> opens, </think> ends."),
    ("<think>Hm.</think>Say <think>.", "Hm.", "Say <think>."),
    ("<think>Hm.</think>\n\n", "Hm.", ""),
]


@pytest.mark.parametrize(("text", "reasoning", "content"), ANSWERS)
@given(data=st.data())
def test_a_thought_is_told_from_the_answer_however_the_tags_are_cut(
    text: str, reasoning: str, content: str, data: st.DataObject
) -> None:
    assert texts(run(think(), data.draw(cut(text)))) == (reasoning, content)


@given(st.data())
def test_a_thought_that_the_prompt_opened_goes_on_at_once(data: st.DataObject) -> None:
    tokens = data.draw(cut("\nHm.</think>\n\nFour."))
    assert texts(run(think(inside=True), tokens)) == ("Hm.", "Four.")


@given(st.text(), st.text(st.characters(codec="utf-8", exclude_characters="<")), st.data())
def test_thought_and_answer_come_out_as_they_went_in(content: str, reasoning: str, data: st.DataObject) -> None:
    tokens = data.draw(cut(f"<think>.{reasoning}.</think>.{content}"))
    assert texts(run(think(), tokens)) == (f".{reasoning}.", f".{content}")


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "<", "th", "ink>", "é"])).map("".join),
    st.booleans(),
    st.data(),
)
def test_the_segments_of_all_channels_are_the_whole_text(text: str, inside: bool, data: st.DataObject) -> None:
    channels = think(inside=inside)
    segments, held = "", 0
    for token in data.draw(cut(text)):
        segments += "".join(piece for _, piece in channels.push(token))
        assert text.startswith(segments)
        held = channels.held
    last = channels.finish()
    assert len("".join(piece for _, piece in last)) == held
    assert segments + "".join(piece for _, piece in last) == text


def test_an_answer_is_released_at_once_and_a_thought_up_to_a_possible_tag() -> None:
    channels = think()
    assert channels.push(encode("4")[0]) == [("content", "4")]
    assert channels.push(encode("<")[0]) == [("content", "<")]
    channels = think(inside=True)
    got = [channels.push(token) for token in byte_tokens("a\n<b")]
    assert got == [[("reasoning", "a")], [], [], [("reasoning", "\n<b")]]


def test_tags_of_special_tokens_open_thoughts_and_other_special_tokens_are_dropped() -> None:
    tags = ("<|channel>thought", "<channel|>")
    thought = [CHANNEL, *encode("thought\nHm."), END, CHANNEL_END]
    assert texts(run(think(tags=tags), [*thought, *encode("4"), CHANNEL_END])) == ("Hm.", "4")
    assert texts(run(think(tags=tags), [*encode("4."), *thought, *encode("5")])) == ("Hm.", "4.5")


@pytest.mark.parametrize("inside", [True, False])
def test_special_tokens_that_make_no_tag_are_dropped_too(inside: bool) -> None:
    tags = ("<|channel>thought", "<channel|>")
    for tokens in ([CHANNEL, *encode("the")], [*encode("th"), CHANNEL, *encode("e")], [*encode("the"), CHANNEL]):
        assert "".join(texts(run(think(tags=tags, inside=inside), tokens))) == "the"


def test_all_tokens_of_a_thought_and_of_its_tags_count_as_reasoning() -> None:
    thought = byte_tokens("<think>\nHm.</think>")
    rendered = run(think(), [*thought, *encode("\n\nFour <think>.")])
    assert sum(r.reasoning_token for r in rendered) == len(thought)
    assert sum(r.reasoning_token for r in run(think(), byte_tokens("<thin air>"))) == 0
    assert sum(r.reasoning_token for r in run(think(inside=True), thought[7:])) == len(thought) - 7


def test_only_tokens_of_the_answer_have_entries() -> None:
    rendered = run(think(), [*byte_tokens("<think>\nHm.\n</think>\n\n"), *encode("Four")])
    assert b"".join(entries(rendered)) == b"Four"
    # What could have been a tag is content after all.
    assert b"".join(entries(run(think(), byte_tokens(" <thin air>")))) == b" <thin air>"


def test_a_token_that_is_partly_content_keeps_its_entry() -> None:
    tokens = [*byte_tokens("Hm.</think"), TOKENIZER.convert_tokens_to_ids(MERGED), *byte_tokens("ur")]
    rendered = run(think(inside=True), tokens)
    assert texts(rendered) == ("Hm.", "Four")
    assert entries(rendered) == [MERGED.encode(), b"u", b"r"]
    held = run(think(inside=True), tokens, ("Four!",))
    assert [r.entries for r in held if r.entries] == [[MERGED.encode(), b"u", b"r"]]


@given(st.data())
def test_a_stop_string_is_found_across_tokens_and_its_text_is_not_returned(data: st.DataObject) -> None:
    rendered = run(plain(), data.draw(cut("The answer is €4. Bye.")), ("€4.", "Bye"))
    assert texts(rendered) == ("", "The answer is ")
    assert rendered[-1].stopped


def test_nothing_follows_a_stop_string() -> None:
    path: TextPath[str] = TextPath(plain(), ["stop"], table=TABLE)
    assert [path.push(token).stopped for token in byte_tokens("a stop")] == [False] * 5 + [True]
    assert path.push(encode("b")[0], "entry") == path.finish() == ("", "", [], 0, True, ())


def test_stop_strings_in_a_thought_are_only_thoughts() -> None:
    rendered = run(think(), encode("<think>Bye or not</think>4. Bye."), ("Bye",))
    assert texts(rendered) == ("Bye or not", "4. ")


def test_text_held_for_a_stop_string_is_returned_where_the_one_call_ends_the_answer() -> None:
    class Calling(PlainChannels):
        @property
        def calls(self) -> int:  # type: ignore[override]
            return self.read // 2

        read = 0

        def push(self, token: int) -> list[Any]:
            self.read += 1
            return super().push(token)

    path: TextPath[bytes] = TextPath(
        Calling(TABLE.stream(trim_leading_space=False)), [".\n"], table=TABLE, one_call=True
    )
    assert path.push(OF_BYTE[b"a"]).content == "a"
    assert path.push(OF_BYTE[b"."], b".") == (".", "", [b"."], 0, True, ())


def test_a_thought_after_a_stop_string_in_the_same_step_is_not_returned() -> None:
    class OneStep(PlainChannels):
        def finish(self, *, cut: bool = False) -> list[Any]:
            return [("reasoning", "before"), ("content", "a Bye"), ("reasoning", "after"), ("content", "b")]

    rendered = run(OneStep(TABLE.stream(trim_leading_space=False)), [], ("Bye",))
    assert rendered == [("a ", "before", [], 0, True, ())]


def test_empty_stop_strings_never_stop() -> None:
    rendered = run(plain(), encode("The answer"), ("",))
    assert texts(rendered) == ("", "The answer")
    assert not rendered[-1].stopped


def test_text_held_for_a_stop_string_is_returned_at_the_end() -> None:
    rendered = run(plain(), byte_tokens("is 4. B"), ("Bye",))
    assert texts(rendered) == ("", "is 4. B")
    assert rendered[-1] == ("B", "", [b"B"], 0, False, ())
    # A shorter stop string inside a longer one that did not come.
    assert run(plain(), byte_tokens("x Bye"), ("Bye now", "ye"))[-1] == ("B", "", [b"B"], 0, True, ())


def test_an_entry_comes_with_the_text_of_its_token() -> None:
    assert [r.entries for r in run(plain(), byte_tokens("aBya"), ("Bye",))] == [
        *([b"a"], [], [], [b"B", b"y", b"a"], []),
    ]


def test_an_incomplete_character_holds_its_entry_until_it_is_complete() -> None:
    raw = [bytes([byte]) for byte in "é€".encode()]
    assert [r.entries for r in run(plain(), byte_tokens("é€"))] == [[], raw[:2], [], [], raw[2:], []]
    assert run(plain(), byte_tokens("€")[:2])[-1] == ("\ufffd", "", raw[2:4], 0, False, ())


@given(st.data())
def test_entries_end_where_a_stop_string_begins(data: st.DataObject) -> None:
    tokens = data.draw(cut("The answer is 4. Bye."))
    kept = b"".join(entries(run(plain(), tokens, ("answer",))))
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(TABLE.bytes_of(token)))
    assert len(kept) == min(start for start in starts if start >= len("The "))


def test_entries_may_be_missing() -> None:
    path: TextPath[str] = TextPath(think(), ["Bye"], table=TABLE)
    rendered = [path.push(token) for token in encode("<think>a</think>4. Bye")]
    assert texts(rendered) == ("a", "4. ")
    assert entries(rendered) == []
