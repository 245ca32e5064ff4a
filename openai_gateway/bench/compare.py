"""Servers beside each other on one model: this gateway, mlx_lm.server, and mlx-lm's plain generator.

Each is a process started here, with the same environment (so the same BLAS) and batch size, and ended afterwards.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from openai_gateway import preload
from openai_gateway.address import Address
from openai_gateway.bench.desk import Plan
from openai_gateway.bench.load import Failed
from openai_gateway.bench.run import Contender, Remote, Step
from openai_gateway.bench.server import Server, meet
from openai_gateway.bench.sheet import THROUGHPUT, Page
from openai_gateway.blas import Choice

DEMO = Path(__file__).parent.parent / "demo"
START_TIMEOUT = 300.0
"""Seconds that a server may take to load its model."""
OURS = {f"OPENAI_GATEWAY_{name}" for name in ("HOST", "PORT", "MODEL", "MODELS_FILE", "API_KEY", "ALLOWED_HOSTS")}


@dataclass(frozen=True, slots=True)
class Local:
    """How contenders are started. `model` is `tiny`, `demo`, a folder or a hub id; `batch` is in rows."""

    model: str
    batch: int = 64
    blas: str = "auto"
    allocator: Literal["auto", "none"] = "auto"
    """As the gateway's settings."""
    folder: Path = Path(".bench")
    """For the models that are made here, and for logs."""
    timeout: float = 600.0

    @property
    def environment(self) -> dict[str, str]:
        """That of this process, but for the gateway's settings of what and where it serves."""
        found = {name: value for name, value in os.environ.items() if name.upper() not in OURS}
        chosen = self.libraries()
        found |= chosen.environment if chosen else {}
        ours = {"MAX_BATCH": str(self.batch), "BLAS": "none", "ALLOCATOR": "none"}
        return found | {f"OPENAI_GATEWAY_{name}": value for name, value in ours.items()}

    def libraries(self) -> Choice | None:
        """What all are started with, as the gateway would choose it for its workers. Raises as `preload.choose`."""
        return preload.choose(self.blas, self.allocator)


class _Counted(msgspec.Struct):
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Plain:
    """mlx-lm's generator without a server; a new process for each measurement. Only `stream` makes sense here."""

    local: Local
    model: str
    prompt_tokens: int = 32
    """As long as what the servers read for a short question."""
    name: str = "plain"

    async def measure(self, step: Step, plan: Plan, page: Page) -> None:
        if step.scenario != "stream":
            return
        case = step.case
        page.asked(case)
        try:
            said = await _run(
                self.local, "openai_gateway.worker.baseline", self.model, "--streams", str(step.streams),
                "--batch", str(self.local.batch), "--max-tokens", str(plan.max_tokens),
                "--prompt-tokens", str(self.prompt_tokens),
            )  # fmt: skip
        except Failed as failed:
            page.fail(case, str(failed))
        else:
            page.add(case, THROUGHPUT, msgspec.json.decode(said, type=_Counted).tokens_per_second)


@asynccontextmanager
async def contenders(local: Local) -> AsyncIterator[list[Contender]]:
    """All three, with their model loaded. Raises `Failed`."""
    local.folder.mkdir(exist_ok=True)
    (local.folder / ".gitignore").write_text("*\n")
    model = await _model(local)
    gateway = ["-m", "openai_gateway", "serve", "--model", model, "--port"]
    # Its prompts are read as many at a time as ours, or it would wait for those that are being read.
    peer = ["-m", "mlx_lm.server", "--model", model, "--log-level", "WARNING",
            "--decode-concurrency", str(local.batch), "--prompt-concurrency", str(local.batch), "--port"]  # fmt: skip
    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        context = None
        for name, command, asked in (("gateway", gateway, None), ("mlx_lm.server", peer, "default_model")):
            server = await stack.enter_async_context(_started(local, name, command, asked, context))
            context = server.context
            servers.append(server)
        plain = Plain(local, model, servers[0].question_tokens or 32)
        yield [plain, *map(Remote, servers)]


async def _model(local: Local) -> str:
    """What to load; made first where it is one of ours."""
    if local.model == "tiny":
        arguments = [str(local.folder / "tiny")]
    elif local.model == "demo":
        arguments = [str(local.folder / "demo"), "--like", str(DEMO)]
    else:
        path = Path(local.model).expanduser()
        return str(path.resolve()) if path.exists() else local.model
    return (await _run(local, "openai_gateway.worker.bench_model", *arguments)).decode().strip()


async def _run(local: Local, module: str, *arguments: str) -> bytes:
    """What a module of ours prints. Raises `Failed`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=local.environment,
    )  # fmt: skip
    try:
        out, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Failed(f"{module} ended with status {process.returncode}: {_last_line(complaints)}")
    return out


@asynccontextmanager
async def _started(
    local: Local, name: str, command: list[str], model: str | None, context: int | None
) -> AsyncIterator[Server]:
    port = _free_port()
    log = local.folder.resolve() / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, str(port), cwd=local.folder, env=local.environment, stdout=output, stderr=output
        )
    try:
        yield await _ready(local, name, process, Address(f"http://127.0.0.1:{port}/v1"), model, context, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(
    local: Local,
    name: str,
    process: asyncio.subprocess.Process,
    address: Address,
    model: str | None,
    context: int | None,
    log: Path,
) -> Server:
    failure = Failed(f"{name}: not ready after {START_TIMEOUT:g} s")
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while process.returncode is None:
                try:
                    return await meet(name, address, model=model, context=context, timeout=local.timeout)
                except Failed as failed:
                    if failed.status not in (0, 503):  # it is up, and not because it is still loading
                        raise Failed(f"{failed} (see {log})") from None
                    failure = failed
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise failure from None
    raise Failed(f"{name} ended with status {process.returncode}: {_last_line(log.read_bytes())} (see {log})")


def _last_line(output: bytes) -> str:
    return (output.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
