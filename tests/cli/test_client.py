from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openai_gateway.cli import app
from openai_gateway.cli.client import address, complain, locate, print_table
from openai_gateway.settings import Settings
from tests.cli.conftest import Server, serving


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("0.0.0.0", "http://127.0.0.1:8000/v1"),
        ("::", "http://[::1]:8000/v1"),
        ("::1", "http://[::1]:8000/v1"),
        ("gateway.example", "http://gateway.example:8000/v1"),
    ],
)
def test_a_gateway_that_listens_everywhere_is_reached_on_this_machine(host: str, url: str) -> None:
    assert address(Settings(host=host)) == url


@pytest.mark.parametrize(
    ("host", "url", "own"),
    [
        ("127.0.0.1", "http://localhost:8000/v1/", True),
        ("0.0.0.0", "http://127.0.0.1:8000/v1", True),
        ("gateway.example", "http://GATEWAY.example:8000/v1", True),
        ("gateway.example", "http://localhost:8000/v1", False),
        ("127.0.0.1", "http://localhost:8001/v1", False),
        ("127.0.0.1", "http://localhost/v1", False),
        ("127.0.0.1", "https://localhost:8000/v1", False),
        ("127.0.0.1", "http://localhost:8000@gateway.example/v1", False),
    ],
)
def test_the_settings_key_goes_to_their_own_address_and_to_no_other(
    host: str, url: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_HOST", host)
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "sk-gateway")
    assert locate(url).key == ("sk-gateway" if own else None)
    assert locate(url, "sk-given").key == "sk-given"
    assert locate(None).key == "sk-gateway"


def test_settings_that_leave_the_port_to_the_system_have_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "0")
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "sk-gateway")
    assert locate("http://127.0.0.1/v1").key is None


@pytest.mark.parametrize("url", ["http://localhost:80a0/v1", "http://[::1", "ftp://localhost/v1", "http://a\x01b/v1"])
@pytest.mark.parametrize("command", ["models", "chat", "health"])
def test_what_is_no_base_url_is_said_in_one_line(command: str, url: str) -> None:
    result = CliRunner().invoke(app, [command, "--base-url", url], input="hello")
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == (0 if command == "health" and "\x01" in url else 1)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two certificates of one signer, who stands behind them, for other names than this machine's."""
    folder = tmp_path_factory.mktemp("tls")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    signer = ["-CA", "signer.pem", "-CAkey", "signer.key", "-addext", "subjectAltName=DNS:api.example.com"]
    for name, options in (("signer", []), ("ours", signer), ("theirs", signer)):
        files = ["-subj", f"/CN={name}", "-out", f"{name}.pem", "-keyout", f"{name}.key"]
        subprocess.run([*new, *options, *files], check=True, capture_output=True, cwd=folder)
    ours, theirs = folder / "ours.pem", folder / "theirs.pem"
    for path in (ours, theirs):
        path.write_text(path.read_text() + (folder / "signer.pem").read_text())
    return ours, theirs


def test_a_gateway_that_shows_the_settings_certificate_is_believed_and_no_other_of_its_signer(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = signed
    state = Server()
    state.ready.set()

    def run(command: str, *options: str, certificate: Path) -> int:
        monkeypatch.setenv("OPENAI_GATEWAY_TLS_CERTIFICATE", str(certificate))
        monkeypatch.setenv("OPENAI_GATEWAY_TLS_KEY", str(certificate.with_suffix(".key")))
        return CliRunner().invoke(app, [command, *options], input="hello").exit_code

    with serving(state, ssl_certfile=str(ours), ssl_keyfile=str(ours.with_suffix(".key"))) as port:
        monkeypatch.setenv("OPENAI_GATEWAY_PORT", str(port))
        assert [run(command, certificate=ours) for command in ("health", "models", "chat")] == [0, 0, 0]
        assert run("bench", "--scenarios", "stream", "--streams", "1", "--max-tokens", "2", certificate=ours) == 0
        assert run("health", certificate=theirs) == 1
        assert run("health", "--base-url", f"https://localhost.:{port}/v1", certificate=ours) == 1


def test_a_certificate_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        if content:
            (tmp_path / "tls.pem").write_text(content)
        monkeypatch.setenv("OPENAI_GATEWAY_TLS_CERTIFICATE", str(tmp_path / "tls.pem"))
        monkeypatch.setenv("OPENAI_GATEWAY_TLS_KEY", str(tmp_path / "tls.key"))
        result = CliRunner().invoke(app, ["health"])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"tls_certificate: {tmp_path / 'tls.pem'} cannot be read: ")


def test_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]x[/bold] :smile: " + "long " * 40
    complain(message)
    assert capsys.readouterr().err == f"{message}\n"


def test_a_table_shows_no_control_characters_and_no_spaces_behind(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("one", "\x1b[31mtwo"), ("", "")])
    assert capsys.readouterr().out == "A    B\none  [31mtwo\n\n"
