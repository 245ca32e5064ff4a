"""Whether the settings would let in whoever can reach the gateway; looked at before it listens."""

from __future__ import annotations

import math
import sys
from collections import Counter

from openai_gateway.access.keys import KeyStore
from openai_gateway.errors import Unavailable
from openai_gateway.settings import Settings, SettingsError

LEAST_LENGTH = 20
LEAST_BITS = 60.0
WELL_KNOWN = (
    *("changeme", "change-me", "password", "secret", "example", "default"),
    *("your-", "your_", "not-needed", "1234"),
)
"""What keys in documentation and in .env files that nobody has edited hold."""

ADVICE = f"`{sys.executable} -m openai_gateway keys create NAME` makes a key; --insecure lets everybody in."


def has_keys(keys: KeyStore) -> bool:
    """Whether the store has a key that opens something. Raises `SettingsError` where it cannot be read."""
    try:
        return any(key.state == "active" for key, _ in keys.list())
    except Unavailable as error:
        raise SettingsError([f"key_store: {error.__cause__}"]) from None


def open_to_anyone(settings: Settings, has_keys: bool) -> bool:
    """Whether requests need no key; `has_keys`: the store has one. Raises `SettingsError` where that is unsafe."""
    if settings.api_key is not None:
        why = weakness(settings.api_key.get_secret_value())
        if why and settings.env == "production" and not settings.insecure:
            raise SettingsError([f"api_key: the master key {why}, which is too weak for production"])
        return False
    if settings.env != "production" and not settings.exposed:
        return True
    if has_keys:
        return False
    if settings.insecure:
        return True
    if settings.exposed:
        raise SettingsError([f"Anyone who can reach {settings.host} could use this gateway: it has no key. {ADVICE}"])
    raise SettingsError([f"A gateway in production asks for keys, and there is none. {ADVICE}"])


def weakness(key: str) -> str | None:
    """Why a key could be guessed; None where it could not. Bits are Shannon's, by how often each character occurs."""
    if len(key) < LEAST_LENGTH:
        return f"has fewer than {LEAST_LENGTH} characters"
    if any(word in key.lower() for word in WELL_KNOWN):
        return "looks like one from documentation"
    bits = -sum(count * math.log2(count / len(key)) for count in Counter(key).values())
    return "repeats itself too much" if bits < LEAST_BITS else None
