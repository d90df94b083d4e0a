"""The optimizers that are compared, as a recipe's `optimizer:` says them, and where their rates are
looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from acmsao_cli.config.optimizer import OptimizerSection

if TYPE_CHECKING:
    from torch import nn

    from acmsao_cli.optim import ComposedOptimizer, LayerRule

Named: TypeAlias = "Sequence[tuple[str, nn.Parameter]]"
ANY: Final = ""  # of centres: any other task


@dataclass(frozen=True)
class Contender:
    """`says` is a recipe's `optimizer:` without its rate; `centres` are rates by task, ANY's else.

    A layer's own rate is a multiple of the rate that is tried. A layer that fits none of a task's
    parameters is left out there.
    """

    name: str
    says: Mapping[str, Any]
    centres: Mapping[str, float] = field(default_factory=dict)

    def centre(self, task: str) -> float:
        """The rate that the grid is laid around."""
        return self.centres.get(task, self.centres[ANY])

    @property
    def section(self) -> OptimizerSection:
        """What it says as a recipe's section, at the rate 1."""
        return OptimizerSection.model_validate({**self.says, "lr": 1.0})

    @cached_property
    def text(self) -> str:
        """All that it is, in words that change only when it does. Raises OptimizerError."""
        from acmsao_cli.engine.compose import layers_of, pipeline_of

        section = self.section
        parts = [str(pipeline_of(section)), f"weight_decay={section.weight_decay}"]
        parts += [_layer_text(layer) for layer in layers_of(section)]
        return " ; ".join([*parts, *(["kernels"] if section.kernels else [])])

    def optimizer(
        self, parameters: Named, lr: float, seed: int, total_steps: int
    ) -> ComposedOptimizer:
        """Ready to step these parameters; groups have their peak rates."""
        from acmsao_cli.engine.compose import layers_of, pipeline_of
        from acmsao_cli.optim import ComposedOptimizer

        section = self.section
        optimizer = ComposedOptimizer(
            list(parameters),
            pipeline_of(section),
            lr=1.0,
            weight_decay=section.weight_decay,
            seed=seed,
            layers=used(layers_of(section), parameters),
            use_kernels=section.kernels,
            total_steps=total_steps,
        )
        for group in optimizer.param_groups:
            group["lr"] *= lr
        return optimizer


def used(layers: Sequence[LayerRule], parameters: Named) -> list[LayerRule]:
    """The layers that some parameter comes to."""
    from acmsao_cli.optim.layers import layer_of

    numbers = {layer_of(layers, name, parameter) for name, parameter in parameters}
    return [layer for number, layer in enumerate(layers, 1) if number in numbers]


def _layer_text(layer: LayerRule) -> str:
    return f"{layer}: {layer.pipeline}, lr={layer.lr}, weight_decay={layer.weight_decay}"


BASELINE: Final = "adamw"
# Matrices whose rows are words or places, not directions.
EDGES: Final = tuple({"match": match} for match in ("*embed_tokens*", "*positions*", "*lm_head*"))
MUON_RULE: Final = {"name": "muon", "scale": "match_rms_adamw"}
MUON: Final = {"ndim": 2, "min_side": 2, **MUON_RULE}
# An average over ten thousand steps cannot fill in a few hundred: it is as slow as the run is long.
SLOW: Final = {"name": "ademamix", "slow_beta": 0.99, "alpha": 5.0, "warmup": "run"}

# Where rates are looked for, by rule and task; of a rule that is not here, where AdamW's are.
ADAMW: Final = {ANY: 4e-3, "bytes-batch-2": 2e-3}
AROUND_MUON: Final = {ANY: 8e-3, "pictures": 4e-3, "bytes": 16e-3}
CENTRES: Final[Mapping[str, Mapping[str, float]]] = {
    "adamw": ADAMW,
    "lion": {ANY: 1e-3, "pictures": 2e-3, "bytes-batch-2": 2.5e-4, "lora": 2e-3},
    "muon": AROUND_MUON,
    "prodigy": {ANY: 0.25, "bytes": 0.06, "bytes-batch-2": 0.06},
    "dadaptation": {ANY: 0.25},
    "a2grad": {ANY: 1.0},
    "sgd": {ANY: 0.1},
    "simplified_ademamix": {ANY: 4e-5},
}


def centres_of(says: Mapping[str, Any]) -> Mapping[str, float]:
    """Where the rates of a section lie: of a rule around another that has no own, by the inner."""
    name, inner = says["name"], says.get("inner")
    if name in CENTRES or inner is None:
        return CENTRES.get(name, ADAMW)
    return centres_of(inner if isinstance(inner, Mapping) else {"name": inner})


def contender(
    name: str, rule: str = "", centres: Mapping[str, float] | None = None, **says: Any
) -> Contender:
    """Of a rule, the one it is called by if none is named, around that rule's centres."""
    rule = rule or name
    section = {"name": rule, **says}
    return Contender(name, section, centres or centres_of(section))


CONTENDERS: Final = {
    one.name: one
    for one in (
        contender("adamw"),
        contender("adamw nesterov", "adamw", momentum="nesterov"),
        contender("adamw cautious", "adamw", direction_edits=["cautious"]),
        contender(
            "adamw nesterov cautious", "adamw", momentum="nesterov", direction_edits=["cautious"]
        ),
        contender("ademamix", "adamw", momentum=SLOW),
        contender("ademamix .999", "adamw", momentum={**SLOW, "slow_beta": 0.999}),
        contender("adopt"),
        contender("lion"),
        contender("prodigy"),
        contender("muon + adamw", "adamw", AROUND_MUON, layers=[*EDGES, MUON]),
        contender("acmsao"),
        contender("acmsao without memory", "acmsao", alpha=0.0),
        contender("acmsao one scale", "acmsao", scales=[16]),
        contender(
            "acmsao muon + acmsao",
            "acmsao",
            AROUND_MUON,
            layers=[*EDGES, {"ndim": 2, "min_side": 2, "name": "acmsao", "inner": MUON_RULE}],
        ),
    )
}
