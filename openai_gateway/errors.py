"""What can go wrong, as one tree; each class carries its HTTP status and OpenAI's `type` and `code`.

GatewayError                     500 server_error
├─ InvalidRequest                400 invalid_request_error
│  ├─ UnsupportedParameter       400 … unsupported_parameter
│  ├─ ContextLengthExceeded      400 … context_length_exceeded
│  └─ InsufficientMemory         400 … insufficient_memory
├─ AuthenticationFailed          401 invalid_request_error invalid_api_key
├─ PermissionDenied              403 permission_error
├─ NotFound                      404 invalid_request_error
│  └─ ModelNotFound              404 … model_not_found
├─ MethodNotAllowed              405 invalid_request_error method_not_supported
├─ BodyTimeout                   408 invalid_request_error
├─ SlowClient                    408 invalid_request_error client_too_slow
├─ Conflict                      409 invalid_request_error
├─ BodyTooLarge                  413 invalid_request_error
├─ UrlTooLong                    414 invalid_request_error
├─ NotJson                       415 invalid_request_error
├─ QueueFull                     429 rate_limit_error rate_limit_exceeded
├─ RateLimited                   429 requests rate_limit_exceeded
│  └─ TokensLimited              429 tokens …
├─ HeadersTooLarge               431 invalid_request_error
├─ ModelFailed                   500 server_error model_failed (the same request would fail again)
└─ Unavailable                   503 server_error
   ├─ Crowded                    503 …
   └─ WorkerDied                 503 … worker_died
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

LONGEST = 2000
"""Characters of a message. What a client wrote may be repeated in it, and a request can be one name of 32 MiB."""


class GatewayError(Exception):
    """Anything that a client is told about. `message` never holds a trace, a path or a key."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The error envelope of the OpenAI API; all four keys are required there."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"

    @classmethod
    def missing(cls, param: str) -> InvalidRequest:
        return cls(f"Missing '{param}'.", param=param, code="missing_required_parameter")


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"

    @classmethod
    def of(cls, tokens: int, maximum: int, param: str) -> ContextLengthExceeded:
        """The one sentence in which LangChain, LiteLLM, Codex and Claude Code each find the words they look for."""
        return cls(
            f"This model's maximum context length is {maximum} tokens. However, your {param} resulted in {tokens} "
            f"tokens (context_length_exceeded); prompt is too long: {tokens} tokens > {maximum} maximum",
            param=param,
        )


class InsufficientMemory(InvalidRequest):
    code = "insufficient_memory"

    @classmethod
    def of(cls, rows: int, tokens: int) -> InsufficientMemory:
        """For a request that cannot run with nothing beside it."""
        return cls(
            f"{rows} choices with a prompt of {tokens} tokens each need more memory than this model has. "
            "Ask for fewer choices, or shorten the prompt.",
            param="n",
        )


class AuthenticationFailed(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class PermissionDenied(GatewayError):
    status = 403
    type = "permission_error"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"

    @classmethod
    def named(cls, model: str) -> ModelNotFound:
        return cls(f"The model `{model}` does not exist or you do not have access to it.", param="model")


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"


class BodyTimeout(GatewayError):
    status = 408
    type = "invalid_request_error"


class SlowClient(GatewayError):
    """The client did not read its answer; a stream has begun by then, and tells so in an event."""

    status = 408
    type = "invalid_request_error"
    code = "client_too_slow"


class Conflict(GatewayError):
    """What an administrator asks for cannot be done in the present state; a client's SDK would try again by itself."""

    status = 409
    type = "invalid_request_error"
    headers: Mapping[str, str] = {"x-should-retry": "false"}


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"


class UrlTooLong(GatewayError):
    status = 414
    type = "invalid_request_error"


class NotJson(GatewayError):
    status = 415
    type = "invalid_request_error"


class HeadersTooLarge(GatewayError):
    status = 431
    type = "invalid_request_error"


class QueueFull(GatewayError):
    """More requests than the model can take soon. Codex reads the seconds out of the message."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    headers: Mapping[str, str] = {"retry-after": "1"}


class RateLimited(GatewayError):
    """A limit of `access.limits` is reached. Codex reads the seconds out of the message."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    @classmethod
    def after(cls, reason: str, microseconds: int) -> RateLimited:
        """One that says why, and when the same request would pass: clients take the milliseconds where they can."""
        milliseconds = max(1, -(-microseconds // 1000))
        error = cls(f"{reason} Please try again in {Decimal(milliseconds).scaleb(-3).normalize():f}s.")
        error.headers = {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
        return error


class TokensLimited(RateLimited):
    type = "tokens"


class ModelFailed(GatewayError):
    code = "model_failed"
    headers: Mapping[str, str] = {"x-should-retry": "false"}


class Unavailable(GatewayError):
    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class Crowded(Unavailable):
    """There is no memory for a model beside those that are loaded; there is when some of them are gone."""


class WorkerDied(Unavailable):
    code = "worker_died"


def named(name: str, message: str, param: str | None = None) -> GatewayError:
    """The error whose class has this name: how an error comes back over a worker's pipe."""
    kinds = [GatewayError]
    for kind in kinds:
        if kind.__name__ == name:
            return kind(message, param=param)
        kinds.extend(kind.__subclasses__())
    return GatewayError(message, param=param)
