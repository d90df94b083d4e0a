"""From a request to a run: defaults < preset < recipe < --set, every value with its origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmsao_cli import builtin
from acmsao_cli.config.aliases import decided_by, seed_called, translate, wanted_by
from acmsao_cli.config.check import flatten, validate
from acmsao_cli.config.locate import locate
from acmsao_cli.config.optimizer import DEFAULT_RULE
from acmsao_cli.config.preset import load_preset
from acmsao_cli.config.problems import Problem, refuse
from acmsao_cli.config.reading import Document, describe, read_file, read_value
from acmsao_cli.config.recipe import DEFAULT, FAMILIES, LAYERS, PATHS, Origin, RunConfig
from acmsao_cli.config.recommended import finds_rate
from acmsao_cli.config.rules import broken_rules
from acmsao_cli.config.schema import METHODS, OPTIMIZER, every_leaf, outline, with_options
from acmsao_cli.config.suggest import closest
from acmsao_cli.errors import ConfigError
from acmsao_cli.privacy import holds_secret, private

# Asks for no preset, where one would be chosen.
NO_PRESET = "none"
SETTING = re.compile(r"\w+(?:\.\w+)*")
COMMENT = re.compile(r"(?:^|\s)#")
QUOTES = ("'", '"', "[", "{")


@dataclass(frozen=True)
class Request:
    """What was asked for, nothing looked up: names or paths, and `key=value` settings.

    The preset `none` is none.
    """

    recipe: str
    preset: str | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One source of values; `base` is the folder that its relative paths start from."""

    name: str
    document: Document
    base: Path


def resolve(request: Request) -> RunConfig:
    """Read, overlay and check everything a run is decided by; raise ConfigError for any mistake."""
    located = locate("recipe", request.recipe)
    recipe = Layer("recipe", read_file(located.path, located.shown), located.base)
    settings = [read_setting(text) for text in request.settings]
    written = [recipe, *settings]
    family = chosen("model.family", written, tuple(FAMILIES), located.shown)
    method = chosen("method.kind", written, METHODS, located.shown)
    layers = [*preset_layers(request.preset, family, method, written), *written]
    known = with_options(outline(family, method), rule_of(layers))
    flat = [flatten(layer.document, known) for layer in layers]
    written_values, written_origins = overlay(layers, [leaves for leaves, _ in flat])
    values, origins, refused = in_our_words(written_values, written_origins)
    refused += own_rate(values, origins)
    refused += kept_secrets(values, origins)
    problems = [*(problem for _, found in flat for problem in found), *refused]
    known = with_options(known, str(values.get(_path("name"), DEFAULT_RULE)))

    def place(path: str) -> str:
        return origins[path].place if path in origins else located.shown

    checked = validate(family, values, place, known)
    if isinstance(checked, list):
        refuse([*problems, *checked])
        raise AssertionError("a validation failed without a problem")
    refuse(problems)
    refuse(list(broken_rules(checked, origins, located.shown)))
    everywhere = dict.fromkeys(outline(family, method).leaves, DEFAULT) | origins
    return RunConfig(located.name, checked, everywhere, _preset_name(request.preset))


def read_setting(text: str) -> Layer:
    """Read one `key=value`; the value is YAML: `[a, b]`, `{a: 1}`, `null`, `1e-4` mean that."""
    key, equals, value = text.partition("=")
    key = key.strip()
    place = f"--set {private(text)}"
    if not equals or not SETTING.fullmatch(key):
        raise ConfigError(
            f"--set takes key=value, found `{text}`",
            hint="for example --set optimizer.lr=1e-4",
        )
    if COMMENT.search(value) and not value.lstrip().startswith(QUOTES):
        raise ConfigError(
            f"`#` would start a comment in {place}",
            hint=f"quote it within the shell's quotes: --set '{key}=\"{value}\"'",
        )
    values = read_value(value, place)
    if isinstance(values, dict) and key not in every_leaf():
        raise ConfigError(
            f"`{key}` cannot be a section in {place}",
            hint=f"set one key at a time, as in --set {key}.{next(iter(values), 'key')}=...",
        )
    places = {}
    for part in reversed(parts := key.split(".")):
        values = {part: values}
    for length in range(1, len(parts) + 1):
        places[".".join(parts[:length])] = place
    return Layer("set", Document(values, places), Path.cwd())


def chosen(path: str, layers: Sequence[Layer], options: Sequence[str], shown: str) -> str:
    """Return the value of a key that the rest of the schema depends on; the last layer wins."""
    section, _, key = path.partition(".")
    for layer in reversed(layers):
        values = layer.document.values.get(section, {})
        if isinstance(values, dict) and key not in values:
            continue
        value = values[key] if isinstance(values, dict) else values
        place = layer.document.places[path if isinstance(values, dict) else section]
        if not isinstance(values, dict):
            refuse([_needs_section(section, value, place, path, options)])
        if value not in options:
            near = closest(str(value), options)
            hint = f"did you mean `{near}`?" if near else None
            wanted = " or ".join(options)
            refuse([Problem(f"`{path}` must be {wanted}; found {describe(value)}", place, hint)])
        return str(value)
    raise ConfigError(
        f"`{path}` is missing in {shown}", hint=f"write `{key}: {'` or `'.join(options)}` in it"
    )


def rule_of(layers: Sequence[Layer]) -> str:
    """Return the optimizer's name, which decides what options stand beside it; the last wins."""
    sections = [layer.document.values.get(OPTIMIZER) for layer in reversed(layers)]
    names = [
        section["name"] for section in sections if isinstance(section, dict) and "name" in section
    ]
    return str(names[0]) if names else DEFAULT_RULE


def _needs_section(
    section: str, value: Any, place: str, path: str, options: Sequence[str]
) -> Problem:
    return Problem(
        f"`{section}` is a section and takes keys, found {describe(value)}",
        place,
        hint=f"indent its keys under it; `{path}` is {' or '.join(options)}",
    )


def preset_layers(
    request: str | None, family: str, method: str, written: Sequence[Layer]
) -> list[Layer]:
    """Return what a preset says for such a run, the general first; last what it says for its rule.

    The rule is the one that is written over the preset, if one is.
    """
    if request in (None, NO_PRESET):
        return []
    located = locate("preset", request)
    preset = load_preset(located)
    general = [Layer("preset", part, located.base) for part in preset.parts_for(family, method)]
    for_rule = preset.parts_of_rule(rule_of([*general, *written]), method)
    return [*general, *(Layer("preset", part, located.base) for part in for_rule)]


def _preset_name(request: str | None) -> str | None:
    return None if request in (None, NO_PRESET) else locate("preset", request).name


def overlay(
    layers: Iterable[Layer], leaves: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Lay values over each other, the last one on top; lists are replaced, never joined."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer, written in zip(layers, leaves, strict=True):
        for path, value in written.items():
            values[path] = absolute(path, value, layer.base)
            origins[path] = Origin(layer.name, layer.document.places[path])
    return values, origins


def in_our_words(
    values: Mapping[str, Any], origins: Mapping[str, Origin]
) -> tuple[dict[str, Any], dict[str, Origin], list[Problem]]:
    """Replace an optimizer by another library's name by ours; each key is where theirs was."""
    name = values.get(f"{OPTIMIZER}.name")
    seed = seed_called(name) if isinstance(name, str) else None
    if seed is None:
        return dict(values), dict(origins), []
    theirs = {
        option: values[path] for option in wanted_by(seed) if (path := _path(option)) in values
    }
    replaced = {_path(option) for option in ("name", *theirs)}
    ours = {path: value for path, value in values.items() if path not in replaced}
    places = {path: origin for path, origin in origins.items() if path in ours}
    translated = translate(seed, theirs)
    problems = [
        Problem(complaint.message, origins[_path(option)].place, complaint.hint)
        for option, complaint in translated.complaints
    ]
    for key, value in translated.values.items():
        deciding = [_path(option) for option in decided_by(key, theirs)]
        if _path(key) not in ours:
            ours[_path(key)] = value
            places[_path(key)] = origins[deciding[-1] if deciding else _path("name")]
        elif deciding:
            message = f"`{deciding[-1]}` decides `{_path(key)}`, which is set too"
            hint = f"say it in one way, as `{_path(key)}`"
            problems.append(Problem(message, origins[deciding[-1]].place, hint))
    return ours, places, problems


def own_rate(values: dict[str, Any], origins: dict[str, Origin]) -> list[Problem]:
    """Give a rule that finds its own rate the 1 that leaves it alone, where no rate is written.

    A rate of a lower layer than the name was written for another rule, and is refused.
    """
    rate = _path("lr")
    finder = finds_rate({key: values.get(_path(key)) for key in ("name", "inner")})
    if finder is None:
        return []
    if rate not in values:
        values[rate], origins[rate] = 1.0, Origin("default", f"of {finder}")
        return []
    naming = [origins[path] for key in ("name", "inner") if (path := _path(key)) in origins]
    chosen_in = max(LAYERS.index(origin.layer) for origin in naming)
    if LAYERS.index(origins[rate].layer) >= chosen_in:
        return []
    message = f"`{rate}` is {values[rate]}, but `{finder}` finds the rate itself and multiplies it"
    return [Problem(message, origins[rate].place, f"say it for {finder}: --set {rate}=1")]


def kept_secrets(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> Iterator[Problem]:
    """Refuse access tokens and passwords: a run keeps its recipe, and files tell of it."""
    for path, value in values.items():
        if holds_secret(json.dumps(value, default=str, ensure_ascii=False)):
            message = f"`{path}` has an access token or a password in it"
            hint = "take it out; `hf auth login`, or HF_TOKEN in the environment, opens the hub"
            yield Problem(message, origins[path].place, hint)


def _path(key: str) -> str:
    return f"{OPTIMIZER}.{key}"


def absolute(path: str, value: Any, base: Path) -> Any:
    """Return a source with its path made absolute; hub ids and builtins stay as they are."""
    if path not in PATHS or not isinstance(value, str) or not value:
        return value
    if value.startswith(builtin.PREFIX) or (path == "model.source" and not _is_path(value, base)):
        return value
    return os.path.abspath(base / os.path.expanduser(value))


def _is_path(value: str, base: Path) -> bool:
    """Tell a path from a hub id such as `org/name`: by its look, or because it is there."""
    return (
        value.startswith((".", "~", os.sep))
        or value.endswith(".safetensors")
        or os.path.exists(base / value)
    )
