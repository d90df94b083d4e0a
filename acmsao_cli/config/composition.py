"""What of an optimizer section does not exist, does not fit its part, or would have no effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, TypeAlias

from pydantic import ValidationError

from acmsao_cli.config.choices import parts, rules_with
from acmsao_cli.config.optimizer import (
    EDITS,
    OF_THE_RUN,
    RULES_OWN,
    LayerChoice,
    OptimizerSection,
)
from acmsao_cli.config.options import (
    Complaint,
    settle,
    settle_part,
    settle_storage,
    suggestion,
)
from acmsao_cli.config.parts import plain, storages_of
from acmsao_cli.config.reading import describe

Where: TypeAlias = Callable[[str], str]  # a key of the section -> how errors name it


class Clash(NamedTuple):
    """Keys of the section that cannot be honoured, why, and how to mend it."""

    keys: tuple[str, ...]
    message: str
    hint: str


def clashes(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    """Yield everything that is wrong with a section whose values have the right types."""
    for key, complaints in _unknown_parts(optimizer, where):
        for complaint in complaints:
            yield Clash((key,), *complaint)
    if optimizer.name in parts()["rule"]:
        yield from _options(optimizer, where)
    yield from _without_effect(optimizer, where)


def unknown_option(option: str, known: Collection[str]) -> str:
    """Return the hint for an option that the chosen rule does not have."""
    owners = rules_with(option)
    if not owners:
        return suggestion(option, known)
    return f"of the rules, only {', '.join(f'`{name}`' for name in owners)} takes it"


def _unknown_parts(
    optimizer: OptimizerSection, where: Where
) -> Iterator[tuple[str, list[Complaint]]]:
    known = parts()["rule"]
    if optimizer.name not in known:
        message = f"{where('name')} names an unknown rule `{optimizer.name}`"
        yield "name", [Complaint(message, suggestion(optimizer.name, known))]
    for name in storages_of(optimizer.storage):
        yield "storage", settle_storage(name, where("storage"))
    for key, kind in EDITS.items():
        for edit in getattr(optimizer, key):
            yield key, settle_part(kind, plain(edit), where(key)).complaints
    yield "decay", settle_part("decay", optimizer.decay, where("decay")).complaints


def _options(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    """A rule is given only what it has: Lion divides by nothing, so it has no eps."""
    known = optimizer.known_options()
    for key, value in _given(optimizer).items():
        if key in known:
            settled = settle(known[key].wanted, value, where(key))
            yield from (Clash((key, "name"), *complaint) for complaint in settled.complaints)
        elif key in RULES_OWN:
            message = f"{where(key)} is set, but `{optimizer.name}` has no {key}"
            yield Clash((key, "name"), message, _elsewhere(optimizer, key))
        else:
            message = f"{where(key)} is set, but `{optimizer.name}` has no option `{key}`"
            yield Clash((key, "name"), message, unknown_option(key, known))


def _given(optimizer: OptimizerSection) -> dict[str, Any]:
    """The rule's options that were given, as they stand in a file."""
    given = {key: value for key in RULES_OWN if (value := getattr(optimizer, key)) is not None}
    return {
        key: value.model_dump() if hasattr(value, "model_dump") else value
        for key, value in {**given, **optimizer.options}.items()
    }


def _elsewhere(optimizer: OptimizerSection, key: str) -> str:
    if "inner" in optimizer.known_options():
        return f"give it to the rule inside: inner: {{name: adamw, {key}: ...}}"
    return "drop it, or choose another optimizer.name"


def _without_effect(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    """Settings that ask for something which then would not happen."""
    if optimizer.ratio == "atan2" and optimizer.eps is not None:
        yield Clash(
            ("eps", "ratio"),
            f"{where('eps')} is set, but ratio `atan2` has no eps",
            "drop it, or set optimizer.ratio=divide",
        )
    decayed = optimizer.weight_decay > 0 or any(
        "weight_decay" in layer.settings for layer in optimizer.layers
    )
    if optimizer.decay != type(optimizer).model_fields["decay"].default and not decayed:
        yield Clash(
            ("decay", "weight_decay"),
            f"{where('decay')} is {optimizer.decay}, but `weight_decay` is 0",
            "set optimizer.weight_decay, or drop it",
        )


def layer_complaints(
    optimizer: OptimizerSection, layer: LayerChoice, entry: str
) -> Iterator[Complaint]:
    """Yield what is wrong with an entry of `layers`; `entry` is how errors name it."""
    if not {"match", "ndim", "min_side"} & layer.model_fields_set:
        hint = "give it match, ndim or min_side"
        yield Complaint(f"{entry} does not say which parameters it is for", hint)
    if not layer.settings:
        yield Complaint(f"{entry} changes nothing", "give it a name, lr, storage or another key")
    try:
        section = OptimizerSection.model_validate(optimizer.of_layer(layer))
    except ValidationError as error:
        yield from _wrong_values(error, layer, entry)
        return
    known = {*OptimizerSection.model_fields, *section.known_options()} - OF_THE_RUN
    for key in layer.settings:
        if key in OF_THE_RUN:
            yield Complaint(f"{entry} sets `{key}`", "it holds for the whole run: drop it here")
        elif key not in known:
            message = f"{entry} has an unknown key `{key}`"
            yield Complaint(message, unknown_option(key, {*known, *LayerChoice.model_fields}))
    for clash in clashes(section, lambda key: f"`{key}` in {entry}"):
        if set(clash.keys) & layer.settings.keys() & known:
            yield Complaint(clash.message, clash.hint)


def _wrong_values(error: ValidationError, layer: LayerChoice, entry: str) -> Iterator[Complaint]:
    keys = [str(detail["loc"][0]) for detail in error.errors(include_url=False)]
    for key in dict.fromkeys(keys):
        found = describe(layer.settings.get(key))
        field = OptimizerSection.model_fields.get(key)
        hint = field.description if field and field.description else ""
        yield Complaint(f"`{key}` in {entry} cannot be {found}", hint)
