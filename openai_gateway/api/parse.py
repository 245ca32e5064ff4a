"""From a request's bytes to a pydantic model, and from what pydantic finds wrong to OpenAI's errors."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from openai_gateway.errors import InvalidRequest, NotJson

M = TypeVar("M", bound=BaseModel)

CODES = {"missing": "missing_required_parameter", "json_invalid": "invalid_json"}
"""pydantic's error type → OpenAI's code; types that end in `_type` are `invalid_type`, the rest `invalid_value`."""

LONE = re.compile(
    rb"(?<!\\)((?:\\\\)*)"  # a backslash that is none itself
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
"""Half a character, as JavaScript writes it where a text was cut in the middle of an emoji. No text in UTF-8 can hold
it, and a history that does would make every later request of its conversation fail."""

REPLACED = rb"\1\\ufffd"


async def parse(request: Request, kind: type[M], *, empty: bytes = b"") -> M:
    """The request's JSON body; `empty` is what stands for none. Raises `NotJson`, `InvalidRequest`.

    The Content-Type has to be JSON: it is what a page in a browser cannot send here without asking first.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise NotJson("The request body must be JSON (Content-Type: application/json).")
    try:
        return _read(kind, await request.body() or empty)
    except ValidationError as error:
        raise _refusal(error) from None


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        whole = LONE.sub(REPLACED, body) if _first(error)["type"] == "json_invalid" else body
        if whole == body:
            raise
    return kind.model_validate_json(whole)


def _first(error: ValidationError) -> ErrorDetails:
    return error.errors(include_url=False, include_context=False, include_input=False)[0]


def _refusal(error: ValidationError) -> InvalidRequest:
    detail = _first(error)
    kind = detail["type"]
    code = CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    if not detail["loc"]:
        return InvalidRequest(f"The request body is not valid: {detail['msg']}.", code=code)
    param = str(detail["loc"][0]) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in detail["loc"][1:])
    return InvalidRequest(f"Invalid '{param}': {detail['msg']}.", param=param, code=code)
