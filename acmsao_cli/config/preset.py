"""A preset: settings about memory for any recipe, some only for a method or a family.

    about: one line for `acmsao presets list`
    settings: keys of a recipe, for every run
    lora: the same, only where method.kind is lora
    full: ... where it is full
    families:
      sdxl: {settings: ..., lora: ..., full: ...}

The more particular wins: settings < lora/full < families.NAME.settings < families.NAME.lora/full.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from acmsao_cli.config.check import flatten, unknown_key, validate
from acmsao_cli.config.locate import Located
from acmsao_cli.config.problems import Problem, refuse
from acmsao_cli.config.reading import Document, describe, read_file
from acmsao_cli.config.recipe import FAMILIES
from acmsao_cli.config.schema import METHODS, Leaf, Outline, outline

# What a recipe is about is the recipe's to say; a preset decides how it is made to fit.
RECIPES_OWN = ("about", "model.", "method.kind", "data.source", "data.format", "samples.prompts")
ALLOWED = ("model.dtype",)
EVERY_RUN = "settings"


@dataclass(frozen=True)
class Preset:
    """A preset file that was read and checked for every family and method."""

    name: str
    about: str
    document: Document

    def parts_for(self, family: str, method: str) -> tuple[Document, ...]:
        """Return the parts that apply to such a run, the general first, as recipe keys."""
        return tuple(
            part
            for prefix in _prefixes(family, method)
            if (part := _part(self.document, prefix)) is not None
        )


def load_preset(located: Located) -> Preset:
    """Read a preset; raise ConfigError for mistakes in any part, also in those not used now."""
    document = read_file(located.path, located.shown)
    leaves, problems = flatten(document, preset_outline(), _unknown_key)
    about = leaves.get("about", "")
    if not isinstance(about, str):
        place = document.places["about"]
        problems.append(Problem(f"`about` must be a text; found {describe(about)}", place))
    refuse(problems)
    preset = Preset(located.name, about, document)
    refuse([problem for f, m in _kinds() for problem in _wrong_values(preset, f, m)])
    return preset


@functools.cache
def preset_outline() -> Outline:
    """Return every key a preset may have: in each part those that all of its runs have."""
    leaves = {"about": Leaf("a text", "one line for `acmsao presets list`")}
    sections = {"families", *(f"families.{family}" for family in FAMILIES)}
    for prefix, kinds in _runs_of_parts().items():
        outlines = [outline(family, method) for family, method in kinds]
        shared = frozenset.intersection(*(frozenset(one.leaves) for one in outlines))
        keys = [key for key in outlines[0].leaves if key in shared and _may_set(key)]
        leaves |= {f"{prefix}.{key}": outlines[0].leaves[key] for key in keys}
        sections |= {f"{prefix}.{section}" for one in outlines for section in one.sections}
        sections.add(prefix)
    return Outline(leaves, frozenset(sections))


def _may_set(key: str) -> bool:
    return key in ALLOWED or not key.startswith(RECIPES_OWN)


def _kinds() -> Iterator[tuple[str, str]]:
    return ((family, method) for family in FAMILIES for method in METHODS)


def _prefixes(family: str, method: str) -> tuple[str, ...]:
    particular = f"families.{family}"
    return (EVERY_RUN, method, f"{particular}.{EVERY_RUN}", f"{particular}.{method}")


def _runs_of_parts() -> Mapping[str, list[tuple[str, str]]]:
    runs: dict[str, list[tuple[str, str]]] = {}
    for family, method in _kinds():
        for prefix in _prefixes(family, method):
            runs.setdefault(prefix, []).append((family, method))
    return runs


def _part(document: Document, prefix: str) -> Document | None:
    values: Any = document.values
    for key in prefix.split("."):
        values = values.get(key, {})
    if not values:
        return None
    start = f"{prefix}."
    places = {
        path.removeprefix(start): place
        for path, place in document.places.items()
        if path.startswith(start)
    }
    return Document(values, places)


def _wrong_values(preset: Preset, family: str, method: str) -> list[Problem]:
    known = outline(family, method)
    stub: dict[str, Any] = {"model.family": family, "model.source": "x", "data.source": "x"}
    stub["method.kind"] = method
    for part in preset.parts_for(family, method):
        written = flatten(part, known)[0]
        checked = validate(family, stub | written, part.places.__getitem__, known)
        if isinstance(checked, list):
            return checked
    return []


def _unknown_key(path: str, place: str, known: Outline) -> Problem:
    """Say of a key that recipes have why a preset, or this part of one, has not."""
    for prefix, runs in _runs_of_parts().items():
        key = path.removeprefix(f"{prefix}.")
        owners = [
            run for run in _kinds() if key in {*outline(*run).leaves, *outline(*run).sections}
        ]
        if key == path or not owners:
            continue
        if not _may_set(key):
            return Problem(
                f"a preset cannot set `{key}`",
                place,
                hint="it is the recipe's to say; presets are about memory",
            )
        family, method = next((run for run in owners if run in runs), owners[0])
        part = method if all(m == method for _, m in owners) else EVERY_RUN
        home = part if any(f != family for f, _ in owners) else f"families.{family}.{part}"
        return Problem(
            f"not every run of `{prefix}` has `{key}`", place, hint=f"put it under `{home}`"
        )
    return unknown_key(path, place, known)
