"""Values against the schema, with mistakes in our words: keys first, then types and ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from acmsao_cli.config.choices import of_a_momentum, rules_with
from acmsao_cli.config.problems import Problem
from acmsao_cli.config.reading import Document, describe
from acmsao_cli.config.recipe import FAMILIES, Recipe
from acmsao_cli.config.schema import A_MAPPING, METHODS, OPTIMIZER, Leaf, Outline, outline
from acmsao_cli.config.suggest import closest, closest_key

YES_AND_NO = ("yes", "no", "on", "off", "y", "n")


def unknown_key(path: str, place: str, known: Outline) -> Problem:
    """Say that there is no such key, and which one was probably meant or who has it."""
    message = f"unknown key `{path}`"
    option = path.removeprefix(f"{OPTIMIZER}.") if _is_recipe(known) else ""
    rules = " or ".join(rules_with(option))
    if option != path and (form := of_a_momentum(option)):
        form += f"; optimizer.name: {rules} has it too" if rules else ""
        return Problem(message, place, hint=form)
    if rules:
        return Problem(message, place, hint=f"only optimizer.name: {rules} has it")
    if owner := _owner(path, known):
        return Problem(message, place, hint=f"only {owner} has it")
    near = closest_key(path, [*known.leaves, *known.sections])
    if near:
        return Problem(message, place, hint=f"did you mean `{near}`?")
    section, _, _ = path.rpartition(".")
    names = [
        key.removeprefix(f"{section}.") if section else key
        for key in [*known.leaves, *sorted(known.sections)]
        if key.rpartition(".")[0] == section
    ]
    return Problem(message, place, hint=f"keys here: {', '.join(names)}")


def flatten(
    document: Document,
    known: Outline,
    unknown: Callable[[str, str, Outline], Problem] = unknown_key,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the document's values by dotted path, and what is wrong with its keys."""
    leaves: dict[str, Any] = {}
    problems: list[Problem] = []

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            path = f"{prefix}{key}"
            if path in known.leaves:
                leaves[path] = value
            elif path not in known.sections:
                problems.append(unknown(path, document.places[path], known))
            elif isinstance(value, dict):
                visit(value, f"{path}.")
            else:
                problems.append(not_a_section(path, value, document.places[path]))

    visit(document.values, "")
    return leaves, problems


def not_a_section(path: str, value: Any, place: str) -> Problem:
    """Say that a section was given something else than keys."""
    return Problem(
        f"`{path}` is a section and takes keys, found {describe(value)}",
        place,
        hint=f"indent the keys of `{path}` under it, or leave it out",
    )


def validate(
    family: str, leaves: Mapping[str, Any], place: Callable[[str], str], known: Outline
) -> Recipe | list[Problem]:
    """Return the recipe that has these values by dotted path, or what is wrong with them.

    `place` says where the value of a path was written; asked for a missing one, where it should be.
    """
    try:
        return FAMILIES[family].model_validate(nested(leaves, known))
    except ValidationError as error:
        return list(_value_problems(error, leaves, place, known))


def nested(leaves: Mapping[str, Any], known: Outline) -> dict[str, Any]:
    """Return values by dotted path in their sections; a section that is absent is empty."""
    tree: dict[str, Any] = {section: {} for section in known.sections}
    for path, value in leaves.items():
        section, _, name = path.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return tree


def _value_problems(
    error: ValidationError,
    leaves: Mapping[str, Any],
    place: Callable[[str], str],
    known: Outline,
) -> Iterator[Problem]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    for path in dict.fromkeys(_path(detail["loc"], known) for detail in details):
        if path not in leaves:
            yield Problem(f"`{path}` is missing", place(path), hint=_meaning(path, known))
        else:
            yield _wrong_value(path, leaves[path], place(path), known)


def _path(loc: tuple[int | str, ...], known: Outline) -> str:
    """Return the dotted path of an error, without the tags of unions and the indices of lists."""
    path = ""
    for part in loc:
        longer = f"{path}.{part}" if path else str(part)
        if longer in known.leaves:
            return longer
        if longer in known.sections:
            path = longer
    return path


def _wrong_value(path: str, value: Any, place: str, known: Outline) -> Problem:
    leaf = known.leaves[path]
    message = f"`{path}` must be {leaf.wanted}; found {describe(value)}"
    mapping = isinstance(value, dict) and A_MAPPING in leaf.wanted
    is_text = leaf.wanted.startswith("a text") and value is not None and not mapping
    if is_text and place.startswith("--set"):
        hint = f"quote it within the shell's quotes: --set '{path}=\"{place.partition('=')[2]}\"'"
        return Problem(message, place, hint)
    return Problem(message, place, hint=_remedy(leaf, value))


def _remedy(leaf: Leaf, value: Any) -> str | None:
    """Return how to mend a common slip, else what the key means."""
    if isinstance(value, str) and (near := closest(value, leaf.options)):
        return f"did you mean `{near}`?"
    if leaf.wanted == "true or false" and str(value).lower() in YES_AND_NO:
        return f"write true or false; in YAML 1.2 `{value}` is text"
    if leaf.wanted.startswith("a text") and isinstance(value, bool | int | float):
        return "put it in quotes to make it text"
    if leaf.wanted.startswith("a list") and isinstance(value, str | dict):
        return "a list stands in brackets: [a, b]"
    return leaf.description if leaf.description != leaf.wanted else None


def _meaning(path: str, known: Outline) -> str | None:
    leaf = known.leaves.get(path)
    return f"it says {leaf.description}" if leaf and leaf.description else None


def _is_recipe(known: Outline) -> bool:
    return "model.family" in known.leaves


def _owner(path: str, known: Outline) -> str | None:
    """Return the family or method that has a key which this recipe's kind has not."""
    owners = {
        (family, method)
        for family in FAMILIES
        for method in METHODS
        if path in outline(family, method).leaves or path in outline(family, method).sections
    }
    if not owners or not _is_recipe(known):
        return None
    for method in METHODS:
        if {m for _, m in owners} == {method}:
            return f"`method.kind: {method}`"
    return " or ".join(sorted({f"`model.family: {family}`" for family, _ in owners}))
