"""How much a request may send, and for how long; knows bytes and a clock, nothing of what the bytes mean."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_gateway.api.envelope import error_response
from openai_gateway.errors import BodyTimeout, BodyTooLarge, GatewayError, InvalidRequest, NotJson


class BodyLimit:
    """Caps a request's body at `max_bytes` while it comes in, and gives it `timeout` seconds to come.

    What the headers give away is refused before the app is asked. What shows only later is raised by `receive()`,
    inside the app, so that each surface words the error its own way.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self.app(scope, self._bounded(receive), send)

    def _refusal(self, scope: Scope) -> GatewayError | None:
        for name, value in scope["headers"]:
            # A compressed body says nothing of the memory that it takes when it is unpacked.
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return NotJson("The request's body must be sent as it is, without Content-Encoding.")
            if name == b"content-length":
                if not value.isdigit():
                    return InvalidRequest("The Content-Length header is not a number.")
                # int() takes quadratic time, and refuses more than 4300 digits by a ValueError.
                if len(value) > 18 or int(value) > self.max_bytes:
                    return self._too_large()
        return None

    def _bounded(self, receive: Receive) -> Receive:
        got = 0
        complete = False
        deadline: float | None = None

        async def bounded() -> Message:
            nonlocal got, complete, deadline
            if complete:
                # From here on only http.disconnect can come, and that may take as long as the answer does.
                return await receive()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self.timeout
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeout(f"The request's body did not arrive within {self.timeout:g} seconds.") from None
            got += len(message.get("body", b""))
            if got > self.max_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body is larger than {self.max_bytes} bytes.")
