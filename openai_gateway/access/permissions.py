"""What each path needs: the one table. What is not in it belongs to administrators, and is not there for others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from openai_gateway.errors import ModelNotFound, NotFound

OPEN: Final = ""
"""Needs no key: says whether the server is there, and nothing of what it holds."""

READ_ONLY = ("GET", "HEAD")

PERMISSIONS = {
    "/health": OPEN,
    "/health/live": OPEN,
    "/health/ready": OPEN,
    "/metrics": "metrics",
    "/v1/performance": "metrics",
    "/v1/models": "models",
    "/v1/capabilities": "models",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
BELOW = {
    "/v1/models/": "models",
    "/admin/": "admin",
}
"""The same for every path that begins so."""


def needed(method: str, path: str) -> str | None:
    """The permission for a request, `OPEN`, or None where the table has nothing."""
    if method == "OPTIONS":  # preflights carry no key; no endpoint takes the method
        return OPEN
    permission = PERMISSIONS.get(path)
    if permission is None:
        return next((needs for start, needs in BELOW.items() if path.startswith(start)), None)
    return permission if permission != OPEN or method in READ_ONLY else None


def unknown(method: str, path: str) -> NotFound:
    """The refusal of a path that is not there; it names the one that a wrong base URL has led past."""
    meant = "/v1/" + "/".join(part for part in path.split("/") if part not in ("", "v1"))
    hint = f"; did you mean {meant}? The base URL ends in /v1" if meant in PERMISSIONS and meant != path else ""
    return NotFound(f"Invalid URL ({method} {path}){hint}")


def may_use(models: Collection[str] | None, name: str) -> bool:
    """Whether a key that may use the models of these names (None: all) may use this one."""
    return models is None or name in models


def check_model(models: Collection[str] | None, name: str) -> None:
    """The same; raises `ModelNotFound`, as if there were no such model."""
    if not may_use(models, name):
        raise ModelNotFound.named(name)
