from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openai_gateway.address import Address
from openai_gateway.bench.load import Failed
from openai_gateway.bench.server import Server, meet
from tests.bench.support import DONE, HEAD, event, says, serving, whole

pytestmark = pytest.mark.anyio

MODELS = [{"id": "small", "meta": {"n_ctx_train": 2048}}, {"id": "large", "aliases": ["big"], "max_model_len": 9000}]


class Picky:
    """A server that refuses fields, and counts two tokens a word."""

    def __init__(self, *refused: str, usage: bool = True, models: Any = MODELS, named: bool = True) -> None:
        self.refused = refused
        self.usage = usage
        self.models = models
        self.named = named
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, head: str, body: Any, writer: asyncio.StreamWriter) -> None:
        if head.startswith("GET"):
            writer.write(whole("200 OK", {"data": self.models}))
            return
        self.asked.append(body)
        if wrong := [name for name in self.refused if name in body]:
            writer.write(whole("400 Bad", {"error": {"message": wrong[0] if self.named else "no"}}))
            return
        words = len(body["messages"][-1]["content"].split())
        usage = {"prompt_tokens": 7 + 2 * words, "completion_tokens": 1}
        writer.write(HEAD + says("hi") + (event(choices=[], usage=usage) if self.usage else b"") + DONE)

    async def met(self, **options: Any) -> Server:
        async with serving(self) as address:
            return await meet("peer", address, timeout=10, **options)


async def test_the_first_model_is_asked_for_and_its_words_are_counted() -> None:
    server = await Picky().met()
    assert (server.model, server.context) == ("small", 2048)
    assert server.counts_tokens
    assert server.tokens_per_word == 2.0


async def test_a_model_is_found_by_its_alias() -> None:
    server = await Picky().met(model="big")
    assert (server.model, server.context) == ("big", 9000)


async def test_a_context_that_is_known_once_the_model_is_loaded_is_found() -> None:
    peer = Picky(models=[{"id": "lazy", "context_length": None}])

    async def reply(head: str, body: Any, writer: asyncio.StreamWriter) -> None:
        await peer(head, body, writer)
        if body is not None:
            peer.models = [{"id": "lazy", "context_length": 4096}]

    async with serving(reply) as address:
        assert (await meet("peer", address, timeout=10)).context == 4096


async def test_a_context_that_was_said_goes_before_what_is_found() -> None:
    assert (await Picky().met(context=1500)).context == 1500


async def test_a_model_that_is_not_listed_can_be_asked_for() -> None:
    server = await Picky(models=None).met(model="mine")
    assert (server.model, server.context) == ("mine", None)


async def test_without_a_list_a_model_must_be_named() -> None:
    with pytest.raises(Failed, match=r"^peer \(http://.*\): it lists no model; say --model$"):
        await Picky(models=None).met()


@pytest.mark.parametrize("named", [True, False])
async def test_fields_that_are_refused_are_left_out(named: bool) -> None:
    peer = Picky("temperature", "ignore_eos", named=named)
    server = await peer.met()
    assert not {"temperature", "ignore_eos"} & server.extras.keys()
    assert not {"temperature", "ignore_eos"} & peer.asked[-1].keys()
    assert ("stream_options" in server.extras) is named


async def test_a_server_without_usage_is_measured_by_its_chunks() -> None:
    server = await Picky(usage=False).met()
    assert not server.counts_tokens
    assert server.tokens_per_word == 1.3


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(Failed, match=r"peer .*connection refused"):
        await meet("peer", Address("http://127.0.0.1:1/v1"), timeout=5)
