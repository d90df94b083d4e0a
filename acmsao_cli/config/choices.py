"""The names of the optimizer's parts, read from the source text of `optim`.

Importing `optim` would import torch, which takes seconds; a recipe's mistakes must be told at once.
A test holds these names to the real registries.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

OPTIM = Path(__file__).resolve().parent.parent / "optim"

# The registries' names, which are also the decorators': `@rule("adamw")`.
KINDS = (
    "rule",
    "momentum",
    "ratio",
    "storage",
    "gradient_edit",
    "direction_edit",
    "schedule",
)


@functools.cache
def parts() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Return by kind the registered names, each with the options (dataclass fields) of its part."""
    found: dict[str, dict[str, frozenset[str]]] = {kind: {} for kind in KINDS}
    for file in sorted(OPTIM.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not any(f"@{kind}(" in text for kind in KINDS):
            continue
        for node in ast.parse(text).body:
            for kind, name in _registrations(node):
                found[kind][name] = _options(node)
    return found


def _registrations(node: ast.stmt) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(name))]):
                if kind in KINDS:
                    yield kind, name


def _options(node: ast.stmt) -> frozenset[str]:
    if not isinstance(node, ast.ClassDef):
        return frozenset()
    return frozenset(
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )
