"""What is measured: each scenario asks one server, and writes what it sees onto a page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import uniform

from openai_gateway.bench.load import Answer, Failed, Reading, read
from openai_gateway.bench.prompts import Messages, Writer
from openai_gateway.bench.server import Server
from openai_gateway.bench.sheet import (
    ABOVE_IDLE,
    CACHED,
    CLIENT,
    FIRST,
    GAP,
    PER_TOKEN,
    PROMPT,
    THROUGHPUT,
    TIMES,
    Page,
    percentile,
)

SHORT = 8
"""Tokens of answers of which only the first matters: a few, for a byte or a marker alone is no text."""

MARGIN = 256
"""Tokens of the context that are left to templates, and to our estimate of a prompt's length."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked for: the same of every server. All but `streams`, `clients` and `arrivals` is in tokens."""

    streams: tuple[int, ...] = (1, 8, 32, 100)
    max_tokens: int = 128
    context: int = 8192
    tokens_per_word: float = 1.3
    clients: int = 8
    """Clients that share a prefix, and streams that run while a long prompt is read."""
    arrivals: int = 20

    def words(self, tokens: int) -> int:
        """Words that are that many tokens, or as many as the context has room for."""
        return max(1, int(min(tokens, self.context - MARGIN) / self.tokens_per_word))

    def room(self, tokens: int) -> int:
        """That many tokens of an answer to a short question, or as many as the context has room for."""
        return max(SHORT, min(tokens, self.context - MARGIN))


@dataclass(frozen=True, slots=True)
class Desk:
    """One run of a scenario: what it asks, of whom, by which plan, and where its results go."""

    server: Server
    plan: Plan
    page: Page
    writer: Writer

    async def ask(self, case: str, messages: Messages, max_tokens: int = SHORT) -> Reading:
        """An answer; what it took until its first token is noted. Raises `Failed`, which is noted as well."""
        self.page.asked(case)
        return self.heard(case, await self.server.ask(messages, max_tokens))

    def heard(self, case: str, answer: Answer) -> Reading:
        try:
            reading = read(answer)
        except Failed as failed:
            self.page.fail(case, str(failed))
            raise
        self.page.add(case, FIRST, reading.first)
        return reading

    async def cold_and_warm(self, cold: Messages, warm: Callable[[Reading], Messages], name: str) -> None:
        """Time to first token of one prompt, and of another that begins like it."""
        before = await self.ask("cold", cold)
        self.page.add("cold", PROMPT, before.prompt_tokens)
        after = await self.ask(name, warm(before))
        self.page.add(name, TIMES, before.first / after.first)
        self.page.add(name, CACHED, after.cached_tokens)

    @asynccontextmanager
    async def running(self, case: str, count: int, tokens: int) -> AsyncIterator[list[Answer]]:
        """That many streams that have begun, and go on until this is left: then it hangs up on them."""
        answers = [Answer() for _ in range(count)]
        self.page.asked(case, count)
        tasks = [
            asyncio.create_task(self.server.ask(self.writer.question(), self.plan.room(tokens), answer))
            for answer in answers
        ]
        try:
            while not all(task.done() or len(answer.pieces) >= 5 for task, answer in zip(tasks, answers, strict=True)):
                await asyncio.sleep(0.005)
            for answer in answers:
                if answer.failure or answer.status != 200:
                    self.heard(case, answer)
            yield answers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


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
    """A conversation, and its next turn."""
    messages = desk.writer.conversation(desk.plan.words(5000))

    def following(reading: Reading) -> Messages:
        return [*messages, {"role": "assistant", "content": reading.text}, *desk.writer.question()]

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
}
"""Those that are one step; `stream` is one step for each number of streams."""

NAMES = ("stream", *SCENARIOS)
"""In the order in which they are run by default."""
