"""Who is let in with a key, and who without."""

from __future__ import annotations

import hmac
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from openai_gateway.access.attempts import Attempts
from openai_gateway.access.auth import Auth
from openai_gateway.access.keys import KeyStore, new_secret
from openai_gateway.access.store import Store

KEY = "sk-correct-horse"
METHODS = ["GET", "POST", "OPTIONS"]


async def ok(request: Request) -> Response:
    state = request.state
    models = None if state.models is None else sorted(state.models)
    return JSONResponse({"owner": state.owner, "key": state.key.id, "models": models, "query": request.url.query})


def app(keys: KeyStore | None = None, **options: Any) -> Starlette:
    options = {"keys": keys or KeyStore(Store(Path("/nowhere/keys.db"))), **options}
    return Starlette(routes=[Route("/{path:path}", ok, methods=METHODS)], middleware=[Middleware(Auth, **options)])


def client(*masters: str, keys: KeyStore | None = None, **options: Any) -> TestClient:
    return TestClient(app(keys, masters=masters, **options))


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(Store(tmp_path / "keys.db"))


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"authorization": "Bearer not-needed", "x-api-key": KEY},
    ],
    ids=str,
)
def test_the_key_is_taken_from_each_of_its_headers(headers: dict[str, str]) -> None:
    assert client(KEY).get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer sk-correct-hors"},
        {"authorization": f"Bearer {KEY}e"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"x-api-key": "sk-wrong-horse"},
        {"x-api-key": "\xff"},
    ],
    ids=str,
)
def test_without_the_key_the_answer_is_401_and_shows_no_key(headers: dict[str, str]) -> None:
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    answer = client(KEY).get("/v1/models", headers=encoded)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "horse" not in answer.text
    assert "hors" not in str(answer.headers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path", ["/", "/v1/chat/completions", "/no/such/route", "/health/../v1/models", "/healthy", "/health/"]
)
def test_every_path_needs_the_key_whether_there_is_a_route_or_not(method: str, path: str) -> None:
    expected = 200 if method == "OPTIONS" else 401
    assert client(KEY).request(method, f"http://testserver{path}").status_code == expected


def test_the_host_header_does_not_open_a_path() -> None:
    assert client(KEY).get("/v1/models", headers={"host": "testserver/health?"}).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_can_be_read_by_everybody_and_only_read(path: str) -> None:
    assert client(KEY).get(path).status_code == 200
    assert client(KEY).head(path).status_code == 200
    assert client(KEY).post(path).status_code == 401


def test_where_anyone_is_let_in_any_key_passes_and_administers_nothing() -> None:
    everybody = client(anyone=True)
    assert everybody.get("/v1/models").json()["owner"] == ""
    assert everybody.get("/v1/models", headers=bearer("not-needed")).json()["owner"] == ""
    refusal = everybody.get("/admin/keys")
    assert (refusal.status_code, refusal.json()["error"]["type"]) == (403, "permission_error")


def test_where_anyone_is_let_in_a_key_still_counts(keys: KeyStore) -> None:
    key, secret = keys.create("alice", actor="me")
    everybody = client(KEY, keys=keys, anyone=True)
    assert everybody.get("/v1/models", headers=bearer(secret)).json()["owner"] == key.id
    assert everybody.get("/admin/keys", headers=bearer(KEY)).status_code == 200
    keys.revoke(key.id, actor="me")
    assert everybody.get("/v1/models", headers=bearer(secret)).status_code == 401


def test_who_has_a_master_key_goes_by_a_name_that_tells_nothing_of_it_and_that_no_stored_key_has(
    keys: KeyStore,
) -> None:
    for master in (KEY, new_secret()):
        answer = client(master).get("/v1/models", headers={"authorization": "Bearer other", "x-api-key": master}).json()
        assert (answer["owner"], answer["key"]) == ("master", "master")
    key, secret = keys.create("master", actor="me")
    answer = client(KEY, keys=keys).get("/v1/models", headers=bearer(secret)).json()
    assert answer["owner"] == answer["key"] == key.id != "master"


def test_who_needs_no_key_is_nobody() -> None:
    assert client(anyone=True).get("/v1/models", headers={"x-api-key": KEY}).json()["owner"] == ""
    assert client(KEY).get("/health").json()["owner"] == ""


def test_a_request_with_many_keys_is_refused_before_any_is_looked_at(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me")
    used: list[str] = []
    gateway = client(KEY, keys=keys, used=used.append)
    for right in (KEY, secret):
        refusal = gateway.get("/v1/models", headers=[("x-api-key", right), *[("x-api-key", "other")] * 4])
        assert refusal.status_code == 400
        assert "5 API keys" in refusal.json()["error"]["message"]
    assert used == []


@pytest.mark.parametrize(
    ("headers", "counted"), [({}, False), ({"authorization": "Bearer "}, False), (bearer("x"), True)]
)
def test_guesses_slow_an_address_down_and_requests_without_a_key_do_not(headers: dict[str, str], counted: bool) -> None:
    """With `Attempts` in front, as the gateway has it."""
    guarded = TestClient(Attempts(app(masters=[KEY]), lambda *_: None), client=("203.0.113.9", 1))
    statuses = {guarded.get("/v1/models", headers=headers).status_code for _ in range(30)}
    assert statuses == ({401, 429} if counted else {401})


def test_an_empty_key_is_no_key_but_a_mistake() -> None:
    with pytest.raises(ValueError, match="empty"):
        Auth(app(), keys=KeyStore(Store(Path("/nowhere"))), masters=[""])


def test_a_stored_key_opens_what_its_permissions_say_and_is_counted(keys: KeyStore) -> None:
    key, secret = keys.create("alice", actor="me", permissions=["chat"])
    used: list[str] = []
    gateway = client(keys=keys, used=used.append)
    answer = gateway.post("/v1/chat/completions", headers=bearer(secret)).json()
    assert (answer["owner"], answer["key"], answer["models"]) == (key.id, key.id, None)
    assert used == [key.id]


@pytest.mark.parametrize("permission", ["chat", "generate:chat"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/v1/performance", "/admin/keys"])
def test_g18_a_key_without_the_permission_is_told_which_one_it_lacks(
    keys: KeyStore, permission: str, path: str
) -> None:
    _, secret = keys.create("alice", actor="me", permissions=[permission])
    refusal = client(keys=keys).post(path, headers=bearer(secret))
    assert refusal.status_code == 403
    assert refusal.json()["error"]["type"] == "permission_error"
    assert path in refusal.json()["error"]["message"]
    assert secret not in refusal.text


@pytest.mark.parametrize("path", ["/api/pull", "/api/delete", "/invocations", "/docs", "/openapi.json", "/health/x"])
def test_g46_and_b2_unguarded_twin_routes_a_path_that_is_not_in_the_table_is_for_administrators(
    keys: KeyStore, path: str
) -> None:
    _, secret = keys.create("alice", actor="me", permissions=["chat", "completions", "models"])
    gateway = client(KEY, keys=keys)
    assert gateway.post(path).status_code == 401
    assert gateway.post(path, headers=bearer(secret)).status_code == 404
    assert gateway.post(path, headers=bearer(KEY)).status_code == 200


def test_g16_a_revoked_and_g17_an_expired_key_are_refused_by_the_next_request(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me", expires=time.time() + 1000)
    gateway = client(keys=keys)
    assert gateway.get("/v1/models", headers=bearer(secret)).status_code == 200
    keys.change("alice", actor="me", expires=time.time() - 0.001)
    expired = gateway.get("/v1/models", headers=bearer(secret))
    assert (expired.status_code, expired.json()["error"]["code"]) == (401, "expired")
    keys.revoke("alice", actor="me")
    revoked = gateway.get("/v1/models", headers=bearer(secret))
    assert (revoked.status_code, revoked.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_models_of_a_key_go_along_with_their_aliases(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me", models=["gpt"])
    gateway = client(keys=keys, model_names=lambda models: frozenset({*models, "other-name"}))
    assert gateway.get("/v1/models", headers=bearer(secret)).json()["models"] == ["gpt", "other-name"]


def test_a_key_in_the_query_counts_only_where_that_is_switched_on_and_nothing_behind_sees_it(keys: KeyStore) -> None:
    key, secret = keys.create("alice", actor="me")
    url = f"/v1/models?a=1&api_key={secret}&b=2"
    assert client(keys=keys).get(url).status_code == 401
    answer = client(keys=keys, in_query=True).get(url).json()
    assert (answer["owner"], answer["query"]) == (key.id, "a=1&b=2")
    assert client(keys=keys, in_query=True, anyone=True).get(f"/health?api_key={secret}").json()["query"] == ""


def test_a_store_that_cannot_be_read_lets_in_nobody_but_the_master(tmp_path: Path) -> None:
    (tmp_path / "keys.db").mkdir()
    gateway = client(KEY, keys=KeyStore(Store(tmp_path / "keys.db")))
    assert gateway.get("/v1/models", headers=bearer("sk-og-x")).status_code == 503
    assert gateway.get("/v1/models", headers=bearer(KEY)).status_code == 200


@pytest.mark.anyio
async def test_a_websocket_is_closed_before_anything_hears_of_it() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await app(anyone=True)(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_g40_only_digests_are_compared(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rank test below shows by its times, shown by what is looked at."""
    seen: list[bytes] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        seen.extend((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    _, secret = keys.create("alice", actor="me")
    for presented in (KEY, KEY[:-1], secret, "x"):
        client(KEY, keys=keys).get("/v1/models", headers=bearer(presented))
    assert {len(value) for value in seen} == {32}


@pytest.mark.slow
def test_g40_the_time_of_a_refusal_does_not_tell_how_much_of_the_key_was_right(keys: KeyStore) -> None:
    _, secret = keys.create("alice", actor="me")
    gate = Auth(app(), keys=keys, masters=[KEY])
    near, far = secret[:-1] + "!", new_secret()

    def seconds(presented: str) -> float:
        scope = {"type": "http", "method": "GET", "path": "/v1/models"}
        began = time.perf_counter()
        with pytest.raises(Exception, match="Incorrect"):
            gate._admitted(scope, [presented.encode()])
        return time.perf_counter() - began

    times: dict[str, list[float]] = {near: [], far: []}
    order = [near, far] * 2000
    random.shuffle(order)
    for presented in order:
        times[presented].append(seconds(presented))
    assert abs(_mann_whitney(times[near], times[far])) < 2.58  # p > 0.01, two-sided


def _mann_whitney(first: list[float], second: list[float]) -> float:
    """The z of the two samples' rank sums; ties are rare among clock readings, and left as they fall."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks = sum(rank for rank, (_, sample) in enumerate(ranked, 1) if sample == 0)
    n, m = len(first), len(second)
    return (ranks - n * (n + m + 1) / 2) / math.sqrt(n * m * (n + m + 1) / 12)
