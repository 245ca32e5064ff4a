"""Every knob once: its name, unit, bounds and default, and where this process got its value from.

Strongest first: command line, environment (`OPENAI_GATEWAY_*`), `.env`, the `gateway:` section of models.yaml, default.
Nothing is accepted and ignored: an unknown name is an error, in each of those places.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "OPENAI_GATEWAY_"
MODELS_FILE = Path("models.yaml")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The names to answer to where the server is bound to the machine it runs on."""

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=1024, le=2**31)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Pause = Annotated[float, Field(ge=0, le=31_536_000)]


UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def memory_size(value: object) -> int | Literal["auto"]:
    """Bytes of a size such as `12GB` or `1.5 GiB`, or `auto`. Raises ValueError."""
    if value == "auto":
        return "auto"
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w*)", str(value).strip())
    if size is None or size[2] not in UNITS or not float(size[1]):
        raise ValueError("a size is `auto` or a number of bytes, which may be written as 12GB or 12GiB")
    return int(float(size[1]) * UNITS[size[2]])


def _blas(choice: str) -> str:
    if choice not in ("auto", "none") and not Path(choice).expanduser().is_file():
        raise ValueError("is neither `auto` nor `none`, nor a file")
    return choice


Memory = Annotated[int | Literal["auto"], BeforeValidator(memory_size)]


def _or_none(value: object) -> int | Literal["auto"]:
    return 0 if value in ("none", 0, "0") else memory_size(value)


MaybeMemory = Annotated[int | Literal["auto"], BeforeValidator(_or_none)]
Disk = Annotated[int, BeforeValidator(_or_none)]


def _shaped(pattern: str, message: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(message)
        return text

    return AfterValidator(check)


# Anything else would be compared with what clients send, and never match.
HostName = Annotated[str, _shaped(r"\*|(\*\.)?[^\s/:*[\]]+|\[[0-9A-Fa-f:.]+]", "a host name has no scheme and no port")]
Origin = Annotated[str, _shaped(r"\*|[a-z][a-z0-9+.-]*://[^\s/]+", "an origin is scheme://host[:port], and no more")]


class SettingsError(ValueError):
    """What is wrong with the settings, one sentence for each problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    value: Any
    where: str


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
    models_file: Annotated[Path, AfterValidator(Path.expanduser)] | None = Field(
        None, description="The models.yaml; by default the one in the working folder."
    )
    model: str | None = Field(
        None, min_length=1, description="Id, folder or hub id of the model to serve as the default one."
    )
    api_key: SecretStr | None = Field(None, description="What clients must send as their key; without it, anyone may.")
    allowed_hosts: tuple[HostName, ...] | None = Field(
        None, description="Host headers to answer; by default loopback names on a loopback address, else any."
    )
    cors_origins: tuple[Origin, ...] = Field((), description="Web origins whose pages may call the gateway.")

    max_loaded_models: Count = Field(2, description="Models kept in memory; the least recently used one goes first.")
    idle_timeout: Pause = Field(0, description="Seconds without a request before a model is unloaded; 0 is never.")
    load_timeout: Seconds = Field(900, description="Seconds that loading a model may take.")
    heartbeat_timeout: Seconds = Field(30, description="Seconds of silence before a busy worker is ended.")
    max_batch: Count = Field(64, description="Rows that a worker decodes together.")
    max_queue: Count = Field(256, description="Requests that may wait for a model; further ones get 429.")
    prefill_step: Count = Field(512, description="Most prompt tokens read between two decode steps.")
    memory: Memory = Field(
        "auto", description="Bytes (or `12GB`) that a model may use; auto is 3/4 of this machine's, for all models."
    )
    quantization: Literal["auto", "none", "q8", "q4"] = Field(
        "auto", description="Bits of the weights; auto takes fewer where 16 would fill more than half of the memory."
    )
    blas: Annotated[str, AfterValidator(_blas)] = Field(
        "auto", description="Linux, CPU only: the BLAS library that workers compute with; auto finds a fast one."
    )
    max_stall: Seconds = Field(0.2, description="Seconds, about, that reading prompts may hold up running answers.")
    wired_limit: bool = Field(
        False, description="macOS: let mlx-lm raise Metal's wired memory limit; off, for it has caused kernel panics."
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
        "auto", description="Bytes (or `2GB`, `none`) of prompts that each model keeps read; auto is 1/4 of its memory."
    )
    share_prefixes: bool = Field(
        False, description="Let kept prompts serve every key; off, for timing would tell one key what another asked."
    )
    prefix_disk: Disk = Field(
        0,
        description="Bytes (or `20GB`) of kept prompts that go on to disk when memory is full; they survive a restart.",
    )
    prefix_folder: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        Path("~/.cache/openai_gateway/prefixes"),
        description="Where `prefix_disk` puts its files.",
        validate_default=True,
    )
    max_unread: Size = Field(
        2**20, description="Characters of an answer that may wait for its client; with more, it is given up."
    )
    keep_alive: int = Field(75, ge=0, le=86_400, description="Seconds that an idle HTTP connection stays open.")
    stream_keepalive: Pause = Field(10, description="Seconds of silence before a stream sends a comment; 0 is never.")
    drain_timeout: Pause = Field(30, description="Seconds that running requests get when the gateway stops.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["text", "json"] = Field("text", description="How log lines are written.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **options: Any) -> None:
        problems: list[str] = []
        given = _gather(options, problems)
        try:
            super().__init__(**{name: value for name, (value, _) in given.items()})
        except ValidationError as error:
            problems += [_explain(detail, given) for detail in error.errors()]
        if problems:  # outside the handler: its exception holds the values, and with them the key
            raise SettingsError(problems)
        self._origins = {name: where for name, (_, where) in given.items()}

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        # `_gather` has merged the others already, and remembers where each value came from.
        return (sources["init_settings"],)

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
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


def _gather(options: Mapping[str, Any], problems: list[str]) -> dict[str, Given]:
    """What was written anywhere, the strongest place for each name; what is wrong is added to `problems`."""
    given = _dotenv(problems) | _variables(EnvSettingsSource(Settings).env_vars, "environment variable {}")
    given |= {name: Given(value, "command line") for name, value in options.items()}
    if "models_file" not in given and MODELS_FILE.exists():
        given["models_file"] = Given(MODELS_FILE, "default")
    path = given["models_file"].value if "models_file" in given else None
    section = {} if path is None else _section(Path(str(path)).expanduser(), problems)
    if "models_file" in section:
        problems.append(f"{section['models_file'].where}: the file cannot name itself with `models_file`")
    for name, (_, where) in (*section.items(), *given.items()):
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            problems.append(f"{where}: there is no setting `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    merged = section | given
    return {name: merged[name] for name in Settings.model_fields if name in merged}


def _variables(variables: Mapping[str, str | None], where: str) -> dict[str, Given]:
    """Ours among some variables, whose names pydantic-settings has put into lower case."""
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX.lower())}
    return {name[len(PREFIX) :]: Given(value, where.format(name.upper())) for name, value in ours.items()}


def _dotenv(problems: list[str]) -> dict[str, Given]:
    try:
        return _variables(DotEnvSettingsSource(Settings, env_file=".env").env_vars, ".env, {}")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f".env: cannot be read: {error}")
        return {}


def _section(path: Path, problems: list[str]) -> dict[str, Given]:
    """The `gateway:` section of a models.yaml, each value with its line."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        lines = _lines(root, path)  # before merge keys (`<<`) are resolved: they may repeat a name, nothing else may
        content = loader.construct_document(root) if root else None
        if not isinstance(content, dict | None) or not isinstance((content or {}).get("gateway"), dict | None):
            raise ValueError("the file and its `gateway:` section hold `name: value` lines")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        problems.append(f"{path}, line {mark.line + 1}: {what}" if mark else f"{path}: {what}")
        return {}
    section: dict[Any, Any] = (content or {}).get("gateway") or {}
    return {str(name): Given(value, lines.get(str(name), str(path))) for name, value in section.items()}


def _lines(root: yaml.Node | None, path: Path) -> dict[str, str]:
    """Where each name of the `gateway:` section stands."""
    top = root.value if isinstance(root, yaml.MappingNode) else []
    sections = [value for key, value in top if key.value == "gateway" and isinstance(value, yaml.MappingNode)]
    places: dict[str, str] = {}
    for key, _ in (item for section in sections for item in section.value):
        if str(key.value) in places:
            raise yaml.MarkedYAMLError(problem=f"`{key.value}` stands here twice", problem_mark=key.start_mark)
        places[str(key.value)] = f"{path}, line {key.start_mark.line + 1}"
    return places


def _explain(detail: ErrorDetails, given: Mapping[str, Given]) -> str:
    name = str(detail["loc"][0])
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if name == "api_key" else f", not {detail['input']!r}"
    return f"{given[name].where}: {name}: {message}{shown}"
