"""The optimizer's parts and what their options take, read from the source text of `optim`.

Importing `optim` would import torch, which takes seconds; a recipe's mistakes must be told at once.
A test holds what is read here to the real registries.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

OPTIM = Path(__file__).resolve().parent.parent / "optim"

# The registries' names, which are also the decorators': `@rule("adamw")`.
KINDS = (
    "rule",
    "momentum",
    "ratio",
    "storage",
    "gradient_edit",
    "direction_edit",
    "decay",
    "rounding",
    "schedule",
)
Kind: TypeAlias = Literal[
    "number",
    "count",
    "truth",
    "text",
    "null",
    "list",
    "schedule",
    "rule",
    "momentum",
    "ratio",
    "phases",
]
WRAPPED = re.compile(r"offloaded\((.*)\)")  # a storage in host memory


@dataclass(frozen=True)
class Wanted:
    """One kind of value that an option takes.

    `choices` are those of a text; `items` are the kinds of a list's entries, `length` of them.
    """

    kind: Kind
    choices: tuple[str, ...] = ()
    items: tuple[Wanted, ...] = ()
    length: int | None = None


@dataclass(frozen=True)
class Option:
    """What an option takes; `required` where it has no default."""

    wanted: tuple[Wanted, ...]
    required: bool = False


Options: TypeAlias = Mapping[str, Option]
Parts: TypeAlias = Mapping[str, Mapping[str, Options]]

_KIND_OF_ANNOTATION: Final[dict[str, tuple[Kind, ...]]] = {
    "float": ("number",),
    "int": ("count",),
    "bool": ("truth",),
    "str": ("text",),
    "Course": ("number", "schedule"),
    "Schedule": ("schedule",),
    "Rule": ("rule",),
    "Momentum": ("momentum",),
    "Ratio": ("ratio",),
    "Phases": ("phases",),
}


@functools.cache
def parts() -> Parts:
    """Return by kind the registered names, each with the options (dataclass fields) of its part."""
    nodes = [node for file in sorted(OPTIM.rglob("*.py")) for node in _statements(file)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    aliases = {name: value for node in nodes for name, value in _assigned(node)}
    found: dict[str, dict[str, Options]] = {kind: {} for kind in KINDS}
    for node in nodes:
        for kind, name in _registrations(node):
            found[kind][name] = _options(node, classes, aliases)
    return found


def storage_in(name: str) -> str:
    """Return the storage that is named, without the `offloaded(...)` around it."""
    wrapped = WRAPPED.fullmatch(name)
    return wrapped[1] if wrapped else name


def rules_with(option: str) -> tuple[str, ...]:
    """Return the rules that have an option of this name."""
    return tuple(name for name, options in sorted(parts()["rule"].items()) if option in options)


def of_a_momentum(option: str) -> str | None:
    """Return how an option of a momentum is written, where one has it."""
    for name, options in parts()["momentum"].items():
        if option in options:
            value = "true" if Wanted("truth") in options[option].wanted else "..."
            return f"write momentum: {{name: {name}, {option}: {value}}}"
    return None


def _statements(file: Path) -> Sequence[ast.stmt]:
    text = file.read_text(encoding="utf-8")
    marks = ("@dataclass", "TypeAlias = Literal", *(f"@{kind}(" for kind in KINDS))
    needed = any(mark in text for mark in marks)
    return ast.parse(text).body if needed else ()


def _registrations(node: ast.stmt) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(name))]):
                if kind in KINDS:
                    yield kind, name


def _assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """What a statement of a module names: `Variant = Literal["a", "b"]`."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            yield name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value


def _options(
    node: ast.stmt, classes: Mapping[str, ast.ClassDef], aliases: Mapping[str, ast.expr]
) -> Options:
    """A dataclass's fields, those of its bases first; a function has none."""
    if not isinstance(node, ast.ClassDef):
        return {}
    found: dict[str, Option] = {}
    for base in reversed(node.bases):  # the order of dataclasses
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _options(classes[base.id], classes, aliases)
    for statement in node.body if _is_dataclass(node) else ():
        match statement:
            case ast.AnnAssign(annotation=ast.Subscript(value=ast.Name(id="ClassVar"))):
                continue
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=default):
                found[name] = Option(tuple(_wanted(annotation, aliases)), default is None)
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = (ast.unparse(decorator) for decorator in node.decorator_list)
    return any(name.startswith("dataclass") for name in names)


def _wanted(node: ast.expr, aliases: Mapping[str, ast.expr]) -> Iterator[Wanted]:
    match node:
        case ast.Name(id=name) if name in _KIND_OF_ANNOTATION:
            yield from (Wanted(kind) for kind in _KIND_OF_ANNOTATION[name])
        case ast.Name(id=name) if name in aliases:
            yield from _wanted(aliases[name], aliases)
        case ast.Constant(value=None):
            yield Wanted("null")
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from (*_wanted(left, aliases), *_wanted(right, aliases))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=chosen):
            entries = chosen.elts if isinstance(chosen, ast.Tuple) else [chosen]
            words = [entry.value for entry in entries if isinstance(entry, ast.Constant)]
            yield Wanted("text", choices=tuple(word for word in words if isinstance(word, str)))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, *rest])):
            endless = isinstance(rest[-1], ast.Constant) if rest else False
            length = None if endless else 1 + len(rest)
            yield Wanted("list", items=tuple(_wanted(first, aliases)), length=length)
