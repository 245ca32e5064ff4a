"""Where log lines go, what they look like, and what they never hold."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from openai_gateway.logs import Logs, configure
from openai_gateway.settings import Settings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Takes back afterwards what a test configures."""
    loggers = [logging.getLogger(name) for name in (None, "uvicorn", "httpx2")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    for handler in set(loggers[0].handlers) - set(handlers):
        with contextlib.suppress(OSError):  # of a disk that a test has filled
            handler.close()
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def log() -> logging.Logger:
    return logging.getLogger("any")


@contextlib.contextmanager
def no_file_grows() -> Iterator[None]:
    """What this process writes fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass(frozen=True)
class Thing:
    path: str
    status: int

    def __str__(self) -> str:
        return self.path


def test_a_json_line_is_one_object_with_the_fields_of_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logs(format="json"))
    log().info("%s", Thing("/a", 404))
    try:
        raise RuntimeError("as\nasked")
    except RuntimeError:
        log().exception("failed")
    about, trace = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (about["level"], about["logger"], about["path"], about["status"]) == ("info", "any", "/a", 404)
    assert "as\nasked" in trace["trace"]


def test_g38_a_text_line_escapes_what_would_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logs(level="warning"))
    log().warning("one\ntwo \x1b[31m")
    log().info("quiet")
    assert capsys.readouterr().err.endswith("WARNING any: one\\ntwo \\x1b[31m\n")


def test_g38_a_trace_below_a_text_line_cannot_pass_for_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logs())
    try:
        raise RuntimeError("one\n2026-01-01 00:00:00,000 INFO any: forged \x1b[31m")
    except RuntimeError:
        log().exception("failed", stack_info=True)
    record, *below = capsys.readouterr().err.splitlines()
    assert record.endswith("ERROR any: failed")
    assert "  RuntimeError: one" in below
    assert "  2026-01-01 00:00:00,000 INFO any: forged \\x1b[31m" in below
    assert all(line.startswith("  ") for line in below)


@pytest.mark.parametrize("form", ["text", "json"])
def test_g39_no_line_holds_a_key(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure(Logs(format=form), secrets=["hunter2", 'od"d\\key'])
    for text in (
        "sk-og-abcdefgh12345678",
        "Authorization: Bearer abcdefgh12345678",
        "GET /v1/models?api_key=abcdefgh12345678&x=1",
        "x-api-key:abcdefgh12345678",
        "the key hunter2 is wrong",
        'od"d\\key',
    ):
        log().info("%s", text)
        log().info("%s", Thing(text, 1))
        try:
            raise RuntimeError(text)
        except RuntimeError:
            log().exception("failed")
    shown = capsys.readouterr().err
    assert "[redacted]" in shown
    for secret in ("abcdefgh12345678", "hunter2", 'od"d', 'od\\"d'):
        assert secret not in shown


def test_files_have_a_level_of_their_own_and_are_for_their_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Logs(level="warning", folder=str(tmp_path / "logs"), file_level="debug"), "worker-org/model")
    log().debug("in detail")
    assert capsys.readouterr().err == ""
    (file,) = (tmp_path / "logs").iterdir()
    assert file.name == "worker-org_model.log"
    assert file.read_text().endswith("DEBUG any: in detail\n")
    assert file.stat().st_mode & 0o777 == 0o600


def test_files_rotate_at_their_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    configure(Logs(folder=str(tmp_path), file_size=1024, file_count=3))
    for number in range(100):
        log().info("%d %s", number, "x" * 100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gateway.log", "gateway.log.1", "gateway.log.2"]
    assert all(file.stat().st_size <= 1024 for file in tmp_path.iterdir())
    assert "INFO any: 99 " in (tmp_path / "gateway.log").read_text()


def test_a_single_file_starts_again_at_its_size(tmp_path: Path) -> None:
    configure(Logs(folder=str(tmp_path), file_size=1024, file_count=1))
    for number in range(100):
        log().info("%d %s", number, "x" * 100)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size <= 1024
    assert "INFO any: 99 " in file.read_text()


def test_g43_a_file_that_cannot_be_written_is_told_of_once_and_holds_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Logs(folder=str(tmp_path)))
    with no_file_grows():
        for number in range(3):
            log().info("%d", number)
    shown = capsys.readouterr().err
    assert shown.count("cannot be written") == 1
    assert shown.count("INFO any") == 3


def test_a_worker_is_told_by_an_argument_how_to_log(tmp_path: Path) -> None:
    logs = Logs.of(Settings(models_file=None, log_dir=tmp_path, log_format="json", log_file_count=2))
    assert Logs.read(logs.text) == logs
    assert (logs.folder, logs.format, logs.file_count) == (str(tmp_path), "json", 2)
    assert Logs.read("{}") == Logs()
