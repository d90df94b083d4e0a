"""The optimizers that are compared, as a recipe's `optimizer:` says them, and where their rates are
looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from torch import nn

from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.engine.compose import layers_of, pipeline_of
from acmsao_cli.optim import ComposedOptimizer, LayerRule, Pipeline
from acmsao_cli.optim.layers import layer_of

Named: TypeAlias = Sequence[tuple[str, nn.Parameter]]
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

    @property
    def text(self) -> str:
        """All that it is, in words that change only when it does. Raises OptimizerError."""
        section = self.section
        parts = [str(pipeline_of(section)), f"weight_decay={section.weight_decay}"]
        parts += [_layer_text(layer) for layer in layers_of(section)]
        return " ; ".join([*parts, *(["kernels"] if section.kernels else [])])

    def optimizer(
        self, parameters: Named, lr: float, seed: int, total_steps: int
    ) -> ComposedOptimizer:
        """Ready to step these parameters; groups have their peak rates."""
        section = self.section
        layers = used(layers_of(section), parameters)
        optimizer = ComposedOptimizer(
            list(parameters),
            pipeline_of(section),
            lr=1.0,
            weight_decay=section.weight_decay,
            seed=seed,
            layers=layers,
            use_kernels=section.kernels,
            total_steps=total_steps,
        )
        for group in optimizer.param_groups:
            group["lr"] *= lr
        return optimizer

    def pipeline(self) -> Pipeline:
        """Of what no layer takes. Raises OptimizerError where a part is not known."""
        return pipeline_of(self.section)


def used(layers: Sequence[LayerRule], parameters: Named) -> list[LayerRule]:
    """The layers that some parameter comes to."""
    numbers = {layer_of(layers, name, parameter) for name, parameter in parameters}
    return [layer for number, layer in enumerate(layers, 1) if number in numbers]


def _layer_text(layer: LayerRule) -> str:
    return f"{layer}: {layer.pipeline}, lr={layer.lr}, weight_decay={layer.weight_decay}"


BASELINE: Final = "adamw"
ADAMW: Final = {ANY: 4e-3, "pictures": 4e-3, "bytes": 8e-3, "bytes-batch-2": 2e-3, "lora": 8e-3}
# Matrices whose rows are words or places, not directions.
EDGES: Final = tuple({"match": match} for match in ("*embed_tokens*", "*positions*", "*lm_head*"))
MUON: Final = {"ndim": 2, "min_side": 2, "name": "muon", "scale": "match_rms_adamw"}
# An average over ten thousand steps cannot fill in a few hundred: it is as slow as the run is long.
SLOW: Final = {"name": "ademamix", "slow_beta": 0.99, "alpha": 2.0}
SUM: Final = {"name": "accumulator", "alpha": 100.0}
GROWING: Final = {"name": "geometric", "start": 1e-8, "stop": 1e-3, "steps": 150}
UNDER_PRODIGY: Final = {
    "name": "adamw",
    "momentum": {"name": "accumulator", "alpha": 10.0},
    "correction": "none",
}


def contender(name: str, centre: float | Mapping[str, float], **says: Any) -> Contender:
    """Of the rule `rule`, or of the rule it is called by."""
    centres = centre if isinstance(centre, Mapping) else {ANY: centre}
    return Contender(name, {"name": says.pop("rule", name), **says}, centres)


def adamw(name: str, **says: Any) -> Contender:
    """A change of AdamW, tuned around the same centres."""
    return contender(name, ADAMW, rule="adamw", **says)


def muon(name: str, centre: float | Mapping[str, float], **says: Any) -> Contender:
    """Muon on the matrices of linear layers but those at the edges, another rule elsewhere."""
    return contender(name, centre, layers=[*EDGES, MUON], **says)


CONTENDERS: Final = {
    one.name: one
    for one in (
        adamw("adamw"),
        adamw("adamw nesterov", momentum="nesterov"),
        adamw("adamw cautious", direction_edits=["cautious"]),
        adamw("adamw nesterov cautious", momentum="nesterov", direction_edits=["cautious"]),
        adamw("ademamix", momentum=SLOW),
        contender("adopt", ADAMW),
        contender("lion", {task: rate / 4 for task, rate in ADAMW.items()}),
        contender("prodigy", 0.5),
        muon("muon + adamw", ADAMW, rule="adamw"),
    )
}
