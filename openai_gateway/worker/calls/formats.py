"""The table: one row for each way in which a model family writes its tool calls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.worker.calls import grammars, literals, named
from openai_gateway.worker.calls.deltas import Calls
from openai_gateway.worker.calls.grammars import Calling, as_named, counted, envelope, gemma, keyed, tagged
from openai_gateway.worker.calls.json_calls import objects
from openai_gateway.worker.calls.literals import PYTHON, Gemma
from openai_gateway.worker.calls.named import DEEPSEEK_CALL, DEEPSEEK_SECTION, KIMI, MISTRAL, SECTION
from openai_gateway.worker.calls.reading import Written
from openai_gateway.worker.calls.tagged import Keys, Tags
from openai_gateway.worker.calls.tape import Step, Tape
from openai_gateway.worker.calls.values import is_text, types_of

Found = Callable[[str, Collection[str]], bool]
"""Tells a format by a chat template and the vocabulary."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write tool calls.

    `found` tells it by the chat template and the vocabulary; `written` is None for harmony, whose calls are channels.
    `form` is the grammar of its calls, `also` are other names of it.
    """

    name: str
    found: Found
    written: Written | None
    form: grammars.Form
    also: tuple[str, ...] = ()
    told: bool = False
    """Whether the model is told of it in the system prompt, for its template tells of no tools, or of no format."""


def any_of(*texts: str) -> Found:
    """The template has one of these texts, or the vocabulary one of these tokens."""
    return lambda template, vocabulary: any(text in template or text in vocabulary for text in texts)


def template(*texts: str) -> Found:
    """The template has all of these texts."""
    return lambda source, vocabulary: all(text in source for text in texts)


def tokens(*texts: str) -> Found:
    """The vocabulary has all of these tokens."""
    return lambda source, vocabulary: all(text in vocabulary for text in texts)


def enclosed(opens: str, closes: str = "", *, bare: str = "", fence: str = "", marked: bool = True) -> Written:
    """JSON objects between two marks; `bare`, also without them (a slip if `marked`); `fence` is behind the first."""

    def read(tape: Tape, calls: Calls, opened: str) -> Step[None]:
        if fence:
            yield from tape.space()
            yield from tape.expect(fence)
        yield from objects(tape, calls, closes, known=opened == bare)

    return Written((opens,), read, () if fence else (opens, closes) if closes else (opens,), bare, marked)


def section(tags: Tags, one: grammars.One, line: str = "\n") -> grammars.Calling:
    """All calls in a section of their own."""
    opens, closes = tags.section or ("", "")
    return grammars.Calling(one, opens, closes, line=line, between=line)


def _whether_text(schema: Any) -> str:
    return f' string="{"true" if is_text(schema) else "false"}"'


def _type(schema: Any) -> str:
    kinds = sorted(types_of(schema))
    return f' type="{kinds[0] if len(kinds) == 1 else "any"}"'


QWEN3_CODER: Final = Tags(
    ("<function=", "</function>"), ("<parameter=", "</parameter>"), ("<tool_call>", "</tool_call>"), padding="\n"
)
MINIMAX_M2: Final = Tags(
    ("<invoke name=", "</invoke>"),
    ("<parameter name=", "</parameter>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
)
MUSE_SPARK: Final = Tags(
    ("<atem:invoke name=", "</atem:invoke>"),
    ("<atem:parameter name=", "</atem:parameter>"),
    ("<atem:function_calls>", "</atem:function_calls>"),
)
DEEPSEEK_V32: Final = Tags(
    ("<｜DSML｜invoke name=", "</｜DSML｜invoke>"),
    ("<｜DSML｜parameter name=", "</｜DSML｜parameter>"),
    ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
)
MINICPM5: Final = Tags(("<function name=", "</function>"), ("<param name=", "</param>"), cdata=True)
KIMI_K3: Final = Tags(
    ("<|open|>call tool=", "<|close|>call<|sep|>"),
    ("<|open|>argument key=", "<|close|>argument<|sep|>"),
    ("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
    ends="<|sep|>",
    json=("<|open|>json", "<|close|>json<|sep|>"),
)
GLM47: Final = Keys(("<tool_call>", "</tool_call>"), ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"))
LONGCAT: Final = Keys(
    ("<longcat_tool_call>", "</longcat_tool_call>"),
    ("<longcat_arg_key>", "</longcat_arg_key>"),
    ("<longcat_arg_value>", "</longcat_arg_value>"),
)
GEMMA4: Final = Gemma(("<|tool_call>", "<tool_call|>"), '<|"|>')
FUNCTION_GEMMA: Final = Gemma(("<start_function_call>", "<end_function_call>"), "<escape>")
KIMI_K2: Final = Written((SECTION[0], KIMI[0]), named.kimi_k2, (*SECTION, *KIMI))
DEEPSEEK: Final = Written((DEEPSEEK_SECTION[0], DEEPSEEK_CALL[0]), named.deepseek, (*DEEPSEEK_SECTION, *DEEPSEEK_CALL))
MISTRAL_WRITTEN: Final = Written(MISTRAL[:1], named.mistral, MISTRAL)
PYTHONIC: Final = Written(PYTHON[:1], literals.pythonic, PYTHON)

HERMES: Final = enclosed("<tool_call>", "</tool_call>", bare="{")
AS_HERMES: Final = Calling(envelope(), "<tool_call>", "</tool_call>", line="\n", between="\n", each=True)
TOOL_NAME: Final = envelope("tool_name", "parameters")
CALL_ID: Final = r', "id": "[A-Za-z0-9]{9}"'

FORMATS: Final = (
    Format("harmony", tokens("<|channel|>", "<|constrain|>", "<|message|>", "<|call|>"), None, grammars.harmony),
    Format("minimax_m2", template("<minimax:tool_call>"), MINIMAX_M2.written, section(MINIMAX_M2, tagged(MINIMAX_M2))),
    Format("gemma4", template("<|tool_call>", "<tool_call|>"), GEMMA4.written, gemma(GEMMA4)),
    Format("function_gemma", template("<start_function_call>"), FUNCTION_GEMMA.written, gemma(FUNCTION_GEMMA)),
    Format(
        "longcat",
        template("<longcat_tool_call>"),
        LONGCAT.written,
        Calling(keyed(LONGCAT), LONGCAT.call[0], between="\n", each=True),
    ),
    Format(
        "glm47",
        template("<arg_key>"),
        GLM47.written,
        Calling(keyed(GLM47), GLM47.call[0], between="\n", each=True),
        also=("laguna",),
    ),
    Format(
        "deepseek_v32",
        any_of("｜DSML｜", "chat_templates.deepseek_v32"),
        DEEPSEEK_V32.written,
        section(DEEPSEEK_V32, tagged(DEEPSEEK_V32, said=_whether_text)),
    ),
    Format(
        "deepseek_v3",
        template("<｜tool▁calls▁begin｜>", "```json"),
        DEEPSEEK,
        Calling(
            as_named(f"{DEEPSEEK_CALL[0]}function{DEEPSEEK_CALL[1]}", "\n```json\n", f"\n```{DEEPSEEK_CALL[2]}"),
            *DEEPSEEK_SECTION,
            between="\n",
        ),
    ),
    Format(
        "deepseek_v31",
        template("<｜tool▁calls▁begin｜>"),
        DEEPSEEK,
        Calling(as_named(*DEEPSEEK_CALL), *DEEPSEEK_SECTION),
    ),
    Format(
        "kimi_k2",
        template("<|tool_calls_section_begin|>"),
        KIMI_K2,
        Calling(counted(f"{KIMI[0]}functions.", *KIMI[1:]), *SECTION),
    ),
    Format(
        "kimi_k3",
        tokens("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        KIMI_K3.written,
        section(KIMI_K3, tagged(KIMI_K3, line="", said=_type, index=' index="[0-9]{1,3}"'), line=""),
    ),
    Format(
        "pythonic",
        any_of("<|tool_list_start|>", "<|tool_call_start|>"),
        PYTHONIC,
        Calling(grammars.python, f"{PYTHON[0]}", f"]{PYTHON[1]}", opening="[", between=", "),
    ),
    Format(
        "muse_spark",
        any_of("<atem:function_calls>", "chat_templates.muse_spark"),
        MUSE_SPARK.written,
        section(MUSE_SPARK, tagged(MUSE_SPARK)),
    ),
    Format(
        "qwen3_coder",
        template("<tool_call>", "<function="),
        QWEN3_CODER.written,
        Calling(tagged(QWEN3_CODER, quote=""), "<tool_call>", "</tool_call>", line="\n", between="\n", each=True),
    ),
    Format(
        "minicpm5",
        template('<function name="', '<param name="'),
        MINICPM5.written,
        Calling(tagged(MINICPM5, line=""), MINICPM5.call[0], each=True),
    ),
    Format(
        "mistral",
        template("[TOOL_CALLS]", "[ARGS]"),
        MISTRAL_WRITTEN,
        Calling(as_named("", MISTRAL[2]), MISTRAL[0], each=True),
    ),
    Format(
        "mistral_list",
        template("[TOOL_CALLS]"),
        MISTRAL_WRITTEN,
        Calling(envelope(more=CALL_ID), MISTRAL[0], "]", opening="[", between=", "),
    ),
    Format(
        "command_a",
        any_of("<|START_ACTION|>"),
        enclosed("<|START_ACTION|>", "<|END_ACTION|>"),
        Calling(TOOL_NAME, "<|START_ACTION|>", "]<|END_ACTION|>", opening="[", between=", "),
    ),
    Format(
        "command_r",
        template("Action:", "```json"),
        enclosed("Action:", "```", fence="```json"),
        Calling(TOOL_NAME, "Action:", "]\n```", opening=" ```json\n[", between=", "),
    ),
    Format(
        "phi4",
        template("<|tool|>"),
        enclosed("<|tool_call|>", "<|/tool_call|>"),
        Calling(envelope(), "<|tool_call|>", "]<|/tool_call|>", opening="[", between=", "),
    ),
    Format(
        "granite",
        template("<|tool_call|>"),
        enclosed("<|tool_call|>"),
        Calling(envelope(), "<|tool_call|>", "]", opening="[", between=", "),
    ),
    Format("hermes", template("<tool_call>"), HERMES, AS_HERMES, also=("json_tools",)),
    Format("llama3", template('"parameters": '), enclosed("<|python_tag|>", bare="{", marked=False), grammars.llama3),
    Format("prompted", lambda source, vocabulary: True, HERMES, AS_HERMES, told=True),
)
BY_NAME: Final = {name: row for row in FORMATS for name in (row.name, *row.also)}


def check(wanted: str | None) -> None:
    """Raises ValueError for a name in models.yaml that is that of no format."""
    if wanted is not None and wanted not in BY_NAME:
        raise ValueError(f"there is no tool_format {wanted!r}; those known are {', '.join(sorted(BY_NAME))}")


def choose(wanted: str | None, tokenizer: Any) -> Format | None:
    """The format that models.yaml says or that a model was trained on; None for a model without a chat template."""
    if not tokenizer.has_chat_template:
        return None
    named = wanted or tokenizer.init_kwargs.get("tool_parser_type")
    if named in BY_NAME:
        return BY_NAME[named]
    source = tokenizer.chat_template
    source = "".join(source.values()) if isinstance(source, dict) else source or ""
    if (shipped := getattr(tokenizer, "_chat_template", None)) is not None:
        source += shipped.__module__
    vocabulary = tokenizer.get_vocab()
    return next(row for row in FORMATS if row.found(source, vocabulary))
