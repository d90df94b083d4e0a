"""Names to parts: build a pipeline from what a recipe says, and describe what there is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, get_type_hints

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import typed
from acmsao_cli.optim.decay import decay as decays
from acmsao_cli.optim.edits.base import direction_edit, gradient_edit
from acmsao_cli.optim.momentum import momentum as momenta
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.ratio import ratio as ratios
from acmsao_cli.optim.registry import Registry, part_name, signature, suggestion
from acmsao_cli.optim.rules.base import rule
from acmsao_cli.optim.schedules import schedule as schedules
from acmsao_cli.optim.storage.policy import build_storage
from acmsao_cli.optim.storage.policy import storage as storages
from acmsao_cli.optim.write import Write
from acmsao_cli.optim.write import rounding as roundings

# A part by name, or a mapping with `name` and the part's own options: "ema", {"name": "ademamix",
# "alpha": 2.0}
Spec: TypeAlias = str | Mapping[str, Any]

REGISTRIES: Final[tuple[Registry[Any], ...]] = (
    rule,
    momenta,
    ratios,
    storages,
    gradient_edit,
    direction_edit,
    decays,
    roundings,
    schedules,
)
_SOCKETS: Final[dict[str, Registry[Any]]] = {"momentum": momenta, "ratio": ratios, "inner": rule}
_TABLES: Final = ("phases",)  # options that are mappings themselves


@dataclass(frozen=True)
class Entry:
    """One registered part, for listings and docs."""

    kind: str
    name: str
    summary: str  # first paragraph of its docstring
    options: Mapping[str, str]  # name -> default, or "required"


def build_pipeline(
    name: str,
    *,
    momentum: Spec | None = None,
    ratio: Spec | None = None,
    storage: str | Mapping[str, str] = "fp32",
    gradient_edits: Iterable[Spec] = (),
    direction_edits: Iterable[Spec] = (),
    rounding: str = "stochastic",
    decay: Spec = "decoupled",
    **options: Any,
) -> Pipeline:
    """Compose a pipeline from names; options that are None are the rule's own.

    `storage` may differ by slot: {"default": "factored", "momentum": "bf16"}.
    """
    lists = {"gradient_edits": gradient_edits, "direction_edits": direction_edits}
    typed.check(
        "a pipeline",
        get_type_hints(build_pipeline),
        {"storage": storage, **lists},
        {"storage": "fp32", **dict.fromkeys(lists, "(); one edit is a list, too")},
    )
    given = {"momentum": momentum, "ratio": ratio, **options}
    chosen = build_part(rule, {"name": name, **{k: v for k, v in given.items() if v is not None}})
    write = Write(build_part(roundings, rounding), build_part(decays, decay))
    return Pipeline(
        rule=chosen,
        storage=build_storage(storage, (*chosen.slots, *write.slots)),
        gradient=tuple(build_part(gradient_edit, spec) for spec in gradient_edits),
        direction=tuple(build_part(direction_edit, spec) for spec in direction_edits),
        write=write,
    )


def build_part(registry: Registry[Any], spec: Any) -> Any:
    """Build one part from its Spec; what was built already, of a part of this kind, stays."""
    if _is_built(registry, spec):
        return spec
    if not isinstance(spec, str | Mapping):
        raise OptimizerError(
            f"{registry.kind}: expected a name, or a mapping with `name`, not {spec!r}",
            hint=suggestion("", list(registry.parts)),
        )
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given:
        raise OptimizerError(
            f"a {registry.kind} needs a `name`, got {given}",
            hint=suggestion("", list(registry.parts)),
        )
    name = given.pop("name")
    part = registry.get(name)
    options = _options(f"{registry.kind} `{name}`", part, given)
    return part(**options) if inspect.isclass(part) else part


def with_options(part: Any, kind: str, given: Mapping[str, Any]) -> Any:
    """The same part with other options."""
    return dataclasses.replace(part, **_options(f"{kind} `{part_name(part)}`", type(part), given))


def describe() -> list[Entry]:
    """Return every registered part, by kind in the order of the stations."""
    return [
        Entry(
            registry.kind,
            name,
            _summary(part),
            {option: _default_text(value) for option, value in _defaults(part).items()},
        )
        for registry in REGISTRIES
        for name, part in registry.parts.items()
    ]


def _is_built(registry: Registry[Any], spec: Any) -> bool:
    name = getattr(spec, "registered_name", None)
    part = registry.parts.get(name) if isinstance(name, str) else None
    return part is not None and not inspect.isclass(spec) and part in (spec, type(spec))


def _options(owner: str, part: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the part takes them; refuse what it does not know or of which it is no value."""
    defaults = _defaults(part)
    for option in given:
        if option not in defaults:
            raise OptimizerError(
                f"{owner} has no option `{option}`", hint=suggestion(option, list(defaults))
            )
    built = {option: _value(option, value, defaults[option]) for option, value in given.items()}
    if built:
        texts = {option: _default_text(value) for option, value in defaults.items()}
        typed.check(owner, get_type_hints(part), built, texts)
    return built


def _value(option: str, value: Any, default: Any) -> Any:
    """Build what a socket takes; any other mapping is a schedule that the option follows.

    The name alone of a socket's default is that default, with the options it has there.
    """
    if option in _SOCKETS and isinstance(value, str) and value == part_name(default):
        return default
    if option not in _SOCKETS and option not in _TABLES and isinstance(value, Mapping):
        return build_part(schedules, value)
    if option in _SOCKETS and not callable(value) and not dataclasses.is_dataclass(value):
        return build_part(_SOCKETS[option], value)
    return tuple(value) if isinstance(value, list) else value


def _summary(part: Any) -> str:
    paragraph = (inspect.getdoc(part) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _default_text(value: Any) -> str:
    return "required" if value is dataclasses.MISSING else signature(value)


def _defaults(part: Callable[..., Any]) -> dict[str, Any]:
    """Return a class's options with their defaults; a function has none."""
    if not (inspect.isclass(part) and dataclasses.is_dataclass(part)):
        return {}
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(part)
    }
