"""Grammars as they are written for llguidance, which has to read them the way they are meant."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar
from openai_gateway.worker.guide import Form
from openai_gateway.worker.lark import Lark
from openai_gateway.worker.load import Loaded
from tests.worker.following import followed


def form(loaded: Loaded, lark: Lark, start: str) -> Form:
    assert loaded.prompts.forms is not None
    grammars = loaded.prompts.forms.grammars
    return Form(loaded.prompts.table, grammars.compiled(lark, start), ends=grammars.eos)


def lark(loaded: Loaded) -> Lark:
    assert loaded.prompts.forms is not None
    return loaded.prompts.forms.grammars.lark()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_text_stands_for_itself_and_ends_what_it_ends(llama: Loaded, text: str) -> None:
    writer = lark(llama)
    if any(isinstance(piece, int) for piece in writer.cut(text)):
        return
    assert followed(llama, form(llama, writer, writer.text(text)), text) is True
    before = "" if text in f"ab{text}"[:-1] else "ab"  # it ends where the text comes up first
    rules = f"{writer.until(text)} {writer.text('!')}"
    assert followed(llama, form(llama, writer, rules), f"{before}{text}!") is not False


def test_markup_is_made_of_special_tokens_and_the_text_between(shapes: dict[str, Loaded]) -> None:
    demo = shapes["demo"]
    writer = lark(demo)
    assert writer.mark("plain") == '"plain"'
    assert writer.mark("<|channel|>final<|message|>") == '<[4]> "final" <[3]>'
    assert followed(demo, form(demo, writer, writer.mark("<|channel|>final<|message|>")), "<|channel|>final<|message|>")


def test_free_text_ends_at_the_first_mark(shapes: dict[str, Loaded]) -> None:
    demo = shapes["demo"]
    for mark in ("</x>", "<|end|>", "a+(b)*[c]\\d"):
        writer = lark(demo)
        made = form(demo, writer, f"{writer.until(mark)} {writer.text('ok')}")
        assert followed(demo, made, f"any\ntext <{mark}ok") is True
        assert followed(demo, made, f"{mark}ok") is True
        assert followed(demo, made, f"any{mark}no") is False


@pytest.mark.parametrize(("pattern", "good", "bad"), [(r"a/b\d", "a/b7", "a/bx"), ("x\ny", "x\ny", "xy")])
def test_slashes_and_newlines_of_a_regular_expression_are_its_own(
    llama: Loaded, pattern: str, good: str, bad: str
) -> None:
    writer = lark(llama)
    made = form(llama, writer, writer.grammar(Grammar(kind="regex", source=pattern), "x"))
    assert followed(llama, made, good) is True
    assert followed(llama, made, bad) is False


def test_a_grammar_of_the_request_has_rules_of_its_own(llama: Loaded) -> None:
    writer = lark(llama)
    digits = writer.rule("/[0-9]+/")
    own = writer.grammar(Grammar(kind="lark", source='start: r0 "!"\nr0: "a" | "b"'), "x")
    assert followed(llama, form(llama, writer, f"{digits} {own}"), "12b!") is True
    assert followed(llama, form(llama, writer, f"{digits} {own}"), "121!") is False


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar(kind="json", source="[]"), "Invalid schema for the answer: it must be a JSON object."),
        (Grammar(kind="choice", source="[]", param="guided_choice"), "Invalid choice for the answer: a list of texts"),
        (
            Grammar(kind="lark", source="x" * 200_000, param="guided_grammar"),
            "Invalid grammar for the answer: it is lo",
        ),
    ],
)
def test_what_can_be_refused_at_once_is(llama: Loaded, grammar: Grammar, message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        lark(llama).grammar(grammar, "the answer")
    assert refusal.value.message.startswith(message)
    assert refusal.value.param == grammar.param
    assert refusal.value.code == "invalid_value"


def test_choices_are_texts_and_not_expressions(llama: Loaded) -> None:
    writer = lark(llama)
    made = form(llama, writer, writer.grammar(Grammar(kind="choice", source=json.dumps(["a|b", 'q"\\', "né"])), "x"))
    for text in ("a|b", 'q"\\', "né"):
        assert followed(llama, made, text) is True
    assert followed(llama, made, "a") is None
    assert followed(llama, made, "b") is False


def test_free_text_ends_at_the_first_closing_tag_with_one_of_the_marks_behind(llama: Loaded) -> None:
    writer = lark(llama)
    made = form(llama, writer, f"{writer.up_to('</x>', '<y', ['<y', '</z'], padding='!')} {writer.text('ok')}")
    assert followed(llama, made, "</x> a!</x>b!</x> \n<yok") is True
    for text in ("a</x><y", "a!</x><yno", "!</x>\n</z", "a</x><y!</x><y"):
        assert followed(llama, made, text) is False
