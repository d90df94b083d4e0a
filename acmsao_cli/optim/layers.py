"""A pipeline for each kind of layer: ordered patterns on names and shapes, the first match wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.batches import Member, as_real, matrix_shape
from acmsao_cli.optim.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """The pipeline of the parameters that fit; what is None is as elsewhere."""

    pipeline: Pipeline
    match: str = "*"  # shell pattern on the parameter's full name
    ndim: int | None = None  # number of dimensions
    min_side: int = 0  # rows and columns of the matrix are at least as many
    lr: float | None = None
    weight_decay: float | None = None

    def takes(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter fits."""
        sides = matrix_shape(as_real(parameter).shape)
        return (
            fnmatchcase(name, self.match)
            and self.ndim in (None, parameter.ndim)
            and min(sides) >= self.min_side
        )

    def __str__(self) -> str:
        ndim = "" if self.ndim is None else f", ndim={self.ndim}"
        side = f", min_side={self.min_side}" if self.min_side else ""
        return f"match={self.match}{ndim}{side}"


def layer_of(layers: Sequence[LayerRule], name: str, parameter: Tensor) -> int:
    """Number of the first pattern that fits, from 1; 0 where none does."""
    return next((i for i, rule in enumerate(layers, 1) if rule.takes(name, parameter)), 0)


def check_layers(layers: Sequence[LayerRule], members: Sequence[Member]) -> None:
    """Refuse a pattern that no parameter came to."""
    used = {member.layer for member in members}
    for number, rule in enumerate(layers, 1):
        if number not in used:
            raise OptimizerError(
                f"layer pattern {number} ({rule}) fits no parameter that is left to it",
                hint="parameters are called, for example, "
                + ", ".join(f"`{member.name}`" for member in members[:3]),
            )
