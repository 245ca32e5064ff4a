"""Where a server is, for what asks one: the commands of the CLI and `bench`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import SplitResult, urlsplit


@dataclass(frozen=True)
class Address:
    """Where a server is. `url` is a base URL, such as http://localhost:8000/v1. Raises `ValueError`."""

    url: str
    key: str | None = None
    trusted: ssl.SSLContext | None = None
    """Whom to believe to be that server; by default, whom the system believes."""

    def __post_init__(self) -> None:
        try:
            fine = self.parts.scheme in ("http", "https") and self.parts.hostname and self.port
        except ValueError:  # brackets that do not close, a port that is no number
            fine = False
        if not fine:
            raise ValueError(f"`{self.url}` is no base URL; one looks like http://localhost:8000/v1.")

    @cached_property
    def parts(self) -> SplitResult:
        return urlsplit(self.url)

    @cached_property
    def port(self) -> int:
        return self.parts.port or (443 if self.parts.scheme == "https" else 80)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        return (self.trusted or ssl.create_default_context()) if self.parts.scheme == "https" else None

    def request(self, path: str, body: bytes | None, *, keep: bool = False) -> bytes:
        """An HTTP/1.1 request; POST where there is a body. The connection serves this one only, unless it is kept."""
        lines = [
            f"{'GET' if body is None else 'POST'} {self.parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {self.parts.netloc.rpartition('@')[2]}",
            "Accept: text/event-stream, application/json",
            f"Connection: {'keep-alive' if keep else 'close'}",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
