"""Every example runs as it stands, against a real gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, Server

EXAMPLES = ROOT / "examples"


def run(command: list[str], gateway: Server, cwd: Path = EXAMPLES) -> str:
    """What a program prints; it must end well."""
    environment = os.environ | {"OPENAI_BASE_URL": gateway.base_url}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(name: str, gateway: Server, tmp_path: Path) -> str:
    """What an example prints, pointed at the gateway of the tests by the one line that a reader would change."""
    source = (EXAMPLES / name).read_text()
    assert "http://localhost:8000/v1" in source
    copy = tmp_path / name
    copy.write_text(source.replace("http://localhost:8000/v1", gateway.base_url))
    return run([sys.executable, "-W", "error::DeprecationWarning:__main__", str(copy)], gateway)


def test_every_example_has_a_test() -> None:
    mentioned = Path(__file__).read_text()
    files = [p for p in EXAMPLES.rglob("*") if p.suffix in (".py", ".sh", ".mjs") and "node_modules" not in p.parts]
    assert [p.name for p in files if f'"{p.name}"' not in mentioned] == []
    assert len(files) >= 8


def test_chat(gateway: Server, tmp_path: Path) -> None:
    out = python("chat.py", gateway, tmp_path)
    assert "42" in out
    assert "CompletionUsage" in out


def test_stream(gateway: Server, tmp_path: Path) -> None:
    out = python("stream.py", gateway, tmp_path)
    assert "17 18 19 20" in out.replace(",", "")
    assert re.search(r"finished: stop\n\d+ tokens", out)


def test_many_at_once(gateway: Server, tmp_path: Path) -> None:
    lines = python("many_at_once.py", gateway, tmp_path).splitlines()
    assert [str(4 * a) in line for a, line in zip(range(10, 18), lines, strict=True)] == [True] * 8


def test_choices_and_logprobs(gateway: Server, tmp_path: Path) -> None:
    out = python("choices_and_logprobs.py", gateway, tmp_path)
    assert [line[:2] for line in out.splitlines()[:3]] == ["0:", "1:", "2:"]
    assert "%" in out


def test_effort(gateway: Server, tmp_path: Path) -> None:
    out = python("effort.py", gateway, tmp_path)
    counts = [int(n) for n in re.findall(r"(\d+) reasoning tokens, .*85", out)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[3] > counts[1]


def test_tools(gateway: Server, tmp_path: Path) -> None:
    called, answer = python("tools.py", gateway, tmp_path).splitlines()
    assert called == 'get_weather({"city":"Paris"})'
    assert answer == "answer: The result is 21 degrees and sunny in Paris."


def test_structured_output(gateway: Server, tmp_path: Path) -> None:
    person, choice = python("structured_output.py", gateway, tmp_path).splitlines()
    assert re.fullmatch(r"Person\(name='.*', age=\d+, job='(engineer|teacher|other)'\)", person)
    assert choice in ("yes", "no", "perhaps")


def test_langchain(gateway: Server, tmp_path: Path) -> None:
    pytest.importorskip("langchain_openai")
    out = python("langchain_chat.py", gateway, tmp_path)
    assert out.startswith("red green blue\n")
    assert "'input_tokens'" in out


def test_curl(gateway: Server) -> None:
    out = run(["bash", "curl.sh"], gateway)
    assert '"object":"chat.completion"' in out
    assert "data: [DONE]" in out
    assert '"object":"text_completion"' in out
    answers = [json.loads(line) for line in out.splitlines() if line.startswith('{"id":"chatcmpl')]
    verdict, called = (answer["choices"][0]["message"] for answer in answers[-2:])
    assert json.loads(verdict["content"])["wet"] in (True, False)
    assert json.loads(called["tool_calls"][0]["function"]["arguments"])["on"] in (True, False)


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
def test_node(gateway: Server, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules", "package-lock.json"))
    run(["npm", "install", "--silent", "--no-audit", "--no-fund"], gateway, folder)
    out = run(["node", "chat.mjs"], gateway, folder)  # "chat.mjs"
    assert "42" in out
    assert out.endswith("finished: stop\n")
