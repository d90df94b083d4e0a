"""The optimizers that are compared, as a recipe would say them, each with its centre of rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from acmsao_cli.optim import ComposedOptimizer, Pipeline, build_pipeline
from acmsao_cli.optim.layers import LayerRule

Named: TypeAlias = list[tuple[str, nn.Parameter]]
EDGES = ("*embed_tokens*", "*lm_head*")  # matrices whose rows are words, not directions


@dataclass(frozen=True)
class Contender:
    """`centre` is where the grid of learning rates is laid; `says` is for `build_pipeline`.

    `for_matrices`, if any, is what linear layers but those at the edges get instead.
    """

    name: str
    centre: float
    says: Mapping[str, Any] = field(default_factory=dict)
    for_matrices: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """All that it is, in words that change only when it does."""
        return json.dumps([self.name, self.says, self.for_matrices], sort_keys=True)

    def pipeline(self) -> Pipeline:
        """Raises OptimizerError where a part is not known."""
        return build_pipeline(**{"name": self.name, **self.says})

    def optimizer(self, parameters: Named, lr: float, seed: int) -> ComposedOptimizer:
        """Ready to step these parameters."""
        pipeline = self.pipeline()
        return ComposedOptimizer(
            parameters, pipeline, lr=lr, seed=seed, layers=self._layers(parameters, pipeline)
        )

    def _layers(self, parameters: Named, rest: Pipeline) -> list[LayerRule]:
        if self.for_matrices is None:
            return []
        edges = [
            LayerRule(pipeline=rest, match=pattern)
            for pattern in EDGES
            if any(fnmatchcase(name, pattern) for name, _ in parameters)
        ]
        matrices = build_pipeline(**self.for_matrices)
        return [*edges, LayerRule(pipeline=matrices, ndim=2, min_side=2)]


BASELINE = "adamw"
# An average over ten thousand steps cannot fill in a few hundred: it is as slow as the run is long.
SLOW = {"name": "ademamix", "slow_beta": 0.99, "alpha": 2.0}
SUM = {"name": "accumulator", "alpha": 100.0}
GROWING = {"name": "geometric", "start": 1e-8, "stop": 1e-3, "steps": 150}
UNDER_PRODIGY = {
    "name": "adamw",
    "momentum": {"name": "accumulator", "alpha": 10.0},
    "correction": "none",
}
MUON = {"name": "muon", "scale": "match_rms_adamw"}


def adamw(name: str, **says: Any) -> Contender:
    """A change of AdamW, tuned around the same centre."""
    return Contender(name, 3e-3, {"name": "adamw", **says})


CONTENDERS = {
    contender.name: contender
    for contender in (
        adamw("adamw"),
        adamw("adamw nesterov", momentum="nesterov"),
        Contender("ademamix", 2e-3, {"name": "adamw", "momentum": SLOW}),
        Contender("adopt", 3e-3),
        Contender("adopt atan2", 3e-3, {"name": "adopt", "ratio": "atan2"}),
        Contender("lion", 1e-3),
        adamw("adamw factored", storage="factored"),
        adamw("adamw bf16", storage="bf16"),
        adamw("adamw cautious", direction_edits=["cautious"]),
        adamw("adamw grams", direction_edits=["grams"]),
        Contender("simplified_ademamix", 3e-5, {"momentum": SUM}),
        Contender("nested_adam", 3e-3),
        Contender("adafactor", 3e-3),
        Contender("sgd momentum", 0.1, {"name": "sgd"}),
        Contender("a2grad uni", 1.0, {"name": "a2grad", "variant": "uni"}),
        Contender("a2grad inc", 1.0, {"name": "a2grad", "variant": "inc"}),
        Contender("a2grad exp", 1.0, {"name": "a2grad", "variant": "exp"}),
        Contender("prodigy", 1.0),
        Contender("prodigy accumulator", 0.1, {"name": "prodigy", "inner": UNDER_PRODIGY}),
        Contender("muon + adamw", 3e-3, {"name": "adamw"}, MUON),
        Contender("soap", 3e-3),
        Contender("adadiag", 3e-3, {"every": 20}),
        adamw("adamw factored_4bit", storage="factored_4bit"),
        adamw("adamw factored_2bit", storage="factored_2bit"),
        adamw("adamw factored_8bit", storage="factored_8bit"),
        adamw("adamw int8", storage="int8"),
        Contender("lion factored", 1e-3, {"name": "lion", "storage": "factored"}),
        adamw("adamw atan2", ratio="atan2"),
        adamw("adamw orthograd", gradient_edits=["orthograd"]),
        adamw("adamw growing eps", eps=GROWING),
        Contender("warm_start", 3e-3, {"steps": 10, "scale": 30.0}),
    )
}
