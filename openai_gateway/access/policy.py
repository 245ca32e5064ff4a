"""The limits that the settings ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from openai_gateway.access.ledgers import Failover, Ledgers, LocalLedgers
from openai_gateway.access.places import Places
from openai_gateway.access.quotas import Quotas
from openai_gateway.settings import Settings, SettingsError


def quotas_of(settings: Settings, file: Path, refused: Callable[[str, str], None]) -> Quotas:
    """Counted in `file`, which all processes of this machine share, or in Redis. Raises `SettingsError`."""
    everybody = settings.rate_limits == "on" or settings.env == "production"
    return Quotas(
        _ledgers(settings, file),
        Places(file),
        defaults=settings.limits,
        everybody=settings.total_limits,
        limited="none" if settings.rate_limits == "off" else "all" if everybody else "keys",
        token_reserve=settings.token_reserve,
        refused=refused,
    )


def _ledgers(settings: Settings, file: Path) -> Ledgers:
    local = Failover(LocalLedgers(file), LocalLedgers(None), 1 / settings.workers)
    if settings.redis_url is None:
        return local
    try:
        from openai_gateway.access.redis_ledgers import RedisLedgers

        shared = RedisLedgers(settings.redis_url.get_secret_value(), settings.redis_timeout)
    except ImportError:
        raise SettingsError([f"redis_url: needs the package redis: {sys.executable} -m pip install redis"]) from None
    except ValueError:  # its text may hold a part of the password
        raise SettingsError(["redis_url: is not like redis://:password@host:6379/0 (or rediss://, unix://)"]) from None
    return Failover(shared, local, settings.redis_share)
