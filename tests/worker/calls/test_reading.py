"""What a client gets of an answer with calls besides the calls themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openai_gateway.worker.calls.formats import BY_NAME
from openai_gateway.worker.calls.marks import Marks
from openai_gateway.worker.calls.reading import CallChannels
from openai_gateway.worker.channels import PlainChannels, ThinkChannels
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


@pytest.mark.parametrize("marks", [("", ""), ("<tool_call>", "</tool_call>")])
def test_json_behind_that_of_a_call_is_content_and_nothing_of_the_call(marks: tuple[str, str]) -> None:
    read = family("hermes")
    opens, closes = marks
    for tokens in read.cuts(f'{opens}{BARE}\n{{"note": "x"}}{closes} So.'):
        said = read.said(tokens)
        assert (said.content, said.calls) == ('{"note": "x"} So.', (("now", "{}"),))


def test_what_goes_on_with_a_given_text_begins_no_call_without_marks() -> None:
    for format, text in (("hermes", BARE), ("gemma4", "call:now{}")):
        read = family(format)
        written = BY_NAME[format].written
        assert written is not None
        marks = Marks(read.table, written.markup)
        inner = PlainChannels(read.table.stream(trim_leading_space=False), marks.of)
        path: TextPath[Any] = TextPath(CallChannels(inner, written, marks, OFFER, begun=True), table=read.table)
        rendered = [*map(path.push, read.encode(text)), path.finish()]
        assert "".join(one.content for one in rendered) == text
        assert path.calls == 0


PROSE = [
    ("qwen3_coder", "<parameter>value</parameter> … and </function> too."),
    ("qwen3_coder", "Write `<function=name>`, or `<function=now>`."),
    ("qwen3_coder", "The syntax is <function=foo> and so on"),
    ("qwen3_coder", "A call begins with `<function=` and no more"),
    ("minimax_m2", '<parameter name="url" value="x"/>'),
    ("minimax_m2", 'Anthropic writes <invoke name="foo"> here.'),
    ("glm47", "In GLM a key is <arg_key>k</arg_key>."),
    ("hermes", '{"xml": "</tool_call> is an end"}'),
]
JSON = [
    ("qwen3_coder", '{"xml": "<parameter>1</parameter>"}'),
    ("qwen3_coder", '{"doc": "call it so: <function=now>\n</function>"}'),
    ("hermes", ' {"doc": "<tool_call>"}'),
]


@pytest.mark.parametrize(
    ("format", "text", "formed"), [(*one, False) for one in PROSE] + [(*one, True) for one in JSON]
)
def test_an_answer_that_tells_how_calls_are_written_keeps_their_marks(format: str, text: str, formed: bool) -> None:
    read = family(format)
    for tokens in (read.singly(text), *read.cuts(text)):
        said = read.said(tokens, offer=replace(OFFER, formed=formed))
        assert (said.content, said.calls) == (text, ())


def test_marks_keep_to_a_text_that_is_cut_within_one() -> None:
    read = family("qwen3_coder")
    assert read.said(read.encode("Then </param"), cut=True).content == "Then </param"
    assert read.said(read.encode("Then\n<func"), cut=True).content == "Then\n"
    assert read.said(read.encode('{"x": "<func'), cut=True, offer=replace(OFFER, formed=True)).content == '{"x": "<func'


def test_a_mark_that_is_left_over_from_a_call_is_no_content() -> None:
    read = family("qwen3_coder")
    call = read.family.write([("now", {})])
    for text, content in (
        (f"{call}\n</function>\n</tool_call> So.", "So."),
        (f"{call}\nIt was </function>.", "It was </function>."),
        ("<tool_call>\n<function=now>\nNo.\n</function>\n</tool_call>", "No.\n\n"),
    ):
        for tokens in (read.singly(text), *read.cuts(text)):
            said = read.said(tokens)
            assert (said.content, [name for name, _ in said.calls]) == (content, ["now"])


def test_a_call_outside_of_its_section_is_one_of_a_tool_that_may_be_called() -> None:
    read = family("qwen3_coder")
    call = "<function=search>\n<parameter=query>\nx\n</parameter>\n</function>\n</tool_call>"
    for text in (call, f"Well.\n{call}"):
        assert read.said(read.encode(text)).calls == (("search", '{"query": "x"}'),)
        said = read.said(read.encode(text), offer=replace(OFFER, callable=frozenset({"now"})))
        assert said.calls == ()
        assert "<" not in said.content
        assert read.said(read.singly(text), offer=replace(OFFER, callable=frozenset({"now"}))) == said


@pytest.mark.parametrize("rest", ["now>", "now>\n", "now>\n<para", "now"])
def test_a_call_outside_of_its_section_that_is_cut_is_no_content(rest: str) -> None:
    read = family("qwen3_coder")
    said = read.said(read.encode(f"Well.\n<function={rest}"), cut=True)
    assert "<" not in said.content
    assert [name for name, _ in said.calls] == (["now"] if ">" in rest else [])


def test_a_call_may_stand_in_what_begins_as_json() -> None:
    read = family("hermes")
    text = f'{{"a": "{read.family.write([("now", {})])}'
    for tokens in (read.singly(text), *read.cuts(text)):
        said = read.said(tokens)
        assert (said.content, said.calls) == ('{"a": "', (("now", "{}"),))


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
