"""Write the tables of docs/ that follow from the code.

    python scripts/docs_tables.py

Each stands between `<!-- table: NAME -->` and `<!-- end -->`; a test holds the files to what this
writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.locate import shipped
from acmsao_cli.config.preset import load_preset
from acmsao_cli.config.recipe import FAMILIES

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(header: str, lines: Iterable[str]) -> str:
    """A Markdown table."""
    columns = header.count("|") - 1
    return "\n".join([header, "|" + "---|" * columns, *lines]) + "\n"


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation allows, one or one for each method; none where values may be."""
    choices = getattr(annotation, "__args__", (annotation,))
    found = [one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)]
    return found if len(found) == len(choices) else []


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of every value a recipe may hold."""
    for name, field in model.model_fields.items():
        if inner := sections(field.annotation):
            for section in inner:
                yield from keys(section, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else shown(field.default)
            yield f"{prefix}{name}", default, field.description or ""


def shown(value: Any) -> str:
    """A default as it would stand in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def recipe_keys() -> str:
    """All keys; the last column names the family if only one has the key."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for family, schema in FAMILIES.items():
        for key, default, about in keys(schema):
            entry = found.setdefault(key, (default, about, []))
            if family not in entry[2]:
                entry[2].append(family)
    described = {"model.family": "sdxl or causal_lm", "method.kind": "lora or full"}
    return rows(
        "| key | default | meaning | only for |",
        (
            f"| `{key}` | `{default}` | {described.get(key, about)} | "
            f"{families[0] if len(families) < len(FAMILIES) else ''} |"
            for key, (default, about, families) in found.items()
        ),
    )


def recipes() -> str:
    """The recipes that are shipped."""
    return rows(
        "| recipe | what it trains |",
        (
            f"| `{file.name}` | {resolve(Request(file.name)).recipe.about} |"
            for file in shipped("recipe")
        ),
    )


def presets() -> str:
    """The presets that are shipped, with what each decides for a full training."""
    lines = []
    for file in shipped("preset"):
        preset = load_preset(file)
        wanted = resolve(Request("sdxl-full", file.name)).recipe
        budget = f"{wanted.memory.budget_gb:g} GB" if wanted.memory.budget_gb else "none"
        lines.append(
            f"| `{file.name}` | {preset.about} | {budget} | "
            f"{'yes' if wanted.training.gradient_checkpointing else 'no'} | "
            f"{wanted.optimizer.storage}{', fused' if wanted.optimizer.fused_backward else ''} |"
        )
    return rows("| preset | for | budget | gradient checkpointing | full: optimizer state |", lines)


def optimizer_parts() -> str:
    """Everything registered in the optimizer core."""
    from acmsao_cli.optim import catalog

    return rows(
        "| part | name | options | what it does |",
        (
            f"| {part.kind} | `{part.name}` | {options(part.options)} | {part.summary} |"
            for part in catalog.describe()
        ),
    )


def options(defaults: Mapping[str, str]) -> str:
    """A part's options with their defaults."""
    return ", ".join(f"`{name}={default}`" for name, default in defaults.items())


TABLES: dict[str, Callable[[], str]] = {
    "recipe_keys": recipe_keys,
    "recipes": recipes,
    "presets": presets,
    "optimizer_parts": optimizer_parts,
}


def refreshed(text: str) -> str:
    """`text` with every table as the code has it now."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
