"""Errors as the clients of OpenAI's API read them; knows HTTP statuses, nothing of what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from openai_gateway.access.permissions import unknown
from openai_gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed


def error_response(error: GatewayError) -> Response:
    return _response(error, error.status, error.headers)


def error_bytes(error: GatewayError, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The whole HTTP response, for a connection that will carry no other."""
    response = error_response(error)
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    lines = [*headers, *response.raw_headers, (b"connection", b"close")]
    return status + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n" + bytes(response.body)


def _response(error: GatewayError, status: int, headers: Mapping[str, str] | None) -> Response:
    # Not starlette's JSONResponse: it writes UTF-8, which cannot hold the lone surrogate that a client's own JSON
    # may have put into a model's name, and with it into our message. json.dumps escapes it.
    body = json.dumps(error.body)
    return Response(body, status, dict(headers or {}), media_type="application/json")


async def _gateway_error(_: Request, error: Exception) -> Response:
    return error_response(cast(GatewayError, error))


async def _http_exception(request: Request, error: Exception) -> Response:
    """What starlette itself refuses; the path is the one that was routed, not the one the Host header builds."""
    refusal = cast(HTTPException, error)
    method, path = request.method, request.scope["path"]
    translated: GatewayError
    if refusal.status_code == 404:
        translated = unknown(method, path)
    elif refusal.status_code == 405:
        translated = MethodNotAllowed(f"Not allowed to {method} on {path}")
    elif refusal.status_code < 500:
        translated = InvalidRequest(refusal.detail)
    else:
        translated = GatewayError(refusal.detail)
    return _response(translated, refusal.status_code, refusal.headers)


EXCEPTION_HANDLERS: Mapping[type[Exception], ExceptionHandler] = {
    GatewayError: _gateway_error,
    HTTPException: _http_exception,
}
