"""What is measured: each scenario asks one server, and writes what it sees onto a page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import uniform

from openai_gateway.bench.desk import Desk
from openai_gateway.bench.hits import hits
from openai_gateway.bench.load import Answer, Failed, Reading
from openai_gateway.bench.prompts import QUESTION, Messages
from openai_gateway.bench.sheet import (
    ABOVE_IDLE,
    CACHED,
    CLIENT,
    GAP,
    PER_TOKEN,
    PROMPT,
    THROUGHPUT,
    TIMES,
    percentile,
)


async def stream(desk: Desk, count: int, case: str) -> None:
    """So many streams at once: tokens of all of them by the time from the first request to the last answer's end."""
    questions = [desk.writer.question() for _ in range(count)]
    desk.page.asked(case, count)
    processor, started = time.process_time(), time.perf_counter()
    answers = await asyncio.gather(*(desk.server.ask(question, desk.plan.max_tokens) for question in questions))
    wall, processor = time.perf_counter() - started, time.process_time() - processor
    readings = []
    for answer in answers:
        try:
            readings.append(desk.heard(case, answer))
        except Failed:
            continue
    desk.page.add(case, PER_TOKEN, *(reading.per_token for reading in readings))
    desk.page.add(case, CLIENT, processor / wall * 100)
    if readings:
        tokens = sum(reading.tokens for reading in readings)
        desk.page.add(case, THROUGHPUT, tokens / (max(reading.times[-1] for reading in readings) - started))
        if tokens < 0.95 * len(readings) * desk.plan.max_tokens:
            desk.page.note(
                f"answers of {desk.plan.max_tokens} tokens were asked for, and some ended before: "
                "it does not honour `ignore_eos`"
            )


async def prefix(desk: Desk) -> None:
    """A long system prompt that is new, then again with other questions: one after the other, then all at once."""
    system = desk.writer.fresh(desk.plan.words(2000))
    asks: list[Messages] = [desk.writer.instructed(system) for _ in range(2 * desk.plan.clients)]
    cold = await desk.ask("cold", desk.writer.instructed(system))
    desk.page.add("cold", PROMPT, cold.prompt_tokens)
    for messages in asks[: desk.plan.clients]:
        warm = await desk.ask("warm", messages)
        desk.page.add("warm", TIMES, cold.first / warm.first)
        desk.page.add("warm", CACHED, warm.cached_tokens)
    together = f"warm, {desk.plan.clients} at once"
    # One that fails stands on the page, and the others are still waited for.
    await asyncio.gather(*(desk.ask(together, m) for m in asks[desk.plan.clients :]), return_exceptions=True)


async def arrival(desk: Desk) -> None:
    """Short requests, on an idle server and then while a long answer is written."""
    idle = [(await desk.ask("idle", desk.writer.question())).first for _ in range(desk.plan.arrivals)]
    usual = percentile(idle, 50)
    busy = "during a long answer"
    async with desk.running("the long answer", 1, 3000) as (long,):
        for arrived in range(desk.plan.arrivals):
            # At no fixed distance, or it could be that of the server's own rhythm.
            await asyncio.sleep(uniform(0.02, 0.1))
            if _ended(long):
                desk.page.note(f"the long answer was over after {arrived} arrivals of {desk.plan.arrivals}")
                break
            reading = await desk.ask(busy, desk.writer.question())
            if not _ended(long):
                desk.page.add(busy, ABOVE_IDLE, reading.first - usual)


async def divergence(desk: Desk) -> None:
    """A conversation, and the same with a change in its middle."""
    messages = desk.writer.conversation(desk.plan.words(5000))
    await desk.cold_and_warm(messages, lambda _: desk.writer.changed(messages), "changed in the middle")


async def edit(desk: Desk) -> None:
    """A message in the middle of a conversation is changed and asked again; what came behind it is dropped."""
    messages = desk.writer.conversation(desk.plan.words(5000))
    await desk.ask("whole conversation", messages)
    edited = desk.writer.changed(messages)[: len(messages) // 2 + 1]
    as_long = desk.writer.conversation(desk.plan.words(2500), turns=5)
    await desk.cold_and_warm(as_long, lambda _: edited, "edited in the middle")


async def repeat(desk: Desk) -> None:
    """A prompt, and the same again."""
    messages = desk.writer.conversation(desk.plan.words(5000))
    await desk.cold_and_warm(messages, lambda _: messages, "again")


async def turns(desk: Desk) -> None:
    """A conversation, and its next turn: a short question, of as many tokens whatever the tokenizer makes of a word."""
    messages = desk.writer.conversation(desk.plan.words(5000))
    question = {"role": "user", "content": desk.writer.words(desk.plan.words(QUESTION))}

    def following(reading: Reading) -> Messages:
        return [*messages, {"role": "assistant", "content": reading.text}, question]

    await desk.cold_and_warm(messages, following, "next turn")


async def stall(desk: Desk) -> None:
    """Streams run; a prompt as long as fits is sent, and right behind it a short one."""
    long = [{"role": "user", "content": desk.writer.fresh(desk.plan.words(20_000))}]
    async with desk.running("running streams", desk.plan.clients, desk.plan.context) as answers:
        before = time.perf_counter()
        await asyncio.sleep(1)
        sent = time.perf_counter()
        reading = asyncio.create_task(desk.ask("the long prompt", long))
        await asyncio.sleep(0.05)
        newcomer = asyncio.create_task(desk.ask("the newcomer", desk.writer.question()))
        results = await asyncio.gather(reading, newcomer, return_exceptions=True)
        answered = time.perf_counter()
        if any(_ended(answer) for answer in answers):
            desk.page.note("a running stream was over before the long prompt was read")
    for result in results:
        if isinstance(result, BaseException):
            raise result
        if result.prompt_tokens and result is results[0]:
            desk.page.add("the long prompt", PROMPT, result.prompt_tokens)
    for answer in answers:
        desk.page.add("running streams, before", GAP, longest_gap(answer, before, sent))
        desk.page.add("running streams, meanwhile", GAP, longest_gap(answer, sent, answered))


def longest_gap(answer: Answer, since: float, until: float) -> float:
    """Milliseconds of the longest silence of an answer, of which some part is in this time; at most up to its end."""
    times = [moment for moment, _ in answer.pieces if moment < until]
    return max(b - a for a, b in pairwise([*times, until]) if b > since) * 1000


def _ended(answer: Answer) -> bool:
    return bool(answer.failure) or any(b"[DONE]" in piece for _, piece in answer.pieces[-2:])


SCENARIOS: dict[str, Callable[[Desk], Awaitable[None]]] = {
    "prefix": prefix,
    "arrival": arrival,
    "divergence": divergence,
    "edit": edit,
    "repeat": repeat,
    "turns": turns,
    "stall": stall,
    "hits": hits,
}
"""Those that are one step; `stream` is one step for each number of streams."""

NAMES = ("stream", *SCENARIOS)
"""In the order in which they are run by default."""
