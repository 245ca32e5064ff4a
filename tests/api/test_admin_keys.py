"""Keys over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import openai
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from openai_gateway.app import create_app
from openai_gateway.settings import Settings
from tests.support import MODEL, Guarded


def test_a_key_is_shown_once(guarded: Guarded) -> None:
    fields = {"name": "alice", "permissions": ["chat"], "models": ["demo"], "limits": {"burst": 3}}
    made = guarded.http.post("/admin/keys", json=fields).json()
    secret = made.pop("secret")
    assert secret.startswith("sk-og-")
    assert {name: made[name] for name in fields} == fields
    one = guarded.http.get(f"/admin/keys/{made['id']}")
    assert one.json() == made
    assert made in guarded.http.get("/admin/keys").json()["data"]
    assert secret not in one.text + guarded.http.get("/admin/keys").text
    assert made["shown"] == f"{secret[:10]}...{secret[-4:]}"


def test_a_key_opens_what_it_may_with_the_official_sdk(guarded: Guarded) -> None:
    key = guarded.key(permissions=["models", "chat"])
    with guarded.server.sdk(key.secret) as sdk:
        assert [model.id for model in sdk.models.list()] == [MODEL, "other", "demo"]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            sdk.completions.create(model=MODEL, prompt="x")
        assert "`completions`" in str(caught.value)


def test_a_model_that_a_key_may_not_use_does_not_exist_for_it(guarded: Guarded) -> None:
    key = guarded.key(models=["demo"])
    with guarded.server.sdk(key.secret) as sdk:
        assert [model.id for model in sdk.models.list()] == [MODEL, "demo"]
        assert sdk.models.retrieve("demo").id == "demo"
        assert sdk.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
        assert sdk.completions.create(model="demo:latest", prompt="x", max_tokens=1).choices
        messages: list[str] = []
        for name in ("other", "nothing"):
            with pytest.raises(openai.NotFoundError) as caught:
                sdk.models.retrieve(name)
            with pytest.raises(openai.NotFoundError) as asked:
                sdk.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
            assert caught.value.code == asked.value.code == "model_not_found"
            messages.append(str(asked.value).replace(name, "*"))
        assert len(set(messages)) == 1
    capabilities = guarded.http.get("/v1/capabilities", headers=key.headers).json()
    assert [model["id"] for model in capabilities["models"]] == [MODEL]


def test_g16_a_revoked_key_is_refused_at_once_and_a_rotated_one_is_another(guarded: Guarded) -> None:
    key = guarded.key()
    assert guarded.http.get("/v1/models", headers=key.headers).status_code == 200
    rotated = guarded.http.post(f"/admin/keys/{key.id}/rotate", json={}).json()
    assert guarded.http.get("/v1/models", headers=key.headers).status_code == 401
    new = {"authorization": f"Bearer {rotated['secret']}"}
    assert guarded.http.get("/v1/models", headers=new).status_code == 200
    assert guarded.http.post(f"/admin/keys/{key.id}/revoke", json={}).json()["state"] == "revoked"
    refusal = guarded.http.get("/v1/models", headers=new)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "invalid_api_key")


def test_g17_a_key_that_expires_is_refused_as_expired(guarded: Guarded) -> None:
    key = guarded.key()
    expired = {"expires": time.time() - 1}
    assert guarded.http.patch(f"/admin/keys/{key.id}", json=expired).json()["state"] == "expired"
    refusal = guarded.http.get("/v1/models", headers=key.headers)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "expired")
    assert guarded.http.patch(f"/admin/keys/{key.id}", json={"expires": None}).json()["state"] == "active"
    assert guarded.http.get("/v1/models", headers=key.headers).status_code == 200


def test_a_deleted_key_is_gone(guarded: Guarded) -> None:
    key = guarded.key()
    assert guarded.http.delete(f"/admin/keys/{key.id}").json() == {"object": "key", "id": key.id, "deleted": True}
    assert guarded.http.get("/v1/models", headers=key.headers).status_code == 401
    assert guarded.http.get(f"/admin/keys/{key.id}").status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({}, "name"),
        ({"name": "a", "permissions": ["fly"]}, "permissions"),
        ({"name": "a", "permissions": "chat"}, "permissions"),
        ({"name": "a", "limits": {"burst": -1}}, "limits"),
        ({"name": "a", "limits": {"bursts": 1}}, "limits"),
        ({"name": "a", "expires": "tomorrow"}, "expires"),
        ({"name": "a", "expire": 1}, "expire"),
        ({"name": "a", "models": []}, "models"),
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_refused(guarded: Guarded, fields: dict[str, Any], param: str) -> None:
    refusal = guarded.http.post("/admin/keys", json=fields)
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, param)


def test_a_burst_that_nothing_earns_back_is_refused(tmp_path: Path) -> None:
    key = token_urlsafe(32)
    limits: Any = "burst=none, requests_per_minute=none"
    app = create_app(Settings(api_key=SecretStr(key), key_store=tmp_path / "keys.db", limits=limits))
    http = TestClient(app, "http://localhost", headers={"authorization": f"Bearer {key}"})
    useless, whole = {"burst": 5}, {"burst": 5, "requests_per_minute": 5}
    assert http.post("/admin/keys", json={"name": "a", "limits": whole}).status_code == 201
    for refusal in (
        http.post("/admin/keys", json={"name": "b", "limits": useless}),
        http.patch("/admin/keys/a", json={"limits": useless}),
    ):
        error = refusal.json()["error"]
        assert (refusal.status_code, error["param"]) == (400, "limits")
        assert "`burst` needs `requests_per_minute`" in error["message"]
    assert [found["limits"] for found in http.get("/admin/keys").json()["data"]] == [whole]


@pytest.mark.parametrize("name", ["' OR 1=1 --", "<script>alert(1)</script>", "%", "-"])
def test_g47_and_b2_a_name_is_text_wherever_it_comes_out(guarded: Guarded, name: str) -> None:
    key = guarded.key(name=name)
    answer = guarded.http.get(f"/admin/keys/{key.id}")
    assert answer.json()["name"] == name
    assert answer.headers["content-type"] == "application/json"
    assert guarded.http.get("/admin/keys/' OR 1=1 --2").status_code == 404
