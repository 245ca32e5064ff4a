from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def command(*arguments: str, **variables: str) -> str:
    """What make would run last."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | variables
    run = ["make", "-n", "-f", str(MAKEFILE), *arguments]
    made = subprocess.run(run, cwd=MAKEFILE.parent, env=env, check=True, capture_output=True, text=True)
    return " ".join(made.stdout.splitlines()[-1].split())


def test_make_serve_leaves_to_the_settings_what_it_is_not_told() -> None:
    assert command("serve", HOST="elsewhere", PORT="1", MODEL="m") == ".venv/bin/openai-gateway serve"


def test_make_serve_passes_on_what_it_is_told() -> None:
    told = command("serve", "HOST=::1", "PORT=9000", "MODEL=~/my models/m")
    assert told == '.venv/bin/openai-gateway serve --host "::1" --port "9000" --model "~/my models/m"'
    assert command("serve", "MODEL=") == ".venv/bin/openai-gateway serve"
    assert '--start "m"' in command("bench", "MODEL=m")
