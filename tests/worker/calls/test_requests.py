"""Requests with tools: what the model is shown, and how its answer ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openai_gateway import reasoning
from openai_gateway.errors import InvalidRequest
from openai_gateway.types import ChatRequest, Delta, Message, ModelSpec, Sampling, Tool, ToolCall, ToolChoice
from openai_gateway.worker.calls.formats import BY_NAME, choose
from openai_gateway.worker.load import Loaded, load
from openai_gateway.worker.prompt import Prompts
from openai_gateway.worker.rows import Row
from openai_gateway.worker.templates import traits
from tests.worker import tiny

WEATHER = Tool(name="get_weather", parameters='{"type": "object", "properties": {"city": {"type": "string"}}}')
LONG = tiny.LLAMA | {"max_position_embeddings": 4096}
TOOLS = tiny.CHAT + "{{ tools | tojson if tools else '' }}"
CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
HERMES = TOOLS.replace("{{ m.content }}", "{{ m.content }}" + CALLS)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder = tiny.save(tmp_path_factory.mktemp("plain"), LONG, special=("<think>", "</think>"))
    return load(ModelSpec(id="plain", path=str(folder))).prompts


@pytest.fixture
def demo(shapes: dict[str, Loaded]) -> Prompts:
    return shapes["demo"].prompts


def templated(prompts: Prompts, template: str) -> Prompts:
    prompts.tokenizer.chat_template = template
    return replace(
        prompts,
        template=reasoning.read(template),
        format=choose(None, prompts.tokenizer),
        traits=traits(prompts.tokenizer),
    )


def chat(*messages: Message, **more: Any) -> ChatRequest:
    settings = {"tools": (WEATHER,), **more}
    return ChatRequest(model="m", messages=messages or (Message("user", "hi"),), **settings)


def shown(prompts: Prompts, request: ChatRequest) -> str:
    return str(prompts.tokenizer.decode(prompts.job(1, request).tokens, skip_special_tokens=False))


def answered(prompts: Prompts, text: str, request: ChatRequest, *, end: str = "<|end|>") -> list[Delta]:
    """The deltas of an answer of this text, ended by `end` or (if that is empty) by its length."""
    tokens = prompts.tokenizer.encode(text, add_special_tokens=False)
    tokens += [prompts.tokenizer.convert_tokens_to_ids(end)] if end else []
    job = prompts.job(1, request)
    job.max_tokens = len(tokens)
    row = Row(job, 0, prompts.open_text(job), frozenset([prompts.tokenizer.convert_tokens_to_ids(end)] if end else []))
    deltas = []
    for token in tokens:
        rendered, finish = row.read(token, None)
        if (delta := row.delta(rendered, finish)) is not None:
            deltas.append(delta)
        if finish is not None:
            break
    return deltas


def said(deltas: list[Delta]) -> tuple[str, str, list[str], str | None]:
    """Content, reasoning, the arguments of each call, and why it ended."""
    arguments: list[str] = []
    for call in (call for delta in deltas for call in delta.calls):
        arguments += [""] if call.id else []
        arguments[call.index] += call.arguments
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        arguments,
        deltas[-1].finish,
    )


def test_tools_are_given_to_a_template_that_reads_them(plain: Prompts) -> None:
    text = shown(templated(plain, HERMES), chat())
    assert '"name": "get_weather"' in text
    assert "<tool_call>" not in text


def test_tools_are_told_in_the_system_prompt_to_a_model_whose_template_has_no_place_for_them(plain: Prompts) -> None:
    prompts = templated(plain, tiny.CHAT)
    assert prompts.format is BY_NAME["prompted"]
    assert shown(prompts, chat()).index('"name": "get_weather"') < shown(prompts, chat()).index("user: hi")
    assert said(answered(prompts, f"Hm.\n{CALL}", chat())) == ("Hm.", "", ['{"city": "Paris"}'], "tool_calls")


def test_tools_that_must_not_be_called_are_not_shown_and_nothing_is_taken_for_a_call(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    for request in (chat(tool_choice=ToolChoice("none")), chat(tools=())):
        assert "get_weather" not in shown(prompts, request)
        assert said(answered(prompts, CALL, request)) == (CALL, "", [], "stop")


def test_all_tools_are_shown_whichever_may_be_called(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    tools = (WEATHER, Tool(name="now"))
    assert shown(prompts, chat(tools=tools)) == shown(
        prompts, chat(tools=tools, tool_choice=ToolChoice("required", ("now",)))
    )


def test_an_answer_with_a_complete_call_ends_with_tool_calls(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    deltas = answered(prompts, f"Well.\n{CALL}\n{CALL}", chat())
    assert said(deltas) == ("Well.", "", ['{"city": "Paris"}'] * 2, "tool_calls")
    calls = [call for delta in deltas for call in delta.calls if call.id]
    assert len({call.id for call in calls}) == 2
    assert {call.name for call in calls} == {"get_weather"}


def test_json_that_goes_on_with_a_given_text_is_no_call_without_its_mark(plain: Prompts) -> None:
    bare = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    prompts = templated(plain, HERMES)
    assert said(answered(prompts, bare, chat())) == ("", "", ['{"city": "Paris"}'], "tool_calls")
    continued = chat(Message("user", "hi"), Message("assistant", "You would write "), continue_final=True)
    assert said(answered(prompts, bare, continued)) == (bare, "", [], "stop")


def test_an_answer_that_is_cut_ends_with_length_and_keeps_what_there_is_of_its_call(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    part, _, _ = CALL.partition("ris")
    assert said(answered(prompts, part, chat(), end="")) == ("", "", ['{"city": "Pa'], "length")
    text = f'{CALL}\n<tool_call>\n{{"na'
    assert said(answered(prompts, text, chat(), end="")) == ('{"na', "", ['{"city": "Paris"}'], "length")


def test_without_parallel_calls_the_first_one_ends_the_answer(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    deltas = answered(prompts, f"{CALL}\n{CALL} Bye.", chat(parallel_tool_calls=False))
    assert said(deltas) == ("", "", ['{"city": "Paris"}'], "tool_calls")


def test_stop_strings_end_content_and_never_arguments(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    request = chat(sampling=Sampling(stop=("Paris",)))
    assert said(answered(prompts, f"{CALL} In Paris", request)) == ("In ", "", ['{"city": "Paris"}'], "tool_calls")


def test_a_result_of_no_call_is_refused_with_its_place(plain: Prompts) -> None:
    with pytest.raises(InvalidRequest, match="no tool call 'x'"):
        plain.job(1, chat(Message("user", "?"), Message("tool", "4", tool_call_id="x")))


HEADERS = [
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
    " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.get_weather<|channel|>analysis<|message|>",
    "<|channel|>analysis to=get_weather code<|message|>",
    "<|channel|>commentary to=functions.get_weather json",
]


@pytest.mark.parametrize("header", HEADERS)
def test_harmony_calls_are_found_on_any_channel_and_in_either_place_of_the_header(demo: Prompts, header: str) -> None:
    text = f'{header}{{"city": "Paris"}}'
    assert said(answered(demo, text, chat(), end="<|call|>")) == ("", "", ['{"city": "Paris"}'], "tool_calls")


def test_what_harmony_says_before_a_call_is_content_and_what_it_thinks_is_reasoning(demo: Prompts) -> None:
    text = (
        "<|channel|>analysis<|message|>Paris.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        f'<|start|>assistant{HEADERS[0]}{{"city": "Paris"}}'
    )
    assert said(answered(demo, text, chat(), end="<|call|>")) == (
        "I look.",
        "Paris.",
        ['{"city": "Paris"}'],
        "tool_calls",
    )


def test_what_harmony_tells_to_a_tool_that_nobody_offered_is_no_call_and_no_content(demo: Prompts) -> None:
    text = "<|channel|>analysis to=python code<|message|>print(1)<|end|><|start|>assistant<|channel|>final<|message|>1"
    assert said(answered(demo, text, chat(), end="<|return|>")) == ("1", "print(1)", [], "stop")
    told = f"{HEADERS[0]}{{}}<|end|><|start|>assistant<|channel|>final<|message|>1"
    assert said(answered(demo, told, chat(tools=()), end="<|return|>"))[::3] == ("1", "stop")


def test_a_call_of_harmony_that_is_cut_keeps_what_there_is_of_it(demo: Prompts) -> None:
    assert said(answered(demo, f'{HEADERS[0]}{{"city": "Pa', chat(), end="")) == ("", "", ['{"city": "Pa'], "length")
    assert said(answered(demo, "<|channel|>commentary to=functions.get", chat(), end=""))[2:] == ([], "length")


def test_a_conversation_with_calls_is_shown_to_harmony_as_it_was(demo: Prompts) -> None:
    calls = (ToolCall("1", "get_weather", '{"city":"Paris"}'), ToolCall("2", "get_weather", '{"city":"Rome"}'))
    text = shown(
        demo,
        chat(
            Message("user", "?"),
            Message("assistant", None, tool_calls=calls),
            Message("tool", "rain", tool_call_id="2"),
            Message("tool", "sun", tool_call_id="1"),
        ),
    )
    paris, sun, rome, rain = map(text.index, ("Paris", ">sun<", "Rome", ">rain<"))
    assert paris < sun < rain
    assert paris < rome < rain


def test_the_format_is_chosen_from_the_template_or_the_vocabulary_or_as_models_yaml_says(
    demo: Prompts, plain: Prompts
) -> None:
    assert choose(None, demo.tokenizer) is BY_NAME["harmony"]
    assert choose("glm47", demo.tokenizer) is choose("laguna", demo.tokenizer) is BY_NAME["glm47"]
    signs = {
        "<tool_call>": "hermes", "<tool_call>\n<function=": "qwen3_coder", "<tool_call>{{k}}<arg_key>": "glm47",
        "[TOOL_CALLS]": "mistral_list", "[TOOL_CALLS][ARGS]": "mistral", "<｜tool▁calls▁begin｜>": "deepseek_v31",
        "<｜tool▁calls▁begin｜>```json": "deepseek_v3", "<|tool_calls_section_begin|>": "kimi_k2",
        "<|tool_call>x<tool_call|>": "gemma4", '{"name": x, "parameters": y}': "llama3", "<|tool|>": "phi4",
        "<|tool_call|>": "granite", "<|START_ACTION|>": "command_a", "": "prompted",
    }  # fmt: skip
    for sign, name in signs.items():
        plain.tokenizer.chat_template = tiny.CHAT + f"{{# {sign} #}}" if "{" in sign else tiny.CHAT + sign
        assert choose(None, plain.tokenizer) is BY_NAME[name], sign


def test_a_format_that_is_none_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tool_format 'xml'.*harmony, hermes"):
        load(ModelSpec(id="m", path=str(tmp_path / "nowhere"), tool_format="xml"))


def test_the_loaded_model_says_how_it_writes_calls(shapes: dict[str, Loaded]) -> None:
    assert shapes["demo"].info.tools == "harmony"
    assert shapes["llama"].info.tools == "prompted"


def test_a_custom_tool_is_shown_as_a_function_of_one_text_which_the_client_gets_plain(plain: Prompts) -> None:
    prompts = templated(plain, HERMES)
    request = chat(tools=(Tool(name="run", kind="custom"),))
    assert '"required": ["input"]' in shown(prompts, request)
    for arguments in ('{"input": "print(\\"a\\u00e9\\")\\n"}', '"print(\\"aé\\")\\n"'):
        text = f'<tool_call>{{"name": "run", "arguments": {arguments}}}</tool_call>'
        assert said(answered(prompts, text, request)) == ("", "", ['print("aé")\n'], "tool_calls")
