"""Imports point one way, and what must be instant does not import what takes seconds."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import acmsao_cli

PACKAGE = Path(acmsao_cli.__file__).resolve().parent
ROOT = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
FILES = sorted(set(PACKAGE.rglob("*.py")) - ROOT)

# Each may import those before it.
ORDER = (
    *("builtin", "errors", "privacy", "writing", "versions", "identity", "host_memory"),
    *("config", "optim", "data", "models", "checkpoint", "engine", "memory"),
    *("bench", "launch", "cli"),
)
# Beyond the order: the optimizer could be a package of its own.
ONLY = {"optim": {"errors", "host_memory"}, "config": {"builtin", "errors", "privacy"}}
SLOW = {
    *("torch", "numpy", "transformers", "diffusers", "peft", "accelerate", "bitsandbytes"),
    *("datasets", "matplotlib", "PIL", "safetensors", "huggingface_hub", "tokenizers"),
}
RICH = {"cli/console.py", "cli/display.py"}


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of all modules that a piece of code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from (
                f"{module}.{alias.name}" if module == "acmsao_cli" else module
                for alias in node.names
            )


def at_import_time(node: ast.AST) -> Iterator[str]:
    """What is imported as soon as the module is: neither within functions nor for types only."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield from imported(inner)
        elif isinstance(inner, ast.If) and "TYPE_CHECKING" in ast.unparse(inner.test):
            continue
        elif not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(inner)


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    home = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        root, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if root != "acmsao_cli" or target in ("", home, "__version__"):
            continue
        assert ORDER.index(target) < ORDER.index(home), f"{home} imports {module}"
        assert target in ONLY.get(home, {target}), f"{home} imports {module}"
        assert {home, target} != {"data", "optim"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_the_console_knows_rich(path: Path) -> None:
    modules = {module.partition(".")[0] for module in imported(ast.parse(path.read_text()))}
    assert "rich" not in modules or name(path) in RICH


@pytest.mark.parametrize(
    "path", [path for path in FILES if name(path).startswith(("cli/", "config/"))], ids=name
)
def test_commands_and_configuration_import_nothing_slow(path: Path) -> None:
    modules = set(at_import_time(ast.parse(path.read_text(encoding="utf-8"))))
    assert not {module.partition(".")[0] for module in modules} & SLOW


INSTANT = (
    ["--help"],
    ["recipes", "list"],
    ["presets", "show", "16gb"],
    ["validate", "quickstart", "--preset", "16gb"],
    ["validate", "quickstart", "--set", "optimizer.name=adamv"],
    ["schema"],
    ["validate", "nope"],
    ["nope"],
)
CHILD = """
import contextlib, io, json, sys
from acmsao_cli.cli.app import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(arguments)
print(json.dumps(sorted(sys.modules)))
"""


def test_help_and_mistakes_never_load_what_takes_seconds(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(INSTANT)],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    loaded = {module.partition(".")[0] for module in json.loads(child.stdout)}
    assert not loaded & SLOW
    assert "acmsao_cli" in loaded


def test_help_takes_less_than_half_a_second_of_processor_time(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "acmsao_cli", "--help"],
            stdout=subprocess.DEVNULL,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5
