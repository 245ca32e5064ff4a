"""The application as a whole: what is routed, what is refused, and what every answer has."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from starlette.routing import Route

from openai_gateway.access.keys import KeyStore
from openai_gateway.access.permissions import OPEN, needed
from openai_gateway.access.store import Store
from openai_gateway.app import certificate, create_app
from openai_gateway.settings import Settings, SettingsError
from tests.support import MODEL, Guarded, Server, ipv6, running


def test_unknown_urls_and_wrong_methods_are_answered_in_the_envelope(http: httpx2.Client) -> None:
    unknown = http.post("/v1/nothing", json={})
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "Invalid URL (POST /v1/nothing)")
    assert http.post("/v1/completions/", json={}, follow_redirects=False).status_code == 404
    astray = http.post("/chat/completions", json={}).json()["error"]["message"]
    assert astray.endswith("did you mean /v1/chat/completions? The base URL ends in /v1")
    assert http.get("/v1//models").json()["error"]["message"].endswith("/v1/models? The base URL ends in /v1")
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_supported"
    assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}


def routes(folder: Path) -> list[tuple[str, str]]:
    """(method, path) of everything that the application answers."""
    app = create_app(Settings(models_file=None, key_store=folder / "keys.db"))
    found = [route for route in app.routes if isinstance(route, Route)]
    assert len(found) == len(app.routes)
    names = {"{model:path}": MODEL, "{key}": "key_1"}
    paths = [(method, route.path) for route in found for method in route.methods or ()]
    return [(method, re.sub(r"{.*?}", lambda name: names[name[0]], path)) for method, path in paths]


def test_b2_unguarded_twin_routes_every_route_is_in_the_table_of_permissions(tmp_path: Path) -> None:
    assert [route for route in routes(tmp_path) if needed(*route) is None] == []
    healthy = {path for method, path in routes(tmp_path) if needed(method, path) == OPEN}
    assert healthy == {"/health", "/health/live", "/health/ready"}
    assert {needed(*route) for route in routes(tmp_path) if route[1].startswith("/admin")} == {"admin"}


def test_g18_every_route_asks_for_a_key_and_for_its_permission(tmp_path: Path, guarded: Guarded) -> None:
    powerless = guarded.key(permissions=["embeddings"])
    for method, path in routes(tmp_path):
        answers = [
            guarded.http.request(method, path, headers=headers).status_code
            for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}, powerless.headers)
        ]
        assert answers == [200, 200, 200] if needed(method, path) == OPEN else [401, 401, 403], path


def test_g42_without_a_key_only_health_is_told_and_nothing_about_models_or_settings(guarded: Guarded) -> None:
    stranger = {"authorization": ""}
    for path in ("/health", "/health/live", "/health/ready"):
        answer = guarded.http.get(path, headers=stranger)
        assert (answer.status_code, list(answer.json())) == (200, ["status"])
    for path in ("/", "/metrics", "/docs", "/openapi.json", "/v1/performance", "/admin/config", "/favicon.ico"):
        answer = guarded.http.get(path, headers=stranger)
        assert (answer.status_code, MODEL in answer.text) == (401, False), path


def test_a_page_that_points_its_own_name_here_is_refused(http: httpx2.Client) -> None:
    response = http.get("/v1/models", headers={"host": "evil.example:8000"})
    assert response.status_code == 403


def test_no_origin_is_let_in_unless_it_is_configured(http: httpx2.Client, tmp_path: Path) -> None:
    asks = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options("/v1/models", headers=asks).headers
    with running(tmp_path, cors_origins="https://chat.example", ready=False) as server:
        server.wait_until_ready()
        answer = httpx2.options(f"{server.url}/v1/chat/completions", headers=asks)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        near = {"access-control-request-private-network": "true"}  # Chrome, of a page from the internet
        assert httpx2.options(f"{server.url}/v1/chat/completions", headers=asks | near).status_code == 200
        plain = httpx2.get(f"{server.url}/v1/models", headers={"origin": "https://chat.example"})
        exposed = plain.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-prefix-cache", "x-should-retry"} <= set(exposed)


def test_a_body_that_is_too_large_is_a_413(http: httpx2.Client) -> None:
    content = b'{"model": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    response = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert http.get("/health/live").status_code == 200


def test_settings_that_are_wrong_end_the_start_with_a_sentence_for_each(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: [{id: a, path: ./nowhere}]")
    with running(tmp_path, ready=False) as server:
        assert server.process.wait(20) == 2
    log = server.log.read_text()
    assert "there is no folder ./nowhere" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_certificate_that_is_not_there_ends_the_start_and_is_named(tmp_path: Path, workers: int) -> None:
    missing = {"tls_certificate": tmp_path / "no.pem", "tls_key": tmp_path / "no.key"}
    with running(tmp_path, ready=False, workers=workers, **missing) as server:
        assert server.process.wait(60) == 2
    assert server.log.read_text().endswith(
        f"tls_certificate: {tmp_path}/no.pem cannot be read: No such file or directory\n"
    )


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, its key, another key, and its key under a passphrase."""
    folder = tmp_path_factory.mktemp("pem")
    curve = ["-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    for command in (
        ["genpkey", *curve, "-out", "key"],
        ["genpkey", *curve, "-out", "other"],
        ["pkey", "-in", "key", "-aes256", "-passout", "pass:open sesame", "-out", "locked"],
        ["req", "-x509", "-key", "key", "-subj", "/CN=localhost", "-out", "certificate"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "problem"),
    [
        ("certificate", "other", "tls_certificate, tls_key: .* are not a certificate and its key"),
        ("key", "key", "tls_certificate, tls_key: .* are not a certificate and its key"),
        ("certificate", "locked", "tls_key: .*locked has a passphrase"),
        ("certificate", ".", "tls_key: .* cannot be read: Is a directory"),
    ],
)
def test_a_certificate_that_cannot_be_served_with_is_refused(pem: Path, cert: str, key: str, problem: str) -> None:
    assert certificate(Settings(tls_certificate=pem / "certificate", tls_key=pem / "key")) is not None
    with pytest.raises(SettingsError, match=problem):
        certificate(Settings(tls_certificate=pem / cert, tls_key=pem / key))


def test_one_of_several_processes_that_cannot_serve_says_so_in_one_line_and_ends_them_all(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "1").touch()
    with running(tmp_path, ready=False, workers=2, log_dir=logs) as server:
        assert server.process.wait(60) == 3
    log = server.log.read_text()
    assert log.count("gateway process 1 cannot serve: log_dir: cannot be written: File exists\n") == 1
    assert "Traceback" not in log


def logged(server: Server, what: str, times: int = 1) -> None:
    """Returns when the log of a server that goes on says it so often."""
    deadline = time.monotonic() + 60
    while server.log.read_text().count(what) < times:
        assert server.process.poll() is None and time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def gateways(server: Server) -> list[psutil.Process]:
    """The processes that answer, where there are several."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("later", ["{id: two, path: org/two}", "{id: one, path: /nowhere}"])
def test_a_process_that_replaces_another_serves_the_same_models_to_the_same_callers(tmp_path: Path, later: str) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: [{id: one, path: org/one}]")
    with running(tmp_path, ready=False, workers=2, host="0.0.0.0", insecure=True) as server:
        logged(server, "serving on", 2)
        models.write_text(f"models: [{later}]")
        KeyStore(Store(tmp_path / "keys.db")).create("later", actor="test")
        for gateway in gateways(server):
            gateway.kill()
        logged(server, "serving on", 4)
        answer = httpx2.get(f"{server.url}/v1/models")
    assert [model["id"] for model in answer.json()["data"]] == ["one"]


def test_a_replacement_that_cannot_serve_is_tried_until_it_can_while_the_others_serve(
    pem: Path, tmp_path: Path
) -> None:
    chain, key = tmp_path / "chain", tmp_path / "key"
    shutil.copy(pem / "certificate", chain)
    shutil.copy(pem / "key", key)
    tls = {"tls_certificate": chain, "tls_key": key}
    with running(tmp_path, ready=False, workers=2, log_format="json", **tls) as server:
        logged(server, "serving on", 2)
        shutil.copy(pem / "other", key)
        gateways(server)[0].kill()
        logged(server, "ended with status 3; another one takes its place")
        trusted = ssl.create_default_context(cafile=str(chain))
        address = server.url.replace("http://127.0.0.1", "https://localhost")
        assert httpx2.get(f"{address}/health/live", verify=trusted).status_code == 200
        shutil.copy(pem / "key", key)
        logged(server, "serving on", 3)
    messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    assert any("cannot serve: tls_certificate, tls_key: " in message for message in messages)


def test_a_replacement_for_want_of_descriptors_is_tried_again(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("limits of other processes are a Linux thing")
    with running(tmp_path, ready=False, workers=2) as server:
        logged(server, "serving on", 2)
        parent = psutil.Process(server.process.pid)
        limits = parent.rlimit(psutil.RLIMIT_NOFILE)
        parent.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        gateways(server)[0].kill()
        logged(server, "cannot be started")
        parent.rlimit(psutil.RLIMIT_NOFILE, limits)
        logged(server, "serving on", 3)


def test_the_log_has_a_line_for_each_request_and_no_prompt(tmp_path: Path) -> None:
    with running(tmp_path, log_format="json") as server:
        httpx2.post(
            f"{server.base_url}/completions?api_key=hidden",
            json={"model": MODEL, "prompt": "xyzzy-prompt", "max_tokens": 1},
        )
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [entry for entry in lines if entry.get("path") == "/v1/completions"]
    assert (line["method"], line["status"], line["model"]) == ("POST", 200, MODEL)
    assert "xyzzy" not in server.log.read_text()
    assert "hidden" not in server.log.read_text()


@ipv6
def test_a_trusted_proxy_on_this_machine_may_come_from_its_other_address(tmp_path: Path) -> None:
    key = "of-a-proxy-and-its-clients"
    headers = {"authorization": f"Bearer {key}", "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    with running(
        tmp_path, trusted_proxies="127.0.0.1", require_https=True, max_connections_per_ip=1, api_key=key
    ) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("::1", port)), httpx2.Client(base_url=f"http://[::1]:{port}") as http:
            assert http.get("/v1/models", headers=headers).status_code == 200
    assert "203.0.113.9" in server.log.read_text()  # the line follows the answer: there once the server has ended


def test_the_gateway_process_has_one_child_for_each_loaded_model(gateway: Server) -> None:
    assert len(psutil.Process(gateway.process.pid).children()) == 1


@pytest.mark.parametrize(
    ("path", "field", "item"),
    [
        ("/v1/completions", "prompt", "1"),
        ("/v1/completions", "stop", "1"),
        ("/v1/completions", "stop_token_ids", '"x"'),
        ("/v1/chat/completions", "messages", "1"),
        ("/v1/chat/completions", "messages", "{}"),
    ],
)
def test_a_million_mistakes_in_one_body_cost_no_more_than_one(
    http: httpx2.Client, gateway: Server, path: str, field: str, item: str
) -> None:
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    content = f'{{"model": "{MODEL}", "{field}": [{",".join([item] * 1_000_000)}, null]}}'
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert len(response.content) < 1000
    assert process.memory_info().rss - before < 200_000_000
