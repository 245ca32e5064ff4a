"""Every knob once: its name, unit, bounds and default, and where this process got its value from.

Strongest first: command line, environment (`OPENAI_GATEWAY_*`), `.env`, the `gateway:` section of models.yaml, default.
Nothing is accepted and ignored: an unknown name is an error, in each of those places.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import (
    Field,
    IPvAnyNetwork,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from openai_gateway.settings_kinds import (
    BASE,
    Blas,
    Count,
    Disk,
    File,
    HostName,
    KeyLimits,
    MaybeMemory,
    Memory,
    Origin,
    Pause,
    Seconds,
    Size,
    TotalLimits,
)
from openai_gateway.settings_sources import PREFIX, explain, gather
from openai_gateway.types import Limits

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal", "host.containers.internal")
"""The names to answer to where the server is bound to the machine it runs on. The last two are its names in containers
that run there; nobody can register a name that ends in `internal`."""

IPV4_LOOPBACK, IPV6_LOOPBACK = ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Network("::1")


class SettingsError(ValueError):
    """What is wrong with the settings, one sentence for each problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Setting(NamedTuple):
    """One row of `openai-gateway config`; `value` is plain JSON, secrets are masked."""

    name: str
    value: Any
    source: str


class Settings(BaseSettings):
    """The gateway's settings; `Settings(port=0)` is what `--port 0` gives. Raises `SettingsError`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    workers: int = Field(
        1, ge=1, le=64, description="Gateway processes on the port; each loads the models that it is asked for itself."
    )
    models_file: File | None = Field(None, description="The models.yaml; by default the one in the working folder.")
    model: str | None = Field(
        None, min_length=1, description="Id, folder or hub id of the model to serve as the default one."
    )
    env: Literal["development", "production", "testing"] = Field(
        "development", description="Profile; only production asks for a key on a loopback address where none is set."
    )
    insecure: bool = Field(False, description="Start although anyone who can reach the gateway could use it.")
    api_key: SecretStr | None = Field(
        None, description="Master key, which may do everything; also read from GENERATION_API_KEY, its older name."
    )
    key_store: File | None = Field(
        None, description="File of further keys; by default openai_gateway/keys.db in the user's folder for data."
    )
    api_key_in_query: bool = Field(
        False, description="Take keys from ?api_key= as well; off, for proxies and browsers write URLs down."
    )
    allowed_hosts: tuple[HostName, ...] | None = Field(
        None, description="Host headers to answer; by default loopback names on a loopback address, else any."
    )
    cors_origins: tuple[Origin, ...] = Field((), description="Web origins whose pages may call the gateway.")

    tls_certificate: File | None = Field(None, description="PEM file with which to serve over HTTPS.")
    tls_key: File | None = Field(None, description="PEM file with the key of `tls_certificate`.")
    require_https: bool = Field(False, description="Refuse what came over plain HTTP, also to a trusted proxy.")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto headers are believed; 127.0.0.1 "
        "is ::1 as well.",
    )

    rate_limits: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whose requests are limited: auto is those of created keys, and in production everybody's; "
        "on is everybody's, off nobody's.",
    )
    limits: KeyLimits = Field(
        BASE, description="What each key may do that has no limits of its own; `none` takes one of them away."
    )
    total_limits: TotalLimits = Field(Limits(), description="What all may do together, written as `limits`.")
    token_reserve: Count = Field(
        1024, description="Most tokens set aside for an answer while it runs; those beyond are owed, and paid off."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis of several machines, such as redis://host:6379/0: for limits, and for kept answers."
    )
    redis_share: float = Field(
        0.5, gt=0, le=1, description="Part of each limit for this machine alone while Redis is away: 1 / machines."
    )
    redis_timeout: Seconds = Field(0.04, description="Seconds after which Redis is taken to be away, for limits.")

    max_loaded_models: Count = Field(2, description="Models kept in memory; the least recently used one goes first.")
    idle_timeout: Pause = Field(0, description="Seconds without a request before a model is unloaded; 0 is never.")
    load_timeout: Seconds = Field(900, description="Seconds that loading a model may take.")
    heartbeat_timeout: Seconds = Field(30, description="Seconds of silence before a busy worker is ended.")
    max_batch: Count = Field(64, description="Rows that a worker decodes together.")
    max_queue: Count = Field(256, description="Requests that may wait for a model; further ones get 429.")
    prefill_step: Count | None = Field(
        None,
        description="Most prompt tokens read between two decode steps; by default 256 to 2048, by model and memory.",
    )
    memory: Memory = Field(
        "auto",
        description="Bytes (or `12GB`) that a model may use; auto is 3/4 of this machine's for all models, and no more "
        "than Metal keeps resident.",
    )
    quantization: Literal["auto", "none", "q8", "q4"] = Field(
        "auto", description="Bits of the weights; auto takes fewer where 16 would fill more than half of the memory."
    )
    blas: Blas = Field(
        "auto", description="Linux, CPU only: the BLAS library that workers compute with; auto finds a fast one."
    )
    allocator: Literal["auto", "none"] = Field(
        "auto", description="Linux, CPU only: what workers take memory from; auto finds jemalloc."
    )
    max_stall: Seconds = Field(0.2, description="Seconds, about, that reading prompts may hold up running answers.")
    wired_limit: bool = Field(
        False, description="macOS: keep weights and their room wired in memory; off, for it has caused kernel panics."
    )

    max_n: Count = Field(16, description="Choices that one request may ask for.")
    max_body: Size = Field(32 * 1024 * 1024, description="Bytes of a request body.")
    body_timeout: Seconds = Field(30, description="Seconds that a request body may take to arrive.")
    max_header_bytes: Size = Field(65536, description="Bytes of a request's head.")
    max_headers: Count = Field(100, description="Header fields of a request.")
    header_timeout: Seconds = Field(10, description="Seconds that a request's head may take to arrive.")
    max_connections: Count = Field(1024, description="Open connections.")
    max_connections_per_ip: Count = Field(512, description="Open connections from one address.")
    write_timeout: Seconds = Field(60, description="Seconds that a client may leave its answer unread.")
    prefix_cache: MaybeMemory = Field(
        "auto",
        description="Bytes (or `2GB`, `none`) of prompts that each model keeps read; auto is 1/4 of what weights "
        "leave, and more than half of that is never taken.",
    )
    share_prefixes: bool = Field(
        False, description="Let kept prompts serve every key; off, for timing would tell one key what another asked."
    )
    prefix_disk: Disk = Field(
        0,
        description="Bytes (or `20GB`) of prompts that each model keeps on disk as well, as anyone who has the files "
        "can read.",
    )
    prefix_folder: File = Field(
        Path("~/.cache/openai_gateway/prefixes"),
        description="Where `prefix_disk` puts its files.",
        validate_default=True,
    )
    answer_cache: Disk = Field(
        64 * 2**20, description="Bytes (or `64MB`, `none`) of kept answers to requests of temperature 0 or with a seed."
    )
    answer_ttl: Seconds = Field(3600, description="Seconds for which an answer is kept.")
    share_answers: bool = Field(False, description="Let kept answers serve every key; off, as with `share_prefixes`.")
    max_unread: Size = Field(
        2**20, description="Characters of an answer that may wait for its client; with more, it is given up."
    )
    keep_alive: int = Field(75, ge=0, le=86_400, description="Seconds that an idle HTTP connection stays open.")
    stream_keepalive: Pause = Field(
        10,
        description="Seconds before a silent stream sends a comment (openai-go before 3.43 fails at it); 0 is never.",
    )
    drain_timeout: Pause = Field(30, description="Seconds that running requests get when the gateway stops.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["text", "json"] = Field("text", description="How log lines are written.")
    log_dir: File | None = Field(None, description="Folder for log files; without it, lines go to stderr only.")
    log_file_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line of the files."
    )
    log_file_size: Size = Field(10 * 1024 * 1024, description="Bytes after which another log file is begun.")
    log_file_count: Count = Field(5, description="Log files to keep; the oldest goes first.")
    log_prompts: bool = Field(False, description="Log what is asked; off, for prompts are private.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **options: Any) -> None:
        problems: list[str] = []
        given = gather(type(self), options, problems)
        try:
            super().__init__(**{name: value for name, (value, _) in given.items()})
        except ValidationError as error:
            problems += [explain(detail, given) for detail in error.errors()]
        if problems:  # outside the handler: its exception holds the values, and with them the key
            raise SettingsError(problems)
        self._origins = {name: where for name, (_, where) in given.items()}

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        # `gather` has merged the others already, and remembers where each value came from.
        return (sources["init_settings"],)

    @field_validator("allowed_hosts", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @field_validator("rate_limits", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        # In YAML 1.1 `on` and `off` are no words.
        return ("off", "on")[value] if isinstance(value, bool) else value

    @field_validator("log_level", "log_file_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        text = "x" if value is None else value.get_secret_value()
        if not text or not all("!" <= char <= "~" for char in text):
            raise ValueError("a key is made of visible ASCII characters, or no client can send it")
        return value

    @model_validator(mode="after")
    def _paired(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        return self

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host names to answer to, as they stand in a Host header, without a port; `*` is any."""
        if self.allowed_hosts is not None:
            return self.allowed_hosts
        if not self.loopback:
            return ("*",)
        own = f"[{self.host}]" if ":" in self.host else self.host
        return tuple(dict.fromkeys((*LOOPBACK, own)))

    @property
    def exposed(self) -> bool:
        """Whether others than this machine's users can reach the gateway."""
        return not self.loopback or bool(self.trusted_proxies)

    @property
    def proxies(self) -> tuple[IPvAnyNetwork, ...]:
        """`trusted_proxies`; a proxy on this machine that is sent to `localhost` comes from either of its addresses."""
        local = any(IPV4_LOOPBACK in network for network in self.trusted_proxies)
        return (*self.trusted_proxies, IPV6_LOOPBACK) if local else self.trusted_proxies

    @property
    def keys_file(self) -> Path:
        """`key_store`, or the place that the XDG base directories give it."""
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
        return self.key_store or Path(data) / "openai_gateway/keys.db"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def sources(settings: Settings) -> tuple[Setting, ...]:
    """Each setting, and where its value came from."""
    values = settings.model_dump(mode="json")
    return tuple(Setting(name, value, settings._origins.get(name, "default")) for name, value in values.items())
