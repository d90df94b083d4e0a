"""The optimizer as a recipe says it: keys that all have, and flat beside them the rule's own.

`optimizer: {name: prodigy, inner: lion, d0: 1e-6}`. What the rule's own options are is read from
its source (choices.py), so none of them is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from acmsao_cli.config.choices import Options, parts
from acmsao_cli.config.options import settle, settle_part
from acmsao_cli.config.parts import FREE, Part, PartChoice, StorageChoice
from acmsao_cli.config.recommended import finds_rate
from acmsao_cli.config.section import Count, Fraction, PositiveFloat, Section

Rounding = Literal["stochastic", "nearest", "kahan"]

DEFAULT_RULE: Final = "adamw"
KAHAN: Final = "kahan"  # the rounding that only weights in bf16 can have
# Keys of the section that are options of the rule, so that not every rule has them.
RULES_OWN: Final = ("betas", "eps", "momentum", "ratio")
EDITS: Final = {"gradient_edits": "gradient_edit", "direction_edits": "direction_edit"}
# Keys about the run as a whole, which no layer can differ in.
OF_THE_RUN: Final = frozenset({"layers", "fused_backward", "kernels"})


class LayerChoice(BaseModel):
    """Parameters that are stepped differently: which, and the keys of the optimizer that differ."""

    model_config = FREE

    match: str = Field("*", min_length=1, description="pattern of full names, as in *attn*")
    ndim: Count | None = Field(None, description="number of axes")
    min_side: Annotated[int, Field(ge=0)] = Field(
        0, description="length of the shorter side of the parameter as a matrix, at least"
    )

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            k: v for k, v in dump(self).items() if k in {*self.model_fields_set, *self.settings}
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        """The optimizer's keys that were given."""
        return self.model_extra or {}


class OptimizerSection(Section):
    """The five stations: gradient edits, rule, direction edits, decay, write."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(DEFAULT_RULE, description="the rule; `acmsao optimizers list` names them")
    lr: PositiveFloat = Field(
        1e-4, description="peak learning rate; 1 where the rule finds its own rate"
    )
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = Field(
        None, description="decay rates of the moments; none is the rule's own"
    )
    eps: PositiveFloat | Part | None = Field(
        None,
        description="added to the denominator, or {name: ...} of a schedule; none is the rule's "
        "own",
    )
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = Field(
        0.0, description="strength of the decay, times the learning rate unless `decay` says other"
    )
    decay: str = Field("decoupled", description="how weights shrink, in docs/optimizers.md")
    momentum: PartChoice | None = Field(
        None,
        description="what the rule takes as momentum, {name: ...} with options; none is the "
        "rule's own",
    )
    ratio: str | None = Field(
        None, description="how the momentum is divided by its size; none is the rule's own"
    )
    storage: StorageChoice = Field(
        "fp32",
        description="how state is kept, offloaded(...) in host memory; {default: ...} with others "
        "by slot; auto: the best that there is room for",
    )
    gradient_edits: Annotated[tuple[PartChoice, ...], Field(strict=False)] = Field(
        (), description="applied to the gradient before the rule, in order"
    )
    direction_edits: Annotated[tuple[PartChoice, ...], Field(strict=False)] = Field(
        (), description="applied to the update after the rule, in order"
    )
    rounding: Rounding = Field(
        "stochastic", description="how updates of bf16 weights are rounded; fp32 weights need none"
    )
    kernels: bool = Field(
        False,
        description="step by kernels written for the rule and storage; refused where there are "
        "none",
    )
    fused_backward: bool = Field(
        False, description="step each weight during backward, so that gradients never pile up"
    )
    layers: Annotated[tuple[LayerChoice, ...], Field(strict=False)] = Field(
        (),
        description="in order, which parameters differ (match, ndim, min_side) and in what; the "
        "first that matches holds",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, values: Any) -> Any:
        return in_one_form(values) if isinstance(values, Mapping) else values

    @property
    def options(self) -> Mapping[str, Any]:
        """The rule's own options that were given beside the section's keys."""
        return self.model_extra or {}

    @property
    def is_plain(self) -> bool:
        """Whether it is made of names that exist, so that no value can prevent composing it."""
        parts_given = (*self.gradient_edits, *self.direction_edits, self.storage)
        rules_own = [getattr(self, key) for key in RULES_OWN]
        return not (
            self.options
            or self.kernels
            or self.layers
            or self.rounding == KAHAN
            or any(value is not None for value in rules_own)
            or any(not isinstance(part, str) for part in parts_given)
            or (self.direction_edits and "inner" in self.known_options())  # it may have its own
        )

    def known_options(self) -> Options:
        """What the rule has; nothing where there is no such rule."""
        return parts()["rule"].get(self.name, {})

    def of_layer(self, layer: LayerChoice) -> dict[str, Any]:
        """Return the keys that hold for a layer, to be validated as a section of its own.

        Another rule starts from its own defaults: it gets nothing that was meant for this one.
        """
        leave_out = set(OF_THE_RUN)
        if layer.settings.get("name", self.name) != self.name:
            leave_out |= {*RULES_OWN, *self.options}
        rate = self.rate_of(layer)
        own = {} if rate is None else {"lr": rate}
        return {**self.model_dump(exclude=leave_out), **own, **layer.settings}

    def rate_of(self, layer: LayerChoice) -> float | None:
        """Return a layer's own learning rate; none where it is that of the parameter's group.

        A rule that finds its rate, and that the section has not, begins with the 1 that leaves it
        alone.
        """
        if "lr" in layer.settings:
            rate: float = layer.settings["lr"]
            return rate
        here = {"name": self.name, **self.options}
        same = layer.settings.get("name", self.name) == self.name
        if finds_rate(layer.settings) is None or (same and finds_rate(here)):
            return None
        return 1.0


def in_one_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section's keys with options of parts in the one form of equal settings.

    What is wrong is left as it is, for others to tell.
    """
    formed = dict(values)
    name = values.get("name", DEFAULT_RULE)
    known = parts()["rule"].get(name, {}) if values and isinstance(name, str) else {}
    for key, value in values.items():
        if key in known:
            formed[key] = settle(known[key].wanted, value, key).value
        elif key in EDITS and isinstance(value, list | tuple):
            formed[key] = [settle_part(EDITS[key], edit, key).value for edit in value]
    return formed
