"""Imports go down only, and mlx stays in the worker."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

from tests.support import ROOT

PACKAGE = ROOT / "openai_gateway"

LAYERS = (
    ("types", "errors", "address", "settings_kinds", "settings_sources", "settings", "logs", "blas", "preload"),
    ("reasoning", "sse", "cache", "access.store", "access.audit", "access.keys", "access.limits", "worker"),
    ("providers",),
    ("models_file", "slots", "registry"),
    ("flight",),
    ("recall",),
    ("gateway",),
    ("api", "access", "observe"),
    ("bounds",),
    ("connection",),
    ("server", "processes"),
    ("app",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
"""Lowest first; a module may import from its own layer and from those below it. A name stands for all below it."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(dotted name inside the package, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith("demo"):
            yield name, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> int | None:
    """The layer of a module: that of the longest prefix that has one."""
    prefixes = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
    found = (number for prefix in prefixes for number, names in enumerate(LAYERS) if prefix in names)
    return next(found, None)


def test_every_module_has_a_layer() -> None:
    assert [name for name, _ in modules() if layer(name) is None and name != "__init__"] == []


def test_imports_go_down_only() -> None:
    upward = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if target.startswith("openai_gateway.")
        and (below := layer(target.removeprefix("openai_gateway."))) is not None
        and (own := layer(name)) is not None
        and below > own
    ]
    assert upward == []


def test_only_the_worker_imports_mlx() -> None:
    guilty = {
        name
        for name, tree in modules()
        for target in imported(tree)
        if target.split(".")[0] in ("mlx", "mlx_lm", "transformers") and not name.startswith("worker")
    }
    assert guilty == set()


def test_the_load_generator_imports_no_server() -> None:
    guilty = {
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if name.startswith("bench") and target.startswith("openai_gateway.")
        if not target.startswith(
            ("openai_gateway.bench", "openai_gateway.blas", "openai_gateway.preload", "openai_gateway.address")
        )
    }
    assert guilty == set()


def test_the_worker_imports_no_http() -> None:
    guilty = {
        name
        for name, tree in modules()
        for target in imported(tree)
        if name.startswith("worker") and target.split(".")[0] in ("starlette", "uvicorn", "openai")
    }
    assert guilty == set()


def test_the_gateway_process_loads_neither_mlx_nor_transformers() -> None:
    code = (
        "import sys\n"
        "import openai_gateway.app, openai_gateway.providers.mlx\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers', 'torch', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
