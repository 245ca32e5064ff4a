"""What an administrator sees and does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.testclient import TestClient

from openai_gateway.access.audit import Audit
from openai_gateway.access.auth import MASTER
from openai_gateway.access.keys import KeyStore
from openai_gateway.access.store import Store
from openai_gateway.access.usage import UsageCounts
from openai_gateway.api.admin import Admin
from openai_gateway.api.admin_keys import AdminKeys
from openai_gateway.api.envelope import EXCEPTION_HANDLERS
from openai_gateway.app import create_app
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.types import Event, Limits, ModelInfo, ModelSpec, Started, Stats
from tests.support import MODEL, Guarded


def act(guarded: Guarded, path: str) -> httpx2.Response:
    return guarded.http.post(path, json={})


def models(guarded: Guarded) -> dict[str, dict[str, object]]:
    return {model["id"]: model for model in guarded.http.get("/admin/models").json()["data"]}


def test_the_settings_in_force_are_shown_and_the_master_key_is_not(guarded: Guarded) -> None:
    answer = guarded.http.get("/admin/config")
    settings = {row["name"]: row for row in answer.json()["data"]}
    assert settings["env"]["value"] == "production"
    assert settings["api_key"]["value"] == "**********"
    assert settings["api_key"]["source"] == "environment variable OPENAI_GATEWAY_API_KEY"
    assert guarded.http.headers["authorization"].split()[1] not in answer.text


def test_stats_tell_what_was_asked_and_what_each_key_used(guarded: Guarded) -> None:
    key = guarded.key()
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 3, "ignore_eos": True}
    usage = guarded.http.post("/v1/completions", json=body, headers=key.headers).json()["usage"]
    stats = guarded.http.get("/admin/stats").json()
    used = stats["keys"]["usage"][key.id]
    assert (used["requests"], used["prompt_tokens"], used["completion_tokens"]) == (1, usage["prompt_tokens"], 3)
    assert stats["keys"]["states"]["active"] >= 1
    assert stats["performance"]["models"][0]["requests"]["ok"] >= 1
    assert stats["totals"]["answers"][f"{MODEL} bypass"] >= 1
    assert stats["uptime_seconds"] > 0


def test_a_model_is_loaded_pinned_restarted_and_unloaded(guarded: Guarded) -> None:
    assert models(guarded)["other"]["loaded"] is False
    assert act(guarded, "/admin/models/other/pin").json()["pinned"] is True
    first = models(guarded)["other"]["pid"]
    assert first
    second = act(guarded, "/admin/models/other/restart").json()["pid"]
    assert second not in (None, first)
    assert act(guarded, "/admin/models/other/unpin").json()["pinned"] is False
    unloaded = act(guarded, "/admin/models/other/unload").json()
    assert (unloaded["loaded"], unloaded["pid"]) == (False, None)
    assert act(guarded, "/admin/models/nothing/load").status_code == 404
    actions = [entry["action"] for entry in guarded.http.get("/admin/audit?limit=4").json()["data"]]
    assert actions == ["unload model", "unpin model", "restart model", "pin model"]


@pytest.mark.parametrize("content", ["models: [{id: a", "models: [{id: a}]", "models: [{id: a, path: ./nowhere}]"])
def test_g36_a_broken_models_yaml_leaves_the_old_one_in_force_and_says_why(guarded: Guarded, content: str) -> None:
    file = guarded.folder / "models.yaml"
    good = file.read_text()
    before = models(guarded)
    try:
        file.write_text(content)
        refusal = act(guarded, "/admin/reload")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "invalid_models_file")
        assert "models are as before" in refusal.json()["error"]["message"]
        assert models(guarded) == before
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
        assert guarded.http.post("/v1/completions", json=body).status_code == 200
    finally:
        file.write_text(good)


def test_another_models_yaml_is_taken_without_a_restart(guarded: Guarded) -> None:
    file = guarded.folder / "models.yaml"
    good = file.read_text()
    before = models(guarded)[MODEL]["pid"]
    try:
        file.write_text(good.replace("id: other", "id: third"))
        assert act(guarded, "/admin/reload").status_code == 200
        assert set(models(guarded)) == {MODEL, "third"}
        assert models(guarded)[MODEL]["pid"] == before
        assert "third" in guarded.http.get("/v1/models").text
    finally:
        file.write_text(good)
        assert act(guarded, "/admin/reload").status_code == 200


class Slow:
    """Is loaded when the test says so."""

    info: ModelInfo | None = None
    stats: Stats | None = None
    restarts = 0

    def __init__(self, loading: asyncio.Event, go_on: asyncio.Event, *_: object) -> None:
        self._loading = loading
        self._go_on = go_on

    async def start(self, _: object) -> ModelInfo:
        self._loading.set()
        await self._go_on.wait()
        return ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1, revision="1",
        )  # fmt: skip

    async def generate(self, _: object, __: object) -> AsyncGenerator[Event]:
        yield Started(1)

    async def close(self) -> None: ...


@pytest.mark.anyio
async def test_a_model_that_is_taken_off_the_list_while_it_is_loaded_is_not_found(tmp_path: Path) -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()
    a, b = ModelSpec(id="a", path="a"), ModelSpec(id="b", path="b")
    store = Store(tmp_path / "keys.db")
    keys = AdminKeys(KeyStore(store), UsageCounts(KeyStore(store)), Limits())
    registry = Registry([a, b], Settings(), find=lambda _: partial(Slow, loading, go_on))
    admin = Admin(registry, Settings(), keys, Audit(store), lambda: [a], {})
    app = Starlette(routes=admin.routes, exception_handlers=EXCEPTION_HANDLERS)

    async def known(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"key": MASTER}}, receive, send)

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(known), base_url="http://gateway") as http:
        loaded = asyncio.create_task(http.post("/admin/models/b/load", json={}))
        await loading.wait()
        assert (await http.post("/admin/reload", json={})).status_code == 200
        go_on.set()
        refusal = await loaded
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "model_not_found")


def test_what_would_reach_one_of_several_processes_is_refused(tmp_path: Path) -> None:
    key = token_urlsafe(32)
    app = create_app(Settings(workers=2, api_key=SecretStr(key), key_store=tmp_path / "keys.db"))
    http = TestClient(app, "http://localhost", headers={"authorization": f"Bearer {key}"})
    actions = ("load", "unload", "restart", "pin", "unpin")
    for path in ("/admin/reload", *(f"/admin/models/{MODEL}/{action}" for action in actions)):
        refusal = http.post(path, json={})
        assert refusal.status_code == 409
        assert "2 processes" in refusal.json()["error"]["message"]
        assert "Restart the server" in refusal.json()["error"]["message"]
    assert http.get("/admin/audit").json()["data"] == []
    assert http.get("/admin/models").status_code == 200


def test_the_audit_log_names_who_did_what(guarded: Guarded) -> None:
    assistant = guarded.key(permissions=["admin"])
    made = guarded.http.post("/admin/keys", json={"name": "made"}, headers=assistant.headers).json()
    entry, before = guarded.http.get("/admin/audit?limit=2").json()["data"]
    assert (entry["actor"], entry["action"], entry["subject"]) == (assistant.id, "create key", made["id"])
    assert (before["actor"], before["subject"]) == ("master", assistant.id)
    assert made["secret"] not in json.dumps(entry)


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", "%C2%B2"])
def test_a_limit_that_is_none_is_refused(guarded: Guarded, limit: str) -> None:
    assert guarded.http.get(f"/admin/audit?limit={limit}").status_code == 400


@pytest.mark.parametrize(
    "path", ["/admin/keys", "/admin/keys/key_1/revoke", "/admin/reload", f"/admin/models/{MODEL}/unload"]
)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_g47_and_b2_browser_attacks_what_a_page_can_send_unasked_does_nothing(
    guarded: Guarded, path: str, kind: str
) -> None:
    answer = guarded.http.post(path, content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 415
    cookie = {"authorization": "", "cookie": guarded.http.headers["authorization"], "content-type": "application/json"}
    assert guarded.http.post(path, content=b"{}", headers=cookie).status_code == 401
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in guarded.http.options(path, headers=asks).headers
