"""Measures a running OpenAI-compatible server on the held-out cases; knows nothing about how it was trained."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any, cast

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from openai_gateway.demo.training.cases import (
    Case,
    call_cases,
    count_cases,
    effort_cases,
    fact_cases,
    object_cases,
    recall_cases,
    repeat_cases,
    result_cases,
    sum_cases,
    unfit_cases,
    unknown_cases,
    unneeded_cases,
    written,
)

CARD = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
EFFORTS = ("none", "low", "medium", "high")
GROWTH = 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the table asks `case` at `effort`; `target` is the share that must be right, if any.

    Where the answers are objects, that is a share of their values.
    """

    row: str
    case: Case
    effort: str
    target: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back: the answer and how many tokens of thinking it took."""

    job: Job
    answer: str
    reasoning_tokens: int

    @property
    def right(self) -> bool:
        case = self.job.case
        return same_json(self.answer, case.expected) if case.json else self.answer.strip() == case.expected

    @property
    def values(self) -> list[bool]:
        """For an object, whether each of its values is right, those included that it lacks or has too many."""
        if self.job.case.skill != "objects":
            return []
        expected = json.loads(self.job.case.expected)
        try:
            said = json.loads(self.answer)
        except ValueError:
            said = None
        said = said if isinstance(said, dict) else {}
        return [
            key in said and key in expected and json.dumps(said[key]) == json.dumps(expected[key])
            for key in expected | said
        ]


def same_json(text: str, expected: str) -> bool:
    """Whether two JSON texts have the same value, types of numbers and truth values included."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return json.dumps(value, sort_keys=True) == json.dumps(json.loads(expected), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    cases: int
    right: float
    target: float | None
    reasoning_tokens: float

    @property
    def missed(self) -> bool:
        return self.target is not None and self.right < self.target

    def cells(self) -> tuple[str, ...]:
        target = "" if self.target is None else f"{self.target:.0%}"
        return self.name, str(self.cases), f"{self.right:.1%}", target, f"{self.reasoning_tokens:.1f}"


HEADINGS = ("skill", "cases", "right", "target", "mean reasoning tokens")


def jobs() -> list[Job]:
    rows: list[tuple[str, Iterable[Case], str, float | None]] = [
        ("facts", fact_cases(), "medium", 0.9),
        ("repeat words", repeat_cases(200), "medium", 0.95),
        *((f"sums, effort {effort}", sum_cases(200), effort, 0.95) for effort in EFFORTS),
        ("recall a name, next turn", recall_cases(100, 0), "medium", 0.9),
        ("recall a name, two turns later", recall_cases(100, 1), "medium", 0.9),
        ("count", count_cases(200), "medium", None),
        ("unknown questions", unknown_cases(), "medium", None),
        ("tool calls", call_cases(200), "medium", 0.9),
        *((f"tool calls, effort {effort}", call_cases(100), effort, None) for effort in ("none", "low", "high")),
        ("no call, as none is needed", unneeded_cases(100), "medium", 0.9),
        ("no call, as none fits", unfit_cases(100), "medium", None),
        ("answers from a tool's result", result_cases(200), "medium", 0.9),
        ("JSON objects, response_format", object_cases(200, shown=True), "medium", 0.9),
        ("JSON objects, asked for in words", object_cases(100, shown=False), "medium", None),
        *((f"mixture, effort {effort}", effort_cases(25), effort, None) for effort in EFFORTS),
    ]
    return [Job(name, case, effort, target) for name, cases, effort, target in rows for case in cases]


async def answer(client: AsyncOpenAI, model: str, job: Job) -> Outcome:
    """Asks at temperature 0; an error of the server is raised, not counted as a wrong answer."""
    completion = await client.chat.completions.create(
        model=model,
        messages=cast(Any, list(job.case.messages)),
        temperature=0,
        max_completion_tokens=1024,
        reasoning_effort=cast(Any, job.effort),
        **form_of(job.case),
    )
    details = completion.usage.completion_tokens_details if completion.usage else None
    thought = (details.reasoning_tokens if details else None) or 0
    return Outcome(job, text_of(completion.choices[0].message), thought)


def form_of(case: Case) -> dict[str, Any]:
    """What a request says of tools and of the form of its answer."""
    form: dict[str, Any] = {"tools": list(case.tools)} if case.tools else {}
    if case.schema is not None:
        named = {"name": "answer", "schema": case.schema, "strict": True}
        form["response_format"] = {"type": "json_schema", "json_schema": named}
    return form


def text_of(message: ChatCompletionMessage) -> str:
    """The content, or the only call as `written` has it; several calls are no right answer to anything."""
    if not message.tool_calls:
        return message.content or ""
    called = [call.function for call in message.tool_calls if call.type == "function"]
    # Arguments that were cut off are no JSON, and so is the whole.
    return "\n".join(written(function.name, function.arguments) for function in called)


async def ask_all(client: AsyncOpenAI, model: str, todo: list[Job], concurrency: int) -> list[Outcome]:
    """Keeps `concurrency` requests under way."""
    places = asyncio.Semaphore(concurrency)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("asking", total=len(todo))

        async def one(job: Job) -> Outcome:
            async with places:
                outcome = await answer(client, model, job)
            bar.advance(task)
            return outcome

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(job)) for job in todo]
    return [task.result() for task in running]


def summarize(outcomes: list[Outcome]) -> list[Row]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.job.row, []).append(outcome)
    rows = []
    for name, group in grouped.items():
        target, thought = group[0].job.target, mean(outcome.reasoning_tokens for outcome in group)
        values = [right for outcome in group for right in outcome.values]
        rows.append(Row(name, len(group), mean(o.right for o in group), None if values else target, thought))
        if values:
            rows.append(Row(f"values of {name}", len(values), mean(values), target, thought))
    return rows


def growth(rows: list[Row]) -> float:
    """How many times longer the model thinks at high effort than at low."""
    tokens = {row.name: row.reasoning_tokens for row in rows}
    return tokens["mixture, effort high"] / max(tokens["mixture, effort low"], 1e-9)


def markdown(rows: list[Row]) -> str:
    lines = [HEADINGS, ("---", "---:", "---:", "---:", "---:"), *(row.cells() for row in rows)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{table}\n\nReasoning at high effort is {growth(rows):.1f} times as long as at low effort.\n"


def write_card(path: Path, text: str) -> None:
    """Replaces what stands between the two marker comments."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{path} has no markers {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def show(rows: list[Row], wrong: list[Outcome]) -> None:
    console = Console()
    for outcome in wrong:
        question = outcome.job.case.messages[-1]["content"]
        console.print(f"{outcome.job.row}: {question!r} -> {outcome.answer!r}", markup=False, highlight=False)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*row.cells(), style="red" if row.missed else None)
    console.print(table)
    console.print(f"high : low = {growth(rows):.1f} (target {GROWTH})")


async def measure(base_url: str, api_key: str, model: str, concurrency: int) -> list[Outcome]:
    async with AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=600, max_retries=4) as client:
        return await ask_all(client, model, jobs(), concurrency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--write-card", action="store_true", help="put the table into the model card")
    parser.add_argument("--wrong", action="store_true", help="also show every wrong answer")
    options = parser.parse_args()
    outcomes = asyncio.run(measure(options.base_url, options.api_key, options.model, options.concurrency))
    rows = summarize(outcomes)
    show(rows, [outcome for outcome in outcomes if options.wrong and not outcome.right])
    if options.write_card:
        write_card(CARD, markdown(rows))
    if any(row.missed for row in rows) or growth(rows) < GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    main()
