"""Who is let in with a key, and who without."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from openai_gateway.access.auth import Auth

KEY = "sk-correct-horse"
METHODS = ["GET", "POST", "OPTIONS"]


async def ok(request: Request) -> Response:
    return PlainTextResponse(request.state.owner)


def client(key: str | None) -> TestClient:
    routes = [Route("/{path:path}", ok, methods=METHODS)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Auth, key=key)]))


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


def test_without_a_configured_key_any_key_passes() -> None:
    assert client(None).get("/v1/models").status_code == 200
    assert client(None).get("/v1/models", headers={"authorization": "Bearer not-needed"}).status_code == 200


def test_the_owner_is_the_same_for_a_key_and_tells_nothing_of_it() -> None:
    by_bearer = client(KEY).get("/v1/models", headers={"authorization": f"Bearer {KEY}", "x-api-key": "other"}).text
    assert len(by_bearer) == 16
    assert by_bearer == client(KEY).get("/v1/models", headers={"x-api-key": KEY}).text
    assert by_bearer != client(KEY + "2").get("/v1/models", headers={"x-api-key": KEY + "2"}).text
    assert not set(KEY.split("-")) & {by_bearer[i:j] for i in range(16) for j in range(17)}


def test_who_needs_no_key_is_nobody() -> None:
    assert client(None).get("/v1/models", headers={"x-api-key": KEY}).text == ""
    assert client(KEY).get("/health").text == ""


def test_an_empty_key_is_no_key_but_a_mistake() -> None:
    with pytest.raises(ValueError, match="empty"):
        Auth(client(None).app, key="")
