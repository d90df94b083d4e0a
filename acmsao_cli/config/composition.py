"""What of an optimizer section does not exist, does not fit its part, or would have no effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import ValidationError

from acmsao_cli.config.choices import of_a_momentum, parts, rules_with
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
from acmsao_cli.config.parts import AUTO, plain, spoken, storages_of
from acmsao_cli.config.reading import describe
from acmsao_cli.config.recommended import finds_rate

Where: TypeAlias = Callable[[str], str]  # a key of the section -> how errors name it

# Rules whose steps grow with the gradients.
STEPS_OF_ANY_SIZE: Final = ("sgd", "a2grad")
# By rule: options that mean something only where another has this value.
NEEDS: Final[Mapping[str, Mapping[str, tuple[str, Any]]]] = {
    "a2grad": {"rho": ("variant", "exp")},
    "adafactor": {"eps2": ("scale_parameter", True)},
}


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
        yield from _around_what_it_cannot_measure(optimizer, where)
    yield from _without_effect(optimizer, where)
    yield from _options_without_effect(optimizer, where)
    yield from _edits_given_twice(optimizer, where)


def unknown_option(option: str, known: Collection[str]) -> str:
    """Return the hint for an option that the chosen rule does not have."""
    owners, form = rules_with(option), of_a_momentum(option)
    if form and ("momentum" in known or not owners):
        return form
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
    for name in storages_of(optimizer.storage) if optimizer.storage != AUTO else ():
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


def _options_without_effect(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    """Options of a rule that only another of its options makes use of."""
    for option, (other, value) in NEEDS.get(optimizer.name, {}).items():
        if option in optimizer.options and optimizer.options.get(other) != value:
            yield Clash(
                (option, other),
                f"{where(option)} is set, but {other} is not {spoken(value)}",
                f"drop it, or set {other}: {spoken(value)}",
            )


def _edits_given_twice(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    for key in EDITS:
        names = [edit if isinstance(edit, str) else edit.name for edit in getattr(optimizer, key)]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            yield Clash((key,), f"{where(key)} names `{name}` twice", "name each edit once")


def _around_what_it_cannot_measure(optimizer: OptimizerSection, where: Where) -> Iterator[Clash]:
    """Prodigy weighs gradients, so a rule whose steps grow with them would leave its estimate."""
    values: Any = {"name": optimizer.name, **optimizer.options}
    while isinstance(values, Mapping):
        inner = values.get("inner")
        name = inner.get("name") if isinstance(inner, Mapping) else inner
        if values.get("name") == "prodigy" and name in STEPS_OF_ANY_SIZE:
            yield Clash(
                ("inner", "name"),
                f"{where('inner')} puts prodigy around `{name}`, whose steps grow with the "
                "gradients: its estimate holds only for steps that do not",
                "use inner: adamw or inner: lion",
            )
        values = inner


def layer_complaints(
    optimizer: OptimizerSection, layer: LayerChoice, entry: str
) -> Iterator[Complaint]:
    """Yield what is wrong with an entry of `layers`; `entry` is how errors name it."""
    if not {"match", "ndim", "min_side"} & layer.model_fields_set:
        hint = "give it match, ndim or min_side"
        yield Complaint(f"{entry} does not say which parameters it is for", hint)
    if layer.settings.get("storage") == AUTO:
        yield Complaint(f"{entry} leaves its storage open", f"`{AUTO}` is for all: name one here")
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
    if finder := _finder_of_rate(optimizer, layer, section):
        message = f"{entry} gives `{section.name}` no lr, and `optimizer.lr` multiplies {finder}'s"
        yield Complaint(message, "give it an lr of its own")
    for clash in clashes(section, lambda key: f"`{key}` in {entry}"):
        if set(clash.keys) & layer.settings.keys() & known:
            yield Complaint(clash.message, clash.hint)


def _finder_of_rate(
    optimizer: OptimizerSection, layer: LayerChoice, section: OptimizerSection
) -> str | None:
    """The rule whose factor an entry that finds no rate itself would take for its rate."""
    if "lr" in layer.settings or finds_rate({"name": section.name, **section.options}):
        return None
    return finds_rate({"name": optimizer.name, **optimizer.options})


def _wrong_values(error: ValidationError, layer: LayerChoice, entry: str) -> Iterator[Complaint]:
    keys = [str(detail["loc"][0]) for detail in error.errors(include_url=False)]
    for key in dict.fromkeys(keys):
        found = describe(layer.settings.get(key))
        field = OptimizerSection.model_fields.get(key)
        hint = field.description if field and field.description else ""
        yield Complaint(f"`{key}` in {entry} cannot be {found}", hint)
