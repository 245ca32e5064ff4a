from __future__ import annotations

from typing import Any

import pytest

from openai_gateway import reasoning
from openai_gateway.reasoning import HINTS, Plan, Template, plan, read
from openai_gateway.types import EFFORTS, Effort

# What each family's template does with its variables, and nothing else of it.
GPT_OSS = """
{%- macro system() -%}
  {%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
  {{- "Reasoning: " + reasoning_effort }}
{%- endmacro -%}
{{ system() }}{% for message in messages %}{{ message.thinking }}{{ message.content }}{% endfor %}
"""
QWEN3 = """
{%- for message in messages %}{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
DEEPSEEK_V31 = """
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{% for message in messages %}{{ message['content'] }}{% endfor %}
{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}
"""
DEEPSEEK_V4 = """
{%- set thinking = thinking | default(false) -%}
{%- if thinking and reasoning_effort == 'max' -%}{{ 'Absolute maximum.' }}
{%- elif thinking and reasoning_effort == 'high' -%}{{ 'Thorough.' }}{%- endif -%}
{%- for message in messages -%}{{ message.content }}{%- endfor -%}
"""
GLM_45 = """
{%- for m in messages %}
  {{- m.content }}
  {{- '/nothink' if (enable_thinking is defined and not enable_thinking) else '' }}
{%- endfor %}
"""
GLM_47 = (
    GLM_45
    + "{%- if not (clear_thinking is defined and clear_thinking) %}{{ messages[-1].reasoning_content }}{% endif %}"
)
GLM_5 = """
{%- set effort = 'high' if reasoning_effort is defined and reasoning_effort == 'high' else 'max' -%}
{{- 'Reasoning Effort: ' ~ effort }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '</think>' }}{% endif %}
"""
SMOLLM3 = """
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}{% generation %}{{ message.content }}{% endgeneration %}{%- endif -%}
  {%- if message.content is none or message.content == "thinking" -%}{%- continue -%}{%- endif -%}
{%- endfor -%}
"""
MISTRAL = """
{%- if reasoning_effort is not defined or reasoning_effort is none %}{%- set reasoning_effort = 'none' %}{%- endif %}
{%- if reasoning_effort not in ['none', 'high'] %}{{- raise_exception('high or none') }}{%- endif %}
{{- reasoning_effort }}
"""
SEED_OSS = """
{%- if thinking_budget is not defined %}{%- set thinking_budget = -1 %}{%- endif %}
{%- if thinking_budget == 0 %}{{- 'no thinking' }}{%- elif thinking_budget > 0 %}{{- thinking_budget }}{%- endif %}
"""
GEMMA = """
{%- if enable_thinking is defined and enable_thinking -%}{{- '<|think|>' -}}{%- endif -%}
{%- for message in messages -%}{{- message.get('reasoning') or message.get('reasoning_content') -}}{%- endfor -%}
"""
PLAIN = "{% for m in messages %}{{ m.content }}{{ m.thinking }}{{ m.reasoning_effort }}{% endfor %}"

# A level for each effort of `EFFORTS`, as a table of `contract` reads.
FAMILIES: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "gpt-oss": (
        GPT_OSS,
        "effort",
        [{"reasoning_effort": level} for level in ("low", "low", "low", "medium", "high", "high", "high")],
    ),
    "qwen3": (QWEN3, "switch", [{"enable_thinking": on} for on in (False, *[True] * 6)]),
    "deepseek-v3.1": (DEEPSEEK_V31, "switch", [{"thinking": on} for on in (False, *[True] * 6)]),
    "deepseek-v4": (
        DEEPSEEK_V4,
        "effort",
        [
            {"thinking": False},
            *[{"thinking": True}] * 3,
            {"thinking": True, "reasoning_effort": "high"},
            *[{"thinking": True, "reasoning_effort": "max"}] * 2,
        ],
    ),
    "glm-4.5": (GLM_45, "switch", [{"enable_thinking": on} for on in (False, *[True] * 6)]),
    "glm-4.7": (GLM_47, "switch", [{"enable_thinking": on} for on in (False, *[True] * 6)]),
    "glm-5": (
        GLM_5,
        "effort",
        [
            {"enable_thinking": False},
            *[{"enable_thinking": True, "reasoning_effort": "high"}] * 4,
            *[{"enable_thinking": True, "reasoning_effort": "max"}] * 2,
        ],
    ),
    "smollm3": (SMOLLM3, "switch", [{"enable_thinking": on} for on in (False, *[True] * 6)]),
    "mistral": (
        MISTRAL,
        "effort",
        [{"reasoning_effort": level} for level in ("none", "none", "high", "high", "high", "high", "high")],
    ),
    "seed-oss": (SEED_OSS, "switch", [{"thinking_budget": tokens} for tokens in (0, 512, 512, 2048, -1, -1, -1)]),
    "gemma": (GEMMA, "switch", [{"enable_thinking": on} for on in (False, *[True] * 6)]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_effort_reaches_a_family_in_the_words_of_its_template(family: str) -> None:
    source, kind, expected = FAMILIES[family]
    template = read(source)
    assert template.kind == kind
    assert [plan(effort, template) for effort in EFFORTS] == [Plan(kwargs) for kwargs in expected]


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_template_without_any_control_gets_a_sentence_for_its_system_prompt(effort: Effort) -> None:
    template = read(PLAIN)
    assert template.kind == "hint"
    assert plan(effort, template) == Plan(hint=HINTS[effort])


def test_sentences_differ_for_every_effort() -> None:
    assert len(set(HINTS.values())) == len(EFFORTS)


@pytest.mark.parametrize("source", [PLAIN, *(source for source, *_ in FAMILIES.values())])
def test_nothing_is_said_when_no_effort_was_asked_for(source: str) -> None:
    assert plan(None, read(source)) == Plan()


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_level_that_the_template_names_is_said_as_it_is(effort: Effort) -> None:
    names = " ".join(f"'{level}'," for level in EFFORTS)
    template = read("{% if reasoning_effort in [" + names + "] %}{{ reasoning_effort }}{% endif %}")
    assert plan(effort, template) == Plan({"reasoning_effort": effort})


def test_a_level_without_a_name_goes_to_the_nearest() -> None:
    template = read("{{ {'minimal': 1, 'low': 2, 'high': 3}[reasoning_effort] }}")
    said = [plan(effort, template).kwargs["reasoning_effort"] for effort in EFFORTS]
    assert said == ["minimal", "minimal", "low", "high", "high", "high", "high"]


def test_variables_that_a_template_sets_itself_are_not_its_controls() -> None:
    source = "{% set thinking = 'x' %}{{ thinking }}{% for enable_thinking in [1] %}{{ enable_thinking }}{% endfor %}"
    assert read(source).kind == "hint"


def test_a_name_that_one_branch_assigns_and_reads_is_no_control() -> None:
    branch = (
        "{% for m in messages %}{% if m.role %}{% set thinking = m.thinking %}{{ thinking }}{% endif %}{% endfor %}"
    )
    assert read(branch).variables == {"messages"}
    assert read("{% set thinking = thinking | default(true) %}{{ thinking }}").variables == {"thinking"}


def test_words_of_a_template_are_not_its_controls() -> None:
    assert read("{# reasoning_effort #}Answer with thinking and enable_thinking.{{ 'thinking_budget' }}").kind == "hint"


@pytest.mark.parametrize(
    "source", ["", "{% if %}", "{{ enable_thinking", "{% unknown enable_thinking %}", "{{ 1 | unknown }}"]
)
def test_what_is_no_template_has_no_controls(source: str) -> None:
    assert read(source) == Template()


def test_generation_marks_are_read_through() -> None:
    template = read("{% generation %}{{ inner }}{% endgeneration %}{{ enable_thinking }}")
    assert template.variables == {"inner", "enable_thinking"}


def test_budgets_rise_with_the_effort() -> None:
    budgets = [reasoning.BUDGETS[effort] for effort in EFFORTS]
    finite = [budget for budget in budgets if budget >= 0]
    assert finite == sorted(finite)
    assert budgets[len(finite) :] == [-1] * (len(budgets) - len(finite))
