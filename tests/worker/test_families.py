"""What becomes of reasoning with each model family: the prompt, its bound, the answer's split, and the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from openai_gateway.reasoning import Tags
from openai_gateway.types import EFFORTS, ChatRequest, Defaults, Effort, Message, Sampling, Tool, ToolCall, ToolChoice
from openai_gateway.worker.detokenize import TokenTable
from openai_gateway.worker.harmony import HarmonyTokens
from openai_gateway.worker.load import _template
from openai_gateway.worker.prompt import Job, Prompts
from openai_gateway.worker.segments import Segments
from openai_gateway.worker.thinking import HARMONY_ANSWER
from tests.families import ASKED, CASES, Case, of, said
from tests.worker import tiny

BY_NAME = {case.family: case for case in CASES}
QUESTION = Message("user", "hi")
SWITCH = "{{ '' if enable_thinking }}"
OPEN = {"DeepSeek V4", "GLM-5", "Kimi K3", "Kimi K2.5", "DeepSeek V3", "Nemotron 2", "DeepSeek R1, QwQ, MiniMax"}
"""Families whose prompt begins the thought."""

every_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
Models = Callable[[Case], Prompts]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Prompts for a family, with a tokenizer of single bytes and the family's marks."""
    made: dict[str, Prompts] = {}

    def model(case: Case) -> Prompts:
        if case.template not in made:
            folder = tmp_path_factory.mktemp("family")
            size = tiny.write_tokenizer(folder, (*tiny.SPECIAL, *case.special), case.template)
            tokenizer = load_tokenizer(folder)
            made[case.template] = Prompts(
                tokenizer=tokenizer,
                segments=Segments(tokenizer),
                table=TokenTable(tokenizer),
                context_length=16_384,
                vocab_size=size,
                harmony=HarmonyTokens.find(tokenizer),
                template=_template(tokenizer),
            )
        return made[case.template]

    return model


def job(prompts: Prompts, *messages: Message, **more: Any) -> Job:
    return prompts.job(1, ChatRequest(model="m", messages=messages or (QUESTION,), **more))


def text(prompts: Prompts, job: Job) -> str:
    return str(prompts.tokenizer.decode(job.tokens, skip_special_tokens=False))


# Prompts


@every_family
@pytest.mark.parametrize("effort", [None, *EFFORTS])
def test_each_effort_has_its_prompt_and_its_bound(models: Models, case: Case, effort: Effort | None) -> None:
    prompts = models(case)
    asked = job(prompts, effort=effort)
    opening = HARMONY_ANSWER if (case.family, effort) == ("gpt-oss", "none") else ""
    assert text(prompts, asked) == of(case.prompt, effort) + opening
    assert asked.thinking_budget == of(case.budget, effort)


@every_family
def test_where_the_prompt_opens_the_thought_the_answer_begins_in_it(models: Models, case: Case) -> None:
    thought = job(models(case), effort="high")
    opens = case.family in OPEN or text(models(case), thought).endswith("<think>\n")
    assert thought.start_in == ("analysis" if opens else None)
    without = {"gpt-oss": "final", "Kimi K3": "final", "Seed-OSS": "analysis"}
    assert job(models(case), effort="none").start_in == without.get(case.family)


@every_family
def test_the_models_yaml_default_counts_where_a_request_says_nothing(models: Models, case: Case) -> None:
    prompts = models(case)
    by_default = Prompts(**{name: getattr(prompts, name) for name in prompts.__slots__} | {
        "defaults": Defaults(reasoning_effort="low")
    })  # fmt: skip
    assert text(prompts, job(by_default)) == of(case.prompt, "low")
    assert text(prompts, job(by_default, effort="max")) == of(case.prompt, "max")


@pytest.mark.parametrize(("family", "kwargs", "effort", "as_effort"), [
    ("gpt-oss", {"reasoning_effort": "high"}, "none", None),
    ("DeepSeek V3", {"thinking": True}, "none", "high"),
    ("DeepSeek V3", {"thinking": False}, "high", "none"),
    ("Gemma 4", {"enable_thinking": True}, "none", "high"),
    ("GLM-5", {"reasoning_effort": "max"}, "low", "max"),
    ("Seed-OSS", {"thinking_budget": 2048}, "low", "medium"),
    ("Seed-OSS", {"thinking_budget": -1}, "low", "high"),
    ("Seed-OSS", {"thinking_budget": 0}, "high", "none"),
])  # fmt: skip
def test_keywords_of_the_request_go_before_its_effort(
    models: Models, family: str, kwargs: dict[str, Any], effort: Effort, as_effort: Effort | None
) -> None:
    prompts = models(BY_NAME[family])
    asked = job(prompts, template_kwargs=kwargs, effort=effort)
    if as_effort is None:
        assert "Reasoning: high" in text(prompts, asked)
    else:
        same = job(prompts, effort=as_effort)
        assert (asked.tokens, asked.start_in) == (same.tokens, same.start_in)
        assert asked.thinking_budget == same.thinking_budget or family != "Seed-OSS"


# Bounds


@every_family
def test_a_bound_of_the_request_holds_with_every_family(models: Models, case: Case) -> None:
    prompts = models(case)
    assert job(prompts, thinking_budget=99, effort="high").thinking_budget == 99
    nothing = job(prompts, thinking_budget=0)
    assert nothing.tokens == job(prompts, effort="none").tokens
    assert nothing.thinking_budget == of(case.budget, "none")


@every_family
def test_a_bounded_thought_leaves_room_for_the_answer(models: Models, case: Case) -> None:
    few = Sampling(max_tokens=400)
    assert job(models(case), thinking_budget=399, effort="high", sampling=few).thinking_budget == 300
    bounded = of(case.budget, "low") is not None
    assert job(models(case), effort="high", sampling=few).thinking_budget == (300 if bounded else None)


def test_the_end_of_the_context_bounds_it_as_well(models: Models) -> None:
    case = BY_NAME["Kimi K2"]
    asked = job(models(case), Message("user", "x" * 15_000), effort="medium")
    assert asked.thinking_budget == asked.max_tokens - -(-asked.max_tokens // 4)


def test_a_model_without_thoughts_has_none_to_be_bounded(models: Models) -> None:
    plain = Case("other", "hint", tiny.CHAT, {}, {}, {}, "")
    asked = job(models(plain), effort="low", thinking_budget=10)
    assert asked.thinking_budget is None


def test_harmony_without_thinking_can_still_call_a_tool(models: Models) -> None:
    prompts = models(BY_NAME["gpt-oss"])
    tools = (Tool(name="add"),)
    asked = job(prompts, effort="none", tools=tools)
    assert text(prompts, asked).endswith("<|start|>assistant")
    assert (asked.start_in, asked.thinking_budget) == (None, 0)
    idle = job(prompts, effort="none", tools=tools, tool_choice=ToolChoice("none"))
    assert text(prompts, idle).endswith(HARMONY_ANSWER)


# Answers


@every_family
@pytest.mark.parametrize("stop", [(), ("4?",)])
def test_thought_and_answer_are_told_apart_and_stop_strings_are_for_the_answer(
    models: Models, case: Case, stop: tuple[str, ...]
) -> None:
    prompts = models(case)
    asked = job(prompts, effort="high", sampling=Sampling(stop=stop))
    tokens = prompts.tokenizer.encode(case.output, add_special_tokens=False)
    path = prompts.open_text(asked)
    pieces = [path.push(token) for token in tokens]
    pieces.append(path.finish())
    assert "".join(piece.reasoning for piece in pieces) == "4?"
    assert "".join(piece.content for piece in pieces) == "4"
    assert not any(piece.stopped for piece in pieces)


@every_family
def test_a_stop_string_of_the_thought_ends_the_answer(models: Models, case: Case) -> None:
    prompts = models(case)
    path = prompts.open_text(job(prompts, effort="high", sampling=Sampling(stop=("4",))))
    pieces = [path.push(token) for token in prompts.tokenizer.encode(case.output, add_special_tokens=False)]
    pieces.append(path.finish())
    assert ("".join(p.reasoning for p in pieces), "".join(p.content for p in pieces)) == ("4?", "")
    assert pieces[-1].stopped


def test_an_answer_that_the_prompt_has_opened_has_no_marks_either(models: Models) -> None:
    prompts = models(BY_NAME["Kimi K3"])
    path = prompts.open_text(job(prompts, effort="none"))
    tokens = prompts.tokenizer.encode("4<|close|>response<|sep|><|close|>message<|sep|>", add_special_tokens=False)
    pieces = [*(path.push(token) for token in tokens), path.finish()]
    assert ("".join(p.reasoning for p in pieces), "".join(p.content for p in pieces)) == ("", "4")


@every_family
def test_a_thought_is_counted_up_to_the_mark_that_ends_it_whoever_wrote_that(models: Models, case: Case) -> None:
    """Text paths see tokens, and not whether a model chose them or a bound on its thoughts forced them."""
    prompts = models(case)
    tags = prompts.thinking.tags
    thought, end, _ = case.output.partition("<|end|>" if tags is None else tags.end)
    tokens = prompts.tokenizer.encode(case.output, add_special_tokens=False)
    path = prompts.open_text(job(prompts, effort="high"))
    counted = sum(path.push(token).reasoning_token for token in tokens)
    assert counted == len(prompts.tokenizer.encode(thought + end, add_special_tokens=False))


@pytest.mark.parametrize("tags", [("<longcat_think>", "</longcat_think>"), ("<|think:start|>", "<|think:end|>")])
def test_the_tags_of_the_vocabulary_go_before_those_of_the_family(models: Models, tags: tuple[str, str]) -> None:
    start, end = tags
    prompts = models(Case("Qwen3", "switch", said("reasoning_content", start, end) + SWITCH, {}, {}, {}, "", tags))
    assert prompts.thinking.tags == Tags(start, end)
    path = prompts.open_text(job(prompts))
    tokens = prompts.tokenizer.encode(f"{start}4?{end}4", add_special_tokens=False)
    pieces = [*(path.push(token) for token in tokens), path.finish()]
    assert ("".join(p.reasoning for p in pieces), "".join(p.content for p in pieces)) == ("4?", "4")


# History

CALLING = (
    Message("user", "one"),
    Message("assistant", "first", reasoning="OLD"),
    Message("user", "two"),
    Message("assistant", "", reasoning="RUNNING", tool_calls=(ToolCall("c", "add", "{}"),)),
    Message("tool", "3", tool_call_id="c"),
)


@every_family
def test_reasoning_is_kept_while_tools_are_called_and_dropped_behind_an_answer(models: Models, case: Case) -> None:
    prompts = models(case)
    running = text(prompts, job(prompts, *CALLING))
    assert ("OLD" in running, "RUNNING" in running) == (False, True)
    over = text(
        prompts, job(prompts, *CALLING, Message("assistant", "Three.", reasoning="LAST"), Message("user", "so?"))
    )
    assert ("OLD" in over, "RUNNING" in over, "LAST" in over) == (False, False, False)


@every_family
def test_a_question_in_between_ends_it_where_the_family_wants_that(models: Models, case: Case) -> None:
    prompts = models(case)
    said = text(prompts, job(prompts, *CALLING, QUESTION))
    assert ("RUNNING" in said) is (case.family in {"gpt-oss", "Kimi K2", "Kimi K2.5"})


@pytest.mark.parametrize(("name", "keeps"), [("clear_thinking", False), ("preserve_thinking", True)])
def test_a_template_that_decides_itself_is_left_alone(models: Models, name: str, keeps: bool) -> None:
    shows = f"m.reasoning_content is defined and {name} is defined and {name} is {str(keeps).lower()}"
    template = BY_NAME["GLM-4"].template.replace("m.reasoning_content is defined", shows)
    prompts = models(Case("GLM-4", "switch", template, {}, {}, {}, "", ("<think>", "</think>")))
    assert "OLD" in text(prompts, job(prompts, *CALLING, template_kwargs={name: keeps}))
    assert "OLD" not in text(prompts, job(prompts, *CALLING, template_kwargs={name: not keeps}))
    assert "OLD" not in text(prompts, job(prompts, *CALLING))


@every_family
def test_whether_a_model_thinks_when_nothing_is_said_is_found_out(models: Models, case: Case) -> None:
    assert models(case).template.thinks is (case.thinks or not models(case).template.off)


def test_a_template_that_mlx_lm_has_as_a_function_is_told_its_switch(tmp_path: Any) -> None:
    size = tiny.write_tokenizer(tmp_path, (*tiny.SPECIAL, "<think>", "</think>"), None)
    tokenizer = load_tokenizer(tmp_path, {"chat_template_type": "deepseek_v32"})
    prompts = Prompts(tokenizer, Segments(tokenizer), TokenTable(tokenizer), 4096, size, template=_template(tokenizer))
    assert text(prompts, job(prompts)).endswith("<｜User｜>hi<｜Assistant｜></think>")
    assert text(prompts, job(prompts, effort="none")) == text(prompts, job(prompts))
    thought = job(prompts, effort="low")
    assert text(prompts, thought).endswith("<｜Assistant｜><think>")
    assert (thought.start_in, thought.thinking_budget) == ("analysis", 512)
    assert ASKED not in text(prompts, thought)
