"""Errors on the wire."""

from __future__ import annotations

import json

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from openai_gateway.api.envelope import EXCEPTION_HANDLERS, error_bytes, error_response
from openai_gateway.errors import GatewayError, InvalidRequest, ModelNotFound, QueueFull


def client(error: Exception) -> TestClient:
    async def fail(_: Request) -> Response:
        raise error

    return TestClient(Starlette(routes=[Route("/fail", fail)], exception_handlers=EXCEPTION_HANDLERS))


def test_an_error_carries_its_status_its_headers_and_all_four_keys() -> None:
    answer = client(QueueFull("Please try again in 1s.")).get("/fail")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "error": {
            "message": "Please try again in 1s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }


def test_an_unknown_url_is_named_as_it_was_routed() -> None:
    answer = client(GatewayError("")).post("/v1/x?api_key=secret", headers={"host": "evil/"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "Invalid URL (POST /v1/x)",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_wrong_method_is_told_the_right_ones() -> None:
    answer = client(GatewayError("")).post("/fail")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert answer.json()["error"]["code"] == "method_not_supported"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (418, "invalid_request_error"), (502, "server_error")]
)
def test_what_starlette_refuses_keeps_its_status_and_gets_the_envelope(status: int, kind: str) -> None:
    answer = client(HTTPException(status, "Too odd.")).get("/fail")
    assert answer.status_code == status
    assert answer.json()["error"] == {"message": "Too odd.", "type": kind, "param": None, "code": None}


def test_a_text_that_is_no_unicode_can_still_be_answered() -> None:
    body = bytes(error_response(ModelNotFound.named("\ud800\n")).body)
    assert json.loads(body)["error"]["message"].startswith("The model `\ud800\n` does not exist")


def test_the_bytes_of_an_error_are_a_whole_response_that_ends_its_connection() -> None:
    head, body = error_bytes(InvalidRequest("No."), [(b"date", b"today")]).split(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 400 Bad Request"
    assert {b"date: today", b"connection: close", b"content-length: %d" % len(body)} < set(lines)
    assert json.loads(body)["error"]["message"] == "No."
