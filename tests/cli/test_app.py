from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import openai_gateway
from openai_gateway.cli import app

HEAVY = ("openai", "pydantic", "pydantic_settings", "rich", "starlette", "uvicorn", "mlx", "msgspec")


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{openai_gateway.__version__}\n")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in ("serve", "chat", "models", "config", "health"))


def test_help_imports_nothing_heavy() -> None:
    script = f"import sys; from openai_gateway.cli import app; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    root = str(Path(openai_gateway.__file__).parents[1])
    run = [sys.executable, "-c", script]
    loaded = subprocess.check_output(run, env={**os.environ, "PYTHONPATH": root}, text=True)
    assert loaded == "[]\n"


def test_no_command_takes_the_key_where_ps_would_show_it() -> None:
    for command in ("serve", "chat", "models", "config", "health"):
        assert not re.search(r"--\S*key", CliRunner().invoke(app, [command, "--help"]).stdout)
