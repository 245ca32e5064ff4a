"""What chat templates take of tool calls, found out by trying; those here do as the ones of the families do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from openai_gateway.worker.templates import Traits, traits
from tests.worker import tiny

HEAD = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}"
FOOT = "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
QWEN = HEAD + (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}" + FOOT
)
DEEPSEEK = HEAD + (
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' ' + c.function.arguments }}{% endfor %}" + FOOT
)
GPT_OSS = HEAD + (
    "{% if m.tool_calls %}{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}to={{ c.name }} {{ c.arguments | tojson }}{% endif %}" + FOOT
)
LLAMA = HEAD + (
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('only single calls') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
    "{% endif %}" + FOOT
)
MISTRAL = HEAD + (
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}" + FOOT
)
KIMI = HEAD + (
    "{% for c in m.tool_calls or [] %}<|call|>{{ c.id }}<|args|>{{ c.function.arguments | tojson }}{% endfor %}" + FOOT
)
PRINTS = HEAD + ("{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}" + FOOT)
ITEMS = HEAD + (
    "{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>{% for k, v in c.function.arguments | items %}"
    "<parameter={{ k }}>{{ v }}{% endfor %}{% endfor %}" + FOOT
)
ALTERNATES = HEAD + ("{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('roles') }}{% endif %}" + FOOT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder, (*tiny.SPECIAL, "<|call|>"), tiny.CHAT)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN, Traits(True)),
        (ITEMS, Traits(True)),
        (DEEPSEEK, Traits(True, arguments="text")),
        (PRINTS, Traits(True, arguments="text")),
        (GPT_OSS, Traits(True, several=False, remarks=False)),
        (LLAMA, Traits(True, several=False)),
        (MISTRAL, Traits(True, ids="short")),
        (KIMI, Traits(True, ids="counted")),
        (tiny.CHAT, Traits()),
        (ALTERNATES, Traits()),
        ("{{ raise_exception('never') }}", Traits()),
    ],
)
def test_a_template_is_tried_for_what_it_takes(tokenizer: Any, template: str, expected: Traits) -> None:
    tokenizer.chat_template = template
    assert traits(tokenizer) == expected


def test_the_template_of_the_embedded_model_takes_all_there_is() -> None:
    demo = Path(__file__).parent.parent.parent / "openai_gateway" / "demo"
    assert traits(load_tokenizer(demo)) == Traits(True)
