"""What keys a recipe has and what each wants, in words, read off the models' JSON schema."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from acmsao_cli.config.aliases import SEEDS, seed_called, wanted_by
from acmsao_cli.config.choices import Wanted, parts, rules_with
from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.config.options import words_for
from acmsao_cli.config.recipe import FAMILIES, Recipe

METHODS = ("lora", "full")
A_MAPPING = "a mapping"
OPTIMIZER = "optimizer"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Leaf:
    """A key that holds a value: what it wants and what it means, and the options if fixed."""

    wanted: str
    description: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """Every key of one kind of file by dotted path: those that hold values, and the sections."""

    leaves: Mapping[str, Leaf]
    sections: frozenset[str]


def json_schema(family: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of a family's recipes, or of any recipe, for editors."""
    if family is None:
        schema = TypeAdapter(Recipe).json_schema()
    else:
        schema = FAMILIES[family].model_json_schema()
    section = schema["$defs"][OptimizerSection.__name__]
    section["properties"] = {**_any_option(), **section["properties"]}
    section["additionalProperties"] = False
    return {"$schema": SCHEMA_DIALECT, **schema, "title": f"acmsao {family or 'any'} recipe"}


def _any_option() -> dict[str, Any]:
    """Return the schema of all rules' own options, and of adv_optm's: the name decides later."""
    ours = {key: ", ".join(rules_with(key)) for rule in parts()["rule"].values() for key in rule}
    theirs = {option: "adv_optm" for seed in SEEDS.values() for option in wanted_by(seed)}
    return {key: {"description": f"of {whose}"} for key, whose in {**theirs, **ours}.items()}


@functools.cache
def outline(family: str, method: str) -> Outline:
    """Return the keys of a family's recipes with this method."""
    schema = FAMILIES[family].model_json_schema()
    leaves: dict[str, Leaf] = {}
    sections: set[str] = set()

    def visit(node: Mapping[str, Any], path: str) -> None:
        node = _target(node, schema["$defs"], method)
        if "properties" not in node:
            leaves[path] = _leaf(_spelled_out(node, schema["$defs"]))
            return
        if path:
            sections.add(path)
        for name, inner in node["properties"].items():
            visit(inner, f"{path}.{name}" if path else name)

    visit(schema, "")
    return Outline(leaves, frozenset(sections))


def with_options(known: Outline, rule: str) -> Outline:
    """Add the optimizer's keys that only this rule has; of an unknown rule those of all rules."""
    theirs = {
        f"{OPTIMIZER}.{key}": Leaf(words_for(wanted), f"option of {name}")
        for name, options in _options_of(rule).items()
        for key, wanted in options.items()
    }
    return Outline({**theirs, **known.leaves}, known.sections)


def _options_of(rule: str) -> Mapping[str, Mapping[str, Sequence[Wanted]]]:
    """Return by name what options take, which stand beside a rule of this name."""
    if seed := seed_called(rule):
        return {rule: wanted_by(seed)}
    rules = parts()["rule"]
    return {
        name: {key: option.wanted for key, option in rules[name].items()}
        for name in ([rule] if rule in rules else rules)
    }


@functools.cache
def every_leaf() -> frozenset[str]:
    """Return the keys that hold a value in recipes of any kind."""
    kinds = [outline(family, method) for family in FAMILIES for method in METHODS]
    options = {f"{OPTIMIZER}.{key}" for rule in parts()["rule"].values() for key in rule}
    return frozenset(key for one in kinds for key in one.leaves) | options


def _target(
    node: Mapping[str, Any], definitions: Mapping[str, Any], method: str
) -> Mapping[str, Any]:
    """Follow references, and the method's branch where a section comes in several kinds."""
    if "discriminator" in node:
        node = {"$ref": node["discriminator"]["mapping"][method]}
    if "$ref" in node:
        found: Mapping[str, Any] = definitions[node["$ref"].rpartition("/")[2]]
        return found
    return node


def _spelled_out(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a node with every reference in it replaced by what it stands for."""
    if isinstance(node, list):
        return [_spelled_out(inner, definitions) for inner in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return definitions[node["$ref"].rpartition("/")[2]]
    return {key: _spelled_out(inner, definitions) for key, inner in node.items()}


def _leaf(node: Mapping[str, Any]) -> Leaf:
    description = str(node.get("description", ""))
    # A pattern is no help to a reader; such fields say in their description what they take.
    wanted = description if "pattern" in node else _wanted(node)
    return Leaf(wanted, description, tuple(_options(node)))


def _options(node: Mapping[str, Any]) -> list[str]:
    branches = [node, *node.get("anyOf", ())]
    return [str(option) for branch in branches for option in branch.get("enum", ())]


def _wanted(node: Mapping[str, Any]) -> str:
    if "anyOf" in node:
        return ", or ".join(_wanted(branch) for branch in node["anyOf"])
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    match node["type"]:
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "string":
            return "a text that is not empty" if node.get("minLength") else "a text"
        case "array":
            return _wanted_list(node)
        case "object":
            return _wanted_mapping(node)
        case "integer":
            return f"a whole number{_bounds(node)}"
        case _:
            return f"a number{_bounds(node)}"


def _wanted_list(node: Mapping[str, Any]) -> str:
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])}, each {_wanted(node['prefixItems'][0])}"
    least = f" of at least {node['minItems']}" if "minItems" in node else ""
    return f"a list{least}, each {_wanted(node['items'])}"


def _wanted_mapping(node: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in node["properties"])
    others = node["additionalProperties"]
    each = "" if others is True else f", each {_wanted(others)}"
    return f"{A_MAPPING} of {names} and others{each}"


def _bounds(node: Mapping[str, Any]) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {node[key]}" for key, word in words.items() if key in node]
    return f" {' and '.join(found)}" if found else ""
