"""What the whole output of a model may be: its thinking, its answer, its calls, in the markup of its family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.errors import InvalidRequest
from openai_gateway.types import Grammar, ModelSpec
from openai_gateway.worker.answers import Calls, Forms
from openai_gateway.worker.grammar import Grammars
from openai_gateway.worker.guide import Form
from openai_gateway.worker.lark import Lark
from openai_gateway.worker.load import Loaded, load
from tests.worker import tiny
from tests.worker.following import choices, followed, guide_of, tokens_of

AGE = Grammar(kind="json", source='{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
ALWAYS = tiny.CHAT.replace("m.content", "m.content.split('</think>')[-1]").replace("tant: ", "tant: <think>\n")


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """Models whose tags are special tokens, and whose tags are text."""
    folder = tmp_path_factory.mktemp("thinkers")
    tags = {"special": ("<think>", "</think>"), "text": ()}
    paths = {
        name: tiny.save(folder / name, tiny.LLAMA, special=special, template=ALWAYS) for name, special in tags.items()
    }
    return {name: load(ModelSpec(id=name, path=str(path))) for name, path in paths.items()}


def forms(loaded: Loaded) -> Forms:
    assert loaded.prompts.forms is not None
    return loaded.prompts.forms


def one_call(lark: Lark) -> Calls:
    arguments = lark.json('{"type": "object", "properties": {"x": {"type": "integer"}}}', "function 'f'", "tools")
    return Calls(f"{lark.text('f')} {arguments} {lark.mark('</call>')}", trigger="<call>")


def harmony_call(lark: Lark) -> Calls:
    arguments = lark.json('{"type": "object", "properties": {"x": {"type": "integer"}}}', "function 'f'", "tools")
    head = lark.mark("<|channel|>commentary to=functions.f <|constrain|>json<|message|>")
    return Calls(f"{head} {arguments}")


def required(calls: Callable[[Lark], Calls]) -> Callable[[Lark], Calls]:
    def written(lark: Lark) -> Calls:
        made = calls(lark)
        return Calls(made.body, made.trigger, required=True)

    return written


def check(loaded: Loaded, form: Form | None, *, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert followed(loaded, form, text) is True, text
    for text in bad:
        assert followed(loaded, form, text) is False, text


def test_an_answer_alone(llama: Loaded) -> None:
    form = forms(llama).of(chat=True, answer=AGE)
    check(
        llama,
        form,
        good=['{"a": 1}', '{\n  "a" : -12\n}'],
        bad=['{"a": 1, "b": 2}', ' {"a": 1}', '{"b": 1}', "a", '{"a": 1} '],
    )
    assert forms(llama).of(chat=True) is None


@pytest.mark.parametrize("kind", ["special", "text"])
def test_thoughts_are_free_and_the_answer_is_not(thinkers: dict[str, Loaded], kind: str) -> None:
    loaded = thinkers[kind]
    made = forms(loaded)
    inside = made.of(chat=True, start_in="analysis", answer=AGE)
    check(
        loaded,
        inside,
        good=['Let {"b": 1} be\n\n</think>{"a": 1}', '</think>\n\n{"a": 1}'],
        bad=["x</think>y", 'x</think>\n\n\n\n\n{"a": 1}'],
    )
    assert followed(loaded, inside, '{"a": 1}') is None  # still a thought
    outside = made.of(chat=True, answer=AGE)
    check(loaded, outside, good=['{"a": 1}', '<think>well</think>\n{"a": 1}'], bad=["well", "<think>x</think>no"])


@pytest.mark.parametrize("kind", ["special", "text"])
def test_calls_follow_their_mark_wherever_it_comes(thinkers: dict[str, Loaded], kind: str) -> None:
    loaded = thinkers[kind]
    auto = forms(loaded).of(chat=True, start_in="analysis", calls=one_call)
    check(
        loaded,
        auto,
        good=[
            "t</think>",
            "t</think>free < text",
            't</think>I call <call>f{"x": 1}</call>',
            "</think><call>f{}</call>",
        ],
        bad=["t</think><call>g", 't</think>so <call>f{"x": "y"', "t</think><call>f{}</call>more"],
    )
    must = forms(loaded).of(chat=True, start_in="analysis", calls=required(one_call))
    check(loaded, must, good=['t</think>\n<call>f{"x": 1}</call>'], bad=["t</think>free", "t</think>\n<call>g"])
    either = forms(loaded).of(chat=True, start_in="analysis", calls=one_call, answer=AGE)
    check(loaded, either, good=['t</think>{"a": 1}', "t</think><call>f{}</call>"], bad=["t</think>free"])


def test_a_thought_may_name_the_mark_of_a_call(thinkers: dict[str, Loaded]) -> None:
    """Also one that the model opens by itself, with a tag that is text."""
    loaded = thinkers["text"]
    auto = forms(loaded).of(chat=True, calls=one_call)
    check(
        loaded,
        auto,
        good=[
            "<think>a <call> b</think>Hi",
            "\n<think>\na <call> b\n</think>\n\nHi",
            "<think>a <call> b</think>so <call>f{}</call>",
            "I <think> so: <call>f{}</call>",
            "<thin <call>f{}</call>",
            "Hi",
            "",
        ],
        bad=["<think>x</think><call>g", "I <think> so: <call>g", "<call>g"],
    )
    must = forms(loaded).of(chat=True, calls=required(one_call))
    check(loaded, must, good=["<think>a <call> b</think><call>f{}</call>", "<call>f{}</call>"], bad=["a"])


def test_harmony_thinks_in_its_own_channel_and_answers_in_another(shapes: dict[str, Loaded]) -> None:
    demo = shapes["demo"]
    form = forms(demo).of(chat=True, answer=AGE)
    thought, again = "<|channel|>analysis<|message|>any {", "<|end|><|start|>assistant"
    check(
        demo,
        form,
        good=[
            '<|channel|>final<|message|>{"a": 1}',
            '<|channel|>final <|constrain|>json<|message|>{"a": 1}',
            f'{thought}{again}<|channel|>analysis<|message|>{again}<|channel|>final<|message|>{{"a": 1}}',
        ],
        bad=["a", "<|channel|>commentary", "<|channel|>final<|message|>a", f"{thought}{again}a"],
    )
    assert followed(demo, form, thought) is None
    assert followed(demo, forms(demo).of(chat=True, start_in="final", answer=AGE), '{"a": 1}') is True


def test_harmony_calls_a_function_after_it_has_thought_and_said_so(shapes: dict[str, Loaded]) -> None:
    demo = shapes["demo"]
    thought = "<|channel|>analysis<|message|>t<|end|><|start|>assistant"
    remark = "<|channel|>commentary<|message|>I look<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}'
    final = "<|channel|>final<|message|>"
    check(
        demo,
        forms(demo).of(chat=True, calls=harmony_call),
        good=[f"{thought}{call}", call, f"{remark}{call}", f"{thought}{final}free", final],
        bad=[f"{remark}{final}", "<|channel|>commentary to=functions.g"],
    )
    must = forms(demo).of(chat=True, calls=required(harmony_call))
    check(demo, must, good=[f"{thought}{call}"], bad=[f"{thought}<|channel|>final"])


def test_a_raw_completion_has_no_thoughts(thinkers: dict[str, Loaded]) -> None:
    loaded = thinkers["text"]
    check(loaded, forms(loaded).of(chat=False, answer=AGE), good=['{"a": 1}'], bad=["<think>"])


def test_an_answer_that_is_to_be_continued_counts_from_its_beginning(llama: Loaded) -> None:
    form = forms(llama).of(chat=True, answer=AGE, given=tokens_of(llama, '{"a": 1'))
    check(llama, form, good=["}", "23}"], bad=["x", '{"a": 1}'])
    with pytest.raises(InvalidRequest, match="no beginning of what is asked for") as refused:
        forms(llama).of(chat=True, answer=AGE, given=tokens_of(llama, "Sure: {"))
    assert refused.value.param == "messages"


def test_a_long_text_that_is_to_be_continued_holds_nobody_up(llama: Loaded) -> None:
    """It is followed while the prompt is made, not in the engine's loop, and not for ever."""
    hurried = replace(forms(llama), grammars=Grammars(llama.prompts.table, [256], patience=0.5))
    slow = Grammar(kind="lark", source="start: e\ne: e e | e e e | /[a-z]/ | ")
    with pytest.raises(InvalidRequest, match="What is to be continued takes too long"):
        hurried.of(chat=True, answer=slow, given=tokens_of(llama, "x" * 50_000))


def test_the_space_that_is_dropped_from_an_answer_is_no_part_of_it(
    llama: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers after SentencePiece begin a text with a space that their decoder strips."""
    monkeypatch.setattr(llama.prompts.table, "_strips", True)
    regex = Grammar(kind="regex", source="a b")
    check(llama, forms(llama).of(chat=True, answer=regex), good=[" a b"], bad=["a b"])
    check(llama, forms(llama).of(chat=False, answer=regex), good=["a b"], bad=[" a b"])


def said(loaded: Loaded, form: Form | None, tokens: list[int]) -> str:
    """What a model says that wants to say these tokens, as far as it is let."""
    guide, said = guide_of(loaded, form), []
    while tokens:
        allowed = choices(loaded, guide)
        token = tokens.pop(0) if len(allowed) > 1 or tokens[0] in allowed else next(iter(allowed))
        guide.tell(token)
        said.append(token)
    return b"".join(map(loaded.prompts.table.bytes_of, said)).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", ["special", "text"])
def test_a_spent_budget_ends_the_thought_with_the_tag_of_the_family(thinkers: dict[str, Loaded], kind: str) -> None:
    loaded = thinkers[kind]
    for answer in (None, AGE):
        form = forms(loaded).of(chat=True, start_in="analysis", budget=4, answer=answer)
        assert said(loaded, form, tokens_of(loaded, 'thought{"a": 1}')[:4] + tokens_of(loaded, '{"a": 1}')) == (
            'thou\n</think>\n\n{"a": 1}'
        )


def test_no_budget_is_left_where_a_thought_opens_late(thinkers: dict[str, Loaded]) -> None:
    loaded = thinkers["special"]
    form = forms(loaded).of(chat=True, budget=0)
    assert said(loaded, form, tokens_of(loaded, "<think>no")) == "<think>\n</think>\n\nno"
    assert said(loaded, form, tokens_of(loaded, "no thoughts")) == "no thoughts"


def test_a_spent_budget_waits_for_the_character_to_be_complete(thinkers: dict[str, Loaded]) -> None:
    loaded = thinkers["text"]
    for answer in (None, AGE):
        form = forms(loaded).of(chat=True, start_in="analysis", budget=2, answer=answer)
        assert said(loaded, form, [*tokens_of(loaded, "a名"), *tokens_of(loaded, "{")]) == "a名\n</think>\n\n{"


def test_harmony_ends_a_thought_and_begins_no_other(shapes: dict[str, Loaded]) -> None:
    demo = shapes["demo"]
    thought = tokens_of(demo, "<|channel|>analysis<|message|>one two three")
    final = "<|end|><|start|>assistant<|channel|>final<|message|>"
    for answer in (None, AGE):
        form = forms(demo).of(chat=True, budget=2, answer=answer)
        text = said(demo, form, thought[:5] + tokens_of(demo, '{"a": 1}'))
        assert text.endswith(f'{final}{{"a": 1}}') and text.startswith("<|channel|>analysis<|message|>o")
    # With tools it may go on with a call or with an answer, and with no thought.
    form = forms(demo).of(chat=True, budget=0, calls=harmony_call)
    guide = guide_of(demo, form)
    guide.tell(tokens_of(demo, "<|channel|>")[0])
    words = {demo.prompts.table.bytes_of(token) for token in choices(demo, guide)}
    assert {b"final", b"commentary"} & words and not any(b"analysis".startswith(word) for word in words)


def test_a_budget_asks_for_nothing_until_it_runs_out(thinkers: dict[str, Loaded]) -> None:
    loaded = thinkers["text"]
    guide = guide_of(loaded, forms(loaded).of(chat=True, start_in="analysis", budget=30))
    for token in tokens_of(loaded, "x" * 20):
        assert not guide.due()
        guide.tell(token)
    assert guide.due(17) and not guide.due(9)
    for token in tokens_of(loaded, "</think>\n\nThe answer"):
        guide.tell(token)
    assert not guide.due(1000)


def test_budgets_are_for_models_that_think_and_for_prompts_that_let_them(
    llama: Loaded, shapes: dict[str, Loaded], thinkers: dict[str, Loaded]
) -> None:
    assert forms(llama).of(chat=True, budget=5) is None
    assert forms(shapes["demo"]).of(chat=True, start_in="final", budget=5) is None
    assert forms(thinkers["text"]).of(chat=False, budget=5) is None


def test_a_schema_is_named_in_errors_as_the_request_names_it(llama: Loaded) -> None:
    bad: Any = json.dumps({"type": "strng"})
    with pytest.raises(InvalidRequest, match=r"^Invalid schema for response_format 'person': Invalid type: strng\.$"):
        forms(llama).of(chat=True, answer=Grammar(kind="json", source=bad, name="person"))


def test_the_tiny_models_are_what_they_are_taken_for(thinkers: dict[str, Loaded], tmp_path: Path) -> None:
    assert {name: loaded.prompts.table.cut("</think>") for name, loaded in thinkers.items()} == {
        "special": [259],
        "text": ["</think>"],
    }
