"""What a client gets of an answer with calls besides the calls themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openai_gateway.worker.calls.formats import BY_NAME
from openai_gateway.worker.calls.marks import Marks
from openai_gateway.worker.calls.reading import CallChannels
from openai_gateway.worker.channels import ThinkChannels
from openai_gateway.worker.parse import TextPath
from tests.worker.calls.corpus import FAMILIES, PARIS
from tests.worker.calls.test_corpus import OFFER, Reader, calls_of, reader


def family(format: str) -> Reader:
    return reader(next(family for family in FAMILIES if family.format == format))


@pytest.mark.parametrize("format", ["hermes", "harmony", "mistral", "kimi_k3", "qwen3_coder"])
def test_only_tokens_of_content_have_entries(format: str) -> None:
    read = family(format)
    head = "<|channel|>commentary<|message|>Well €.<|end|><|start|>assistant" if format == "harmony" else "Well €.\n"
    tokens = read.encode(head + read.family.write([PARIS]))
    path: TextPath[bytes] = TextPath(read.channels(OFFER, thinks=False), table=read.table)
    rendered = [*(path.push(token, read.table.bytes_of(token)) for token in tokens), path.finish()]
    assert b"".join(entry for one in rendered for entry in one.entries) == "Well €.".encode()


def test_tokens_of_a_call_are_no_reasoning() -> None:
    read = family("hermes")
    path: TextPath[Any] = TextPath(read.channels(OFFER, thinks=True), table=read.table)
    thought = read.encode("<think>Hm.</think>")
    rendered = [path.push(token) for token in thought + read.encode("\n\n" + read.family.write([PARIS]))]
    assert sum(one.reasoning_token for one in rendered) == len(thought)


def test_arguments_stream_as_they_are_generated() -> None:
    for format in ("hermes", "qwen3_coder", "gemma4", "deepseek_v3"):
        read = family(format)
        path: TextPath[Any] = TextPath(read.channels(OFFER, thinks=False), table=read.table)
        text = read.family.write([("write_file", {"path": "a", "content": "one two three four"})])
        deltas = [call for token in read.encode(text) for call in path.push(token).calls]
        assert len(deltas) > 5
        assert calls_of(deltas)[0][0] == "write_file"
        begun = "".join(call.arguments for call in deltas[:-3])
        assert begun.endswith(tuple("one two three four"))


def test_a_call_may_begin_in_a_thought_that_nobody_ended() -> None:
    read = family("mistral")
    written = BY_NAME["mistral"].written
    assert written is not None
    marks = Marks(read.table, written.markup)
    stream = read.table.stream(trim_leading_space=False)
    thinking = ThinkChannels(stream, "<think>", "</think>", marks=marks.of, ends=[marks.spell("[TOOL_CALLS]")])
    path: TextPath[Any] = TextPath(CallChannels(thinking, written, marks, OFFER), table=read.table)
    rendered = [path.push(token) for token in read.encode("<think>\nHm.\n" + read.family.write([PARIS]))]
    rendered.append(path.finish())
    assert "".join(one.reasoning for one in rendered) == "Hm."
    assert "".join(one.content for one in rendered) == ""
    assert calls_of([call for one in rendered for call in one.calls])[0][0] == "get_weather"


def test_what_only_looks_like_a_special_token_is_text() -> None:
    read = family("mistral")
    tokens = [token for char in "[TOOL_CALLS]now[ARGS]{}" for token in read.singly(char)]
    assert read.said(tokens).content == "[TOOL_CALLS]now[ARGS]{}"


BARE = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize("format", ["hermes", "llama3"])
@pytest.mark.parametrize("text", ['{"tool": "now", "reason": "because"}', '{"name": "now"}', '{"function": "now"} So.'])
def test_json_without_marks_that_has_no_arguments_is_no_call(format: str, text: str) -> None:
    read = family(format)
    said = read.said(read.encode(text))
    assert (said.content, said.calls) == (text, ())


@pytest.mark.parametrize("format", ["hermes", "llama3"])
def test_json_without_marks_is_a_call_of_what_may_be_called_alone(format: str) -> None:
    read = family(format)
    for text in (BARE, '{"arguments": {}, "name": "now"}'):
        assert read.said(read.encode(text)).calls == (("now", "{}"),)
        said = read.said(read.encode(text), offer=replace(OFFER, callable=frozenset({"search"})))
        assert (said.content, said.calls) == (text, ())


def test_json_without_marks_is_the_answer_where_that_has_a_form_and_calls_have_marks() -> None:
    formed = replace(OFFER, formed=True)
    read = family("hermes")
    said = read.said(read.encode(BARE), offer=formed)
    assert (said.content, said.calls) == (BARE, ())
    assert read.said(read.encode(read.family.write([PARIS])), offer=formed).calls
    read = family("llama3")
    assert read.said(read.encode(BARE), offer=formed).calls == (("now", "{}"),)


@pytest.mark.parametrize("format", ["gemma4", "function_gemma"])
def test_a_call_of_gemma_without_its_first_mark_is_one_where_an_answer_begins(format: str) -> None:
    read = family(format)
    opens, closes = read.family.special[:2]
    two = read.family.write([("now", {}), PARIS])
    bare = two.removeprefix(opens)
    for text in (bare, f"\n{bare}", bare.replace(closes, "", 1)):
        for tokens in (read.encode(text), read.singly(text), read.encode(f"<think>Hm.</think>{text}")):
            said = read.said(tokens, thinks=True)
            assert (said.content, said.complete) == ("", 2)
            assert said.calls == read.said(read.encode(two)).calls
    assert all(read.said(tokens).complete == 2 for tokens in read.cuts(bare))
    formed, other = replace(OFFER, formed=True), replace(OFFER, callable=frozenset({"search"}))
    for offer, text in (
        (OFFER, "Well. call:now{}"),
        (OFFER, "call:later{}"),
        (formed, "call:now{}"),
        (other, "call:now{}"),
    ):
        said = read.said(read.singly(text), offer=offer)
        assert (said.content, said.calls) == (text, ())
    for length in range(len("call:now{")):
        assert read.said(read.singly("call:now{"[:length])).content == "call:now{"[:length]
