"""Raw outputs of models in every format of tool calls, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from openai_gateway.types import Tool

Arguments = Mapping[str, Any]
Called = tuple[str, Arguments | str]
"""A name and the arguments; as text where they are no JSON."""


def tool(name: str, properties: Mapping[str, Any], **more: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return Tool(name=name, parameters=json.dumps(schema), **more)


TEXT: Final = {"type": "string"}
TOOLS: Final = (
    tool("get_weather", {"city": TEXT, "days": {"type": "integer"}, "metric": {"type": "boolean"}}),
    tool("search", {"query": TEXT, "filters": {"type": "object"}, "limit": {"type": ["integer", "null"]}}),
    tool("write_file", {"path": TEXT, "content": TEXT}),
    tool("add-numbers", {"numbers": {"type": "array", "items": {"type": "number"}}}),
    tool("now", {}),
    Tool(name="run_code", kind="custom"),
)

PARIS: Final = ("get_weather", {"city": "Paris", "days": 3, "metric": True})
TOKYO: Final = ("get_weather", {"city": "東京 👍", "days": 1, "metric": False})
NESTED: Final = ("search", {"query": "a, b", "filters": {"tags": ["x", "y"], "age": {"min": 1}}, "limit": None})
NUMBERS: Final = ("add-numbers", {"numbers": [1, -2.5, 3e10]})
NOW: Final[tuple[str, Arguments]] = ("now", {})
ESCAPED: Final = ("write_file", {"path": "C:\\new", "content": 'say "hi"\n\tand\\bye\n'})
MARKED: Final = ("write_file", {"path": "a.py", "content": "if a < b and c > d:\n    print({'k': [1]})"})
CODE: Final = ("run_code", {"input": 'print("1 < 2")\n'})


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


@dataclass(frozen=True)
class Family:
    """How the models of one format write. `special` are the marks that their tokenizers have as single tokens."""

    format: str
    write: Callable[[Sequence[tuple[str, Arguments]]], str]
    special: tuple[str, ...] = ()
    cannot: tuple[str, ...] = field(default=())
    """Tools whose arguments the format cannot say."""


def objects(*keys: str) -> Callable[[tuple[str, Arguments]], str]:
    name, arguments = keys
    return lambda call: dumps({name: call[0], arguments: call[1]})


plainly = objects("name", "arguments")


def hermes(calls: Sequence[tuple[str, Arguments]]) -> str:
    return "\n".join(f"<tool_call>\n{plainly(call)}\n</tool_call>" for call in calls)


def listed(opens: str, closes: str, one: Callable[[tuple[str, Arguments]], str] = plainly) -> Any:
    return lambda calls: f"{opens}[{', '.join(map(one, calls))}]{closes}"


def tagged(call: str, parameter: str, close_call: str, close: str, ends: str = ">", pad: str = "") -> Any:
    def write(calls: Sequence[tuple[str, Arguments]]) -> str:
        return "\n".join(
            "\n".join(
                [
                    f"{call.format(name)}{ends}",
                    *(f"{parameter.format(k)}{ends}{pad}{as_text(v)}{pad}{close}" for k, v in arguments.items()),
                    close_call,
                ]
            )
            for name, arguments in calls
        )

    return write


def within(opens: str, closes: str, inner: Any, *, each: bool = False) -> Any:
    if each:
        return lambda calls: "\n".join(f"{opens}\n{inner([call])}\n{closes}" for call in calls)
    return lambda calls: f"{opens}\n{inner(calls)}\n{closes}"


def glm(prefix: str) -> Any:
    def one(call: tuple[str, Arguments]) -> str:
        pairs = "".join(
            f"<{prefix}arg_key>{k}</{prefix}arg_key>\n<{prefix}arg_value>{as_text(v)}</{prefix}arg_value>\n"
            for k, v in call[1].items()
        )
        return f"<{prefix}tool_call>{call[0]}\n{pairs}</{prefix}tool_call>"

    return lambda calls: "\n".join(map(one, calls))


def gemma_value(value: Any, quote: str) -> str:
    match value:
        case str():
            return f"{quote}{value}{quote}"
        case dict():
            return "{" + ",".join(f"{key}:{gemma_value(inner, quote)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ",".join(gemma_value(inner, quote) for inner in value) + "]"
    return dumps(value)


def gemma(opens: str, closes: str, quote: str) -> Any:
    return lambda calls: "".join(f"{opens}call:{name}{gemma_value(a, quote)}{closes}" for name, a in calls)


def pythonic(calls: Sequence[tuple[str, Arguments]]) -> str:
    said = (f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls)
    return f"<|tool_call_start|>[{', '.join(said)}]<|tool_call_end|>"


def kimi(calls: Sequence[tuple[str, Arguments]]) -> str:
    said = "".join(
        f"<|tool_call_begin|>functions.{name}:{n}<|tool_call_argument_begin|>{dumps(arguments)}<|tool_call_end|>"
        for n, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{said}<|tool_calls_section_end|>"


def xtml(calls: Sequence[tuple[str, Arguments]]) -> str:
    def parameter(key: str, value: Any) -> str:
        kind = "string" if isinstance(value, str) else "number"
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{as_text(value)}<|close|>argument<|sep|>'

    said = "".join(
        f'<|open|>call tool="{name}" index="{n}"<|sep|>{"".join(parameter(*pair) for pair in arguments.items())}'
        "<|close|>call<|sep|>"
        for n, (name, arguments) in enumerate(calls, 1)
    )
    return f"<|open|>tools<|sep|>{said}<|close|>tools<|sep|>"


def deepseek(one: Callable[[str, str], str], line: str = "") -> Any:
    return lambda calls: (
        "<｜tool▁calls▁begin｜>"
        + line.join(f"<｜tool▁call▁begin｜>{one(name, dumps(a))}<｜tool▁call▁end｜>" for name, a in calls)
        + "<｜tool▁calls▁end｜>"
    )


def dsml(calls: Sequence[tuple[str, Arguments]]) -> str:
    def parameter(key: str, value: Any) -> str:
        kind = "true" if isinstance(value, str) else "false"
        return f'<｜DSML｜parameter name="{key}" string="{kind}">{as_text(value)}</｜DSML｜parameter>\n'

    said = "".join(
        f'<｜DSML｜invoke name="{name}">\n{"".join(parameter(*pair) for pair in arguments.items())}</｜DSML｜invoke>\n'
        for name, arguments in calls
    )
    return f"<｜DSML｜function_calls>\n{said}</｜DSML｜function_calls>"


def minicpm(calls: Sequence[tuple[str, Arguments]]) -> str:
    def text(value: Any) -> str:
        said = as_text(value)
        return f"<![CDATA[{said}]]>" if any(char in said for char in "<&\n") else said

    return "".join(
        f'<function name="{name}">{"".join(f"<param name={k!r}>{text(v)}</param>" for k, v in a.items())}</function>'
        for name, a in calls
    )


def harmony(calls: Sequence[tuple[str, Arguments]]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(arguments)}<|call|>"
        for name, arguments in calls
    )


SECTION: Final = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")

FAMILIES: Final = (
    Family(
        "harmony",
        harmony,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"),
    ),
    Family("hermes", hermes),
    Family("qwen3_coder", within("<tool_call>", "</tool_call>", tagged(
        "<function={}", "<parameter={}", "</function>", "</parameter>", pad="\n"), each=True)),
    Family("glm47", glm("")),
    Family("longcat", glm("longcat_")),
    Family("minimax_m2", within("<minimax:tool_call>", "</minimax:tool_call>", tagged(
        '<invoke name="{}"', '<parameter name="{}"', "</invoke>", "</parameter>"))),
    Family("muse_spark", within("<atem:function_calls>", "</atem:function_calls>", tagged(
        '<atem:invoke name="{}"', '<atem:parameter name="{}"', "</atem:invoke>", "</atem:parameter>"))),
    Family("minicpm5", minicpm),
    Family("deepseek_v32", dsml, ("｜DSML｜",)),
    Family("deepseek_v3", deepseek(lambda name, said: f"function<｜tool▁sep｜>{name}\n```json\n{said}\n```", "\n"), (
        *SECTION, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")),
    Family("deepseek_v31", deepseek(lambda name, said: f"{name}<｜tool▁sep｜>{said}"), (
        *SECTION, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")),
    Family("kimi_k2", kimi),
    Family("kimi_k3", xtml, ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")),
    Family("mistral_list", listed("[TOOL_CALLS]", ""), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")),
    Family("mistral", lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{dumps(a)}" for name, a in calls), (
        "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")),
    Family("command_a", listed("<|START_ACTION|>", "<|END_ACTION|>", objects("tool_name", "parameters")), (
        "<|START_ACTION|>", "<|END_ACTION|>")),
    Family("command_r", listed("Action: ```json\n", "\n```", objects("tool_name", "parameters"))),
    Family("phi4", listed("<|tool_call|>", "<|/tool_call|>"), ("<|tool_call|>", "<|/tool_call|>")),
    Family("granite", listed("<|tool_call|>", ""), ("<|tool_call|>",)),
    Family("llama3", lambda calls: "<|python_tag|>" + "; ".join(map(objects("name", "parameters"), calls)), (
        "<|python_tag|>",)),
    Family("pythonic", pythonic, ("<|tool_call_start|>", "<|tool_call_end|>"), cannot=("add-numbers",)),
    Family("function_gemma", gemma("<start_function_call>", "<end_function_call>", "<escape>"), (
        "<start_function_call>", "<end_function_call>", "<escape>")),
    Family("gemma4", gemma("<|tool_call>", "<tool_call|>", '<|"|>'), ("<|tool_call>", "<tool_call|>", '<|"|>')),
)  # fmt: skip

ANSWERS: Final[tuple[tuple[tuple[str, Arguments], ...], ...]] = (
    (PARIS,),
    (TOKYO, PARIS),
    (NESTED,),
    (NUMBERS, NOW),
    (NOW,),
    (ESCAPED,),
    (MARKED, CODE),
)
