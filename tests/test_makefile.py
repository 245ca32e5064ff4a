from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    assert command("serve", HOST="elsewhere", PORT="1", MODEL="m") == ".venv/bin/python -m openai_gateway serve"


def test_make_serve_passes_on_what_it_is_told() -> None:
    told = command("serve", "HOST=::1", "PORT=9000", "MODEL=~/my models/m")
    assert told == '.venv/bin/python -m openai_gateway serve --host "::1" --port "9000" --model "~/my models/m"'
    assert command("serve", "MODEL=") == ".venv/bin/python -m openai_gateway serve"
    assert '--start "m"' in command("bench", "MODEL=m")


OLD = "sys.version_info = (3, 9, 6); platform.python_version = lambda: '3.9.6'"
MAC = "sys.platform = 'darwin'; platform.machine = lambda: '{}'; platform.mac_ver = lambda: ('{}', ('',) * 3, '')"

LINUX = "sys.platform = 'linux'; platform.libc_ver = lambda: ('{}', '{}')"


def make(folder: Path, *arguments: str, **pythons: str) -> subprocess.CompletedProcess[str]:
    """Runs make in a checkout, on a machine with these Pythons: what each, asked, believes of `sys` and `platform`."""
    programs = folder / "programs"
    programs.mkdir()
    (folder / "pyproject.toml").touch()
    for name in ("rm", "touch"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, believed in pythons.items():
        beliefs = folder / "beliefs" / name
        beliefs.mkdir(parents=True)
        (beliefs / "sitecustomize.py").write_text(f"import platform, sys\n{believed}\n")
        program = programs / name.replace("_", ".")
        program.write_text(
            f'#!/bin/sh\n[ "$1" != -c ] || export PYTHONPATH="{beliefs}"\nexec "{sys.executable}" "$@"\n'
        )
        program.chmod(0o755)
    run = [str(shutil.which("make")), "-f", str(MAKEFILE), *arguments]
    env = {"PATH": str(programs), "PIP_NO_INDEX": "1"}
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("believed", "reason"),
    [
        (OLD, "  python3 is Python 3.9.6\n"),
        (
            MAC.format("x86_64", "12.7"),
            "  python3 runs as x86_64, and MLX needs Apple silicon and a Python for arm64\n",
        ),
        (MAC.format("arm64", "13.6.1"), "  this is macOS 13.6.1, and MLX needs 14 or newer\n"),
        (LINUX.format("glibc", "2.31"), "  this Linux has glibc 2.31, and MLX needs glibc 2.35 or newer\n"),
        (LINUX.format("musl", "1.2.5"), "  this Linux has musl 1.2.5, and MLX needs glibc 2.35 or newer\n"),
        (LINUX.format("", ""), "  this Linux has no glibc, and MLX needs glibc 2.35 or newer\n"),
    ],
)
def test_a_machine_without_a_python_that_fits_is_told_why_and_where_to_get_one(
    tmp_path: Path, believed: str, reason: str
) -> None:
    made = make(tmp_path, "install", python3=believed)
    assert made.returncode
    assert "openai-gateway needs Python 3.11 to 3.14:\n" + reason + "  python3.13 is missing\n" in made.stderr
    assert "`brew install python@3.13`" in made.stderr
    assert "make install PYTHON=" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_is_named_and_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    made = make(tmp_path, "install", "PYTHON=python3.12", python3="")
    assert made.returncode
    assert "  python3.12 is missing\n" in made.stderr
    assert "python3 " not in made.stderr


def test_the_first_python_that_fits_takes_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("gone")
    stamps = [tmp_path / ".venv" / name for name in (".installed", ".installed-dev")]
    for stamp in stamps:
        stamp.touch()
    fits = MAC.format("arm64", "26.1")
    made = make(tmp_path, ".venv/bin/python", python3=OLD, python3_12=LINUX.format("glibc", "2.35"), python3_14=fits)
    assert made.stdout == "python3.12 -m venv --clear .venv\n", made.stderr
    assert not any(stamp.exists() for stamp in stamps)
    subprocess.run([tmp_path / ".venv" / "bin" / "python", "-c", "import pip"], check=True)


def test_an_environment_without_pip_gets_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    make(tmp_path, "install")  # There is nothing that pip could install here.
    subprocess.run([tmp_path / ".venv" / "bin" / "python", "-c", "import pip"], check=True)


def test_what_was_installed_for_a_python_that_is_gone_is_installed_again(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    for stamp in (".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    *_, installs, shows, touches = make(tmp_path, "-n", "install").stdout.splitlines()
    assert installs.endswith("-m pip install --quiet --disable-pip-version-check --editable .")
    assert shows.startswith("chflags nohidden .venv/lib/python*/site-packages/*.pth")
    assert touches == "touch .venv/.installed"
