"""How log records become lines: one line each, in text or JSON, on stderr and in files; escaped, and without keys."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from openai_gateway.settings import Settings

QUIET = ("uvicorn", "httpx2")
"""uvicorn tells of its start and end, which our command line does in its own words; httpx2 of whole URLs."""

MARKS = ("sk-", "bearer", "api_key", "api-key")
SECRETS = r"\bsk-[\w-]{8,}|(?<=\bbearer\s)[^\s\"',]+|(?<=\bapi[_-]key[=:])[^\s\"'&,]+"
"""What looks like a key, wherever it may have come from; each begins with one of `MARKS`."""
REDACTED = "[redacted]"


class Logs(Struct, frozen=True):
    """Where lines go, and which."""

    level: str = "info"
    format: str = "text"
    folder: str | None = None
    file_level: str = "info"
    file_size: int = 10 * 2**20
    file_count: int = 5

    @classmethod
    def of(cls, settings: Settings) -> Logs:
        """As the settings have it."""
        return cls(
            level=settings.log_level,
            format=settings.log_format,
            folder=None if settings.log_dir is None else str(settings.log_dir.absolute()),
            file_level=settings.log_file_level,
            file_size=settings.log_file_size,
            file_count=settings.log_file_count,
        )

    @property
    def text(self) -> str:
        """As an argument for a worker's process."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def read(cls, text: str) -> Logs:
        """Back from such an argument."""
        return msgspec.json.decode(text, type=cls)


def configure(logs: Logs, name: str = "gateway", secrets: Iterable[str] = ()) -> None:
    """Sends every record of the process to stderr, and to `name`.log where there is a folder for it.

    Replaces what was configured before. `secrets` never show, whatever they look like. Raises OSError where the file
    cannot be made.
    """
    formatter = (_Json if logs.format == "json" else _Text)(secrets)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(logs.level.upper())
    if logs.folder is not None:
        handlers.append(_file(Path(logs.folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.log", logs))
        handlers[1].setLevel(logs.file_level.upper())
    for handler in handlers:
        handler.setFormatter(formatter)
    level = min(handler.level for handler in handlers)
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for quiet in QUIET:
        logging.getLogger(quiet).setLevel(max(logging.WARNING, level))


class _Lines(logging.Formatter):
    """A record as one line, in which every secret is covered. Two handlers that share it pay for one line."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        known = [form for secret in secrets for form in (secret, json.dumps(secret)[1:-1])]
        self._marks = [*(form.lower() for form in known), *MARKS]
        self._secrets = re.compile("|".join([*map(re.escape, known), SECRETS]), re.IGNORECASE)
        self._latest: tuple[logging.LogRecord | None, str] = (None, "")

    def format(self, record: logging.LogRecord) -> str:
        if self._latest[0] is not record:
            self._latest = (record, self._redacted(self.line(record)))
        return self._latest[1]

    def line(self, record: logging.LogRecord) -> str:
        """The line as it would be without secrets."""
        return super().format(record)

    def _redacted(self, text: str) -> str:
        lower = text.lower()
        # The expression looks at every character, which takes longer than all the rest of a line.
        return self._secrets.sub(REDACTED, text) if any(mark in lower for mark in self._marks) else text


class _Text(_Lines):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return _printable(super().formatMessage(record))

    def line(self, record: logging.LogRecord) -> str:
        # A trace, which logging puts below, is meant to have lines. Indented, none of them passes for a record.
        return "\n  ".join(_printable(line) for line in super().line(record).split("\n"))


class _Json(_Lines):
    """One object per line; the fields of a dataclass that a record is about stand beside the message."""

    def line(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        about = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if is_dataclass(about) and not isinstance(about, type):
            fields |= {field.name: getattr(about, field.name) for field in dataclass_fields(about)}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _printable(text: str) -> str:
    if text.isprintable():  # nearly always, and this is in the way of every request
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Rotating(RotatingFileHandler):
    """Files that only their owner can read. A full disk is told of once, on stderr, and holds nothing up."""

    failed = False

    def doRollover(self) -> None:
        if not self.backupCount:  # logging would go on in the same file, and never make it smaller
            os.truncate(self.baseFilename, 0)
        super().doRollover()

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return open(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exception()}", file=sys.stderr)


def _file(path: Path, logs: Logs) -> logging.Handler:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _Rotating(path, maxBytes=logs.file_size, backupCount=logs.file_count - 1)
