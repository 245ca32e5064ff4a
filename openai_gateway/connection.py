"""One HTTP connection: uvicorn's, with the bounds that uvicorn leaves to a front proxy.

Knows bytes and deadlines, nothing of paths, keys or models. What is wrong with the HTTP itself is refused here, in
the same envelope as every other error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from openai_gateway.access.hosts import sole_host
from openai_gateway.api.envelope import error_bytes
from openai_gateway.bounds import State
from openai_gateway.errors import (
    BodyTimeout,
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    QueueFull,
    Unavailable,
    UrlTooLong,
)
from openai_gateway.observe.requests import new_request_id

logger = logging.getLogger(__name__)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with a cap on everything that it gathers and a deadline on everything that it waits for."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], **more: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **more)
        self.state = cast(State, server_state)
        self.bounds = self.state.bounds
        self._ip = ""
        self._in_body = False
        # Bytes that nothing has come of yet: those of an unfinished head, of chunk framing, of trailers.
        self._pending = 0
        self._refused = False
        self._running: RequestResponseCycle | None = None
        self._awaited: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._moved = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._ip = self.client[0] if self.client else ""
        self.state.per_ip[self._ip] += 1
        total = len(self.connections) - self.bounds.max_connections
        own = 0 if self._shared() else self.state.per_ip[self._ip] - self.bounds.max_connections_per_ip
        if max(total, own) > self.bounds.max_refusals:
            transport.abort()
        elif total > 0:
            self._refuse(Unavailable("The server has too many connections."))
        elif own > 0:
            self._refuse(QueueFull("Too many connections from this address. Please try again in 1s."))
        self._rearm()

    def _shared(self) -> bool:
        return bool(self._ip) and self.bounds.is_proxy(self._ip)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.state.per_ip[self._ip] -= 1
        if not self.state.per_ip[self._ip]:
            del self.state.per_ip[self._ip]
        # uvicorn tells only the last request of a pipeline that the client has left, and that one may not run yet.
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest and not self._refused:
                rest = rest[self._feed(rest) :]
        except GatewayError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            # What a callback raises arrives as the context of the parser's own error.
            cause = error.__context__
            self._refuse(cause if isinstance(cause, GatewayError) else InvalidRequest("Invalid HTTP request."))
        self._rearm()

    def _feed(self, data: memoryview) -> int:
        """Gives the parser what the cap has room for; returns how much that was. Callbacks set the count back."""
        size = min(len(data), self.bounds.max_header_bytes - self._pending)
        if size <= 0:
            raise HeadersTooLarge(f"The request's headers are larger than {self.bounds.max_header_bytes} bytes.")
        self._pending += size
        try:
            self.parser.feed_data(data[:size])
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return int(upgrade.args[0])
        return size

    def _ignore_upgrade(self) -> None:
        """Parses the head again without its Upgrade, since the parser takes no body where there is one.

        Java's HTTP client offers h2c with every request, and means the body to be read where that is declined.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise InvalidRequest("This server is no proxy.")
        fields = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, fields))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pending = max(self._pending, 1)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.bounds.max_url_bytes:
            raise UrlTooLong(f"The request's URL is longer than {self.bounds.max_url_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # A trailer, which must not join the headers that the app has already judged.
        if len(self.headers) >= self.bounds.max_headers:
            raise HeadersTooLarge(f"The request has more than {self.bounds.max_headers} headers.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._check_head()
        super().on_headers_complete()
        self._in_body = True
        self._pending = 0

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidRequest("This server speaks HTTP/1.1.")
        sole_host(self.headers, version)
        if self.state.draining:
            raise Unavailable("The server is shutting down.")
        if len(self.pipeline) >= self.bounds.max_pipelined:
            raise QueueFull("Too many requests are waiting on this connection. Please try again in 1s.")

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_body = False
        self._pending = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle

        async def until_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
            # Only the end of the server cancels this task. uvicorn would log a trace, and answer with text.
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                cycle.disconnected = True
                self.transport.close()

        super()._start_asgi_task(cycle, cast(Any, until_cancelled))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.expect_100_continue and not self._busy():
            # The client may keep its body back after this answer, and send its next request in the body's place.
            self.transport.close()
        self._rearm()

    def _busy(self) -> bool:
        return self.cycle is not None and not (self.cycle.response_complete or self.cycle.disconnected)

    def _refuse(self, error: GatewayError) -> None:
        """Answers what never becomes a request, and reads nothing more; requests before it still get their answers."""
        self._refused = True
        request_id = new_request_id()
        logger.info("refused %s from %s: %d %s", request_id, self._ip or "-", error.status, error.message)
        if self._in_body:
            if self.cycle.response_started or self.pipeline:
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self._busy():
            self.cycle.keep_alive = False
            return
        headers = [*self.server_state.default_headers, (b"x-request-id", request_id.encode())]
        self.transport.write(error_bytes(error, headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS has no half-closed connections, and reads on by itself until the client has closed, too
            self.transport.close()
        self._rearm()

    def _rearm(self) -> None:
        """Starts the read deadline that the connection's state asks for, unless that one runs already."""
        awaited = self._awaits()
        if awaited == self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaited, self._deadline = awaited, None
        if awaited is not None:
            seconds = self.bounds.linger if awaited in ("body", "end") else self.bounds.header_timeout
            self._deadline = self.loop.call_later(seconds, self._late)

    def _awaits(self) -> str | None:
        if self._busy():
            return None  # The app is at work; how long a body may take is for a middleware to say.
        if self._refused:
            return "end"
        if self._in_body:
            return "body"
        if self._pending:
            return "head"
        return "request" if self.timeout_keep_alive_task is None else None

    def _late(self) -> None:
        if self._awaited == "head":
            self._refuse(BodyTimeout(f"The request's headers took more than {self.bounds.header_timeout:g} seconds."))
        elif self._awaited == "end":
            self.transport.abort()
        else:
            self.transport.close()

    def check_progress(self, now: float) -> None:
        """Drops a client that has taken nothing of what waits for it since `write_timeout`; asked now and then.

        Sampled, because a transport that is closing reports no progress, and waits for such a client for ever.
        """
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif now - self._moved > self.bounds.write_timeout:
            self.transport.abort()
