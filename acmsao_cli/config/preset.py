"""A preset: settings about memory for any recipe, some only for a method, family or optimizer.

    about: one line for `acmsao presets list`
    settings: keys of a recipe, for every run
    lora: the same, only where method.kind is lora
    full: ... where it is full
    families:
      sdxl: {settings: ..., lora: ..., full: ...}
    rules:
      acmsao: {settings: ..., lora: ..., full: ...}, where optimizer.name is acmsao

The more particular wins: settings < lora/full, alone, then in families.NAME, then in rules.NAME.
What stands under a rule may be an option of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from acmsao_cli.config.check import flatten, unknown_key, validate
from acmsao_cli.config.choices import parts, rules_with
from acmsao_cli.config.composition import clashes
from acmsao_cli.config.locate import Located
from acmsao_cli.config.problems import Problem, refuse
from acmsao_cli.config.reading import Document, describe, read_file
from acmsao_cli.config.recipe import FAMILIES
from acmsao_cli.config.schema import METHODS, OPTIMIZER, Leaf, Outline, outline, with_options

# What a recipe is about is the recipe's to say; a preset decides how it is made to fit.
RECIPES_OWN = ("about", "model.", "method.kind", "data.source", "data.format", "samples.prompts")
ALLOWED = ("model.dtype",)
EVERY_RUN = "settings"
NAME = f"{OPTIMIZER}.name"


@dataclass(frozen=True)
class Preset:
    """A preset file that was read and checked for every family and method."""

    name: str
    about: str
    document: Document

    def parts_for(self, family: str, method: str) -> tuple[Document, ...]:
        """Return the parts for such a run with any rule, the general first, as recipe keys."""
        return _parts(self.document, _prefixes(family, method))

    def parts_of_rule(self, rule: str, method: str) -> tuple[Document, ...]:
        """Return the parts that go on top of these where `optimizer.name` is this."""
        return _parts(self.document, _prefixes_of_rule(rule, method))


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
    refuse([problem for kind in _kinds() for problem in _wrong_values(preset, *kind)])
    return preset


@functools.cache
def preset_outline() -> Outline:
    """Return every key a preset may have: in each part those that all of its runs have."""
    leaves = {"about": Leaf("a text", "one line for `acmsao presets list`")}
    sections: set[str] = set()
    for prefix, kinds in _runs_of_parts().items():
        outlines = [_outline(prefix, *kind) for kind in kinds]
        shared = frozenset.intersection(*(frozenset(one.leaves) for one in outlines))
        keys = [key for key in outlines[0].leaves if key in shared and _may_set(key, prefix)]
        leaves |= {f"{prefix}.{key}": outlines[0].leaves[key] for key in keys}
        sections |= {f"{prefix}.{section}" for one in outlines for section in one.sections}
        sections |= {prefix, prefix.rpartition(".")[0], prefix.partition(".")[0]} - {""}
    return Outline(leaves, frozenset(sections))


def _may_set(key: str, prefix: str) -> bool:
    named = key == NAME and _rule_of(prefix) is not None
    return key in ALLOWED or not (named or key.startswith(RECIPES_OWN))


def _kinds() -> Iterator[tuple[str, str]]:
    return ((family, method) for family in FAMILIES for method in METHODS)


def _prefixes(family: str, method: str) -> tuple[str, ...]:
    particular = f"families.{family}"
    return (EVERY_RUN, method, f"{particular}.{EVERY_RUN}", f"{particular}.{method}")


def _prefixes_of_rule(rule: str, method: str) -> tuple[str, ...]:
    return (f"rules.{rule}.{EVERY_RUN}", f"rules.{rule}.{method}")


def _rule_of(prefix: str) -> str | None:
    """Return the rule that a part is for, if it is for one."""
    first, _, rest = prefix.partition(".")
    return rest.partition(".")[0] if first == "rules" else None


def _outline(prefix: str, family: str, method: str) -> Outline:
    """Return the keys that such a run has where this part holds."""
    rule = _rule_of(prefix)
    known = outline(family, method)
    return with_options(known, rule) if rule else known


@functools.cache
def _runs_of_parts() -> Mapping[str, list[tuple[str, str]]]:
    runs: dict[str, list[tuple[str, str]]] = {}
    for family, method in _kinds():
        of_rules = [_prefixes_of_rule(rule, method) for rule in parts()["rule"]]
        for prefix in (*_prefixes(family, method), *(p for found in of_rules for p in found)):
            runs.setdefault(prefix, []).append((family, method))
    return runs


def _parts(document: Document, prefixes: tuple[str, ...]) -> tuple[Document, ...]:
    found = (_part(document, prefix) for prefix in prefixes)
    return tuple(part for part in found if part is not None)


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


def _wrong_values(preset: Preset, family: str, method: str) -> Iterator[Problem]:
    for part in preset.parts_for(family, method):
        yield from _wrong_in(part, family, method)
    for rule in preset.document.values.get("rules", {}):
        for part in preset.parts_of_rule(rule, method):
            yield from _wrong_in(part, family, method, rule)


def _wrong_in(
    part: Document, family: str, method: str, rule: str | None = None
) -> Iterator[Problem]:
    """Yield what is wrong with a part whatever the recipe says beside it."""
    known = outline(family, method)
    stub: dict[str, Any] = {"model.family": family, "model.source": "x", "data.source": "x"}
    stub["method.kind"] = method
    if rule is not None:
        known, stub[NAME] = with_options(known, rule), rule
    given = stub | flatten(part, known)[0]
    checked = validate(family, given, part.places.__getitem__, known)
    if isinstance(checked, list):
        yield from checked
    elif rule is not None:
        for clash in clashes(checked.optimizer, lambda key: f"`{OPTIMIZER}.{key}`"):
            keys = [f"{OPTIMIZER}.{key}" for key in clash.keys]
            if given.keys() >= set(keys):
                yield Problem(clash.message, part.places[keys[0]], clash.hint)


def _unknown_key(path: str, place: str, known: Outline) -> Problem:
    """Say of a key that recipes have why a preset, or this part of one, has not."""
    for prefix in _runs_of_parts():
        key = path.removeprefix(f"{prefix}.")
        if key == path or not (homes := _homes(key, prefix)):
            continue
        if _may_set(key, prefix):
            hint = f"put it under {' or '.join(homes)}"
            return Problem(f"not every run of `{prefix}` has `{key}`", place, hint)
        if key == NAME:
            return Problem(f"`{prefix}` cannot set `{key}`", place, "it holds for that name alone")
        hint = "it is the recipe's to say; presets are about memory"
        return Problem(f"a preset cannot set `{key}`", place, hint)
    return unknown_key(path, place, _near(path, known))


def _near(path: str, known: Outline) -> Outline:
    """Leave of the outline what is for the same rule, lest another's keys be suggested."""
    start = f"rules.{_rule_of(path)}."
    leaves = {key: leaf for key, leaf in known.leaves.items() if key.startswith(start)}
    sections = frozenset(key for key in known.sections if key.startswith(start))
    return Outline(leaves, sections) if leaves else known


def _homes(key: str, prefix: str) -> list[str]:
    """Return the parts that a recipe's key may stand in, most like this one."""
    section, _, option = key.partition(".")
    start, _, here = prefix.rpartition(".")
    owners = [run for run in _kinds() if key in {*outline(*run).leaves, *outline(*run).sections}]
    if not owners:
        names = rules_with(option) if section == OPTIMIZER else ()
        return [f"`rules.{name}.{here}`" for name in names]
    family, method = next((run for run in owners if run in _runs_of_parts()[prefix]), owners[0])
    part = method if all(m == method for _, m in owners) else EVERY_RUN
    if all(f == family for f, _ in owners):
        return [f"`families.{family}.{part}`"]
    return [f"`{start}.{part}`" if _rule_of(prefix) else f"`{part}`"]
