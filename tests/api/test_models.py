"""The lists of models, and what the server says of its abilities."""

from __future__ import annotations

from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from openai_gateway.settings import Settings
from tests.support import MODEL, ROOT, running


def test_the_sdk_lists_and_retrieves_models(client: OpenAI) -> None:
    model, alias = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "openai_gateway")
    assert client.models.retrieve(MODEL) == model
    assert client.models.retrieve("demo") == alias
    assert alias.id == "demo"
    said = model.model_dump()
    assert said["max_model_len"] == said["context_length"] == 32_768


def test_created_does_not_change_from_one_request_to_the_next(client: OpenAI) -> None:
    assert len({client.models.retrieve(MODEL).created for _ in range(3)}) == 1


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such/model")
    assert caught.value.code == "model_not_found"


def test_ids_with_slashes_are_found_and_the_default_model_comes_first(tmp_path: Path) -> None:
    demo = ROOT / "openai_gateway" / "demo"
    (tmp_path / "models.yaml").write_text(
        f"models:\n  - {{id: first, path: {demo}}}\n  - {{id: org/Name-4bit, path: {demo}, aliases: [short]}}\n"
    )
    with running(tmp_path, "--model", "short", ready=False) as server:
        server.wait_until_ready()
        with server.sdk() as sdk:
            assert [m.id for m in sdk.models.list()] == ["org/Name-4bit", "first", "short"]
            assert sdk.models.retrieve("org/Name-4bit").id == "org/Name-4bit"
            answer = sdk.completions.create(model="org/Name-4bit:latest", prompt="x", max_tokens=1)
        assert answer.model == "org/Name-4bit:latest"


def test_capabilities_name_what_each_loaded_model_can_do(http: httpx2.Client) -> None:
    body = http.get("/v1/capabilities").json()
    assert body["features"]["n"] == Settings(models_file=None).max_n
    assert body["features"]["tools"] == ["function", "custom"]
    assert "json_schema" in body["features"]["response_format"]
    (model,) = body["models"]
    assert model["loaded"]
    assert (model["architecture"], model["reasoning"], model["context_length"]) == ("gpt_oss", "effort", 32768)
    assert model["parameters"] < 4_000_000
