"""What a run looks like when it goes wrong though all its numbers are finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch
from torch import Tensor, nn

from acmsao_cli.engine.step import Core
from acmsao_cli.optim.write import Nearest

# A loss is held against so many before it, if there are at least so many.
REMEMBERED: Final = 200
LEAST_REMEMBERED: Final = 20
# So many times the usual distance from the median, in standard deviations of a normal distribution,
# is no chance; and less than twice the median is no spike, however even the losses were.
SPIKE: Final = 10.0
LEAST_RATIO: Final = 2.0
# The median distance from the median of a normal distribution is this part of its deviation.
NORMAL: Final = 0.6745

# Weights are looked at each time so many steps are done, so many of so many tensors.
LOOK_EVERY: Final = 50
TENSORS: Final = 16
WEIGHTS: Final = 4096
# More weights than this that stay as they are say that updates round to nothing.
STANDSTILL: Final = 0.9


def spike(losses: Sequence[float], loss: float) -> float | None:
    """How many times the usual loss this one is, where it stands out from those before it.

    The usual is the median; what stands out is measured by the median distance from it, which
    single spikes do not move.
    """
    latest = losses[-REMEMBERED:]
    if len(latest) < LEAST_REMEMBERED:
        return None
    usual = median(latest)
    spread = median(abs(one - usual) for one in latest) / NORMAL
    if usual <= 0 or loss < LEAST_RATIO * usual or loss - usual <= SPIKE * spread:
        return None
    return loss / usual


@dataclass(frozen=True)
class Excerpt:
    """Some weights of each tensor that may stand still, as they were."""

    core: Core
    tensors: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def unmoved(self) -> float:
        """The share that is as it was."""
        with self.core.at_home():
            same = [
                (excerpt_of(tensor) == before).float().mean()
                for tensor, before in zip(self.tensors, self.values, strict=True)
            ]
        return sum(float(one) for one in same) / len(same)


def excerpt(core: Core) -> Excerpt | None:
    """Of the largest tensors whose updates can be lost; None where there are none.

    Those are bf16 weights that are rounded to the nearest: stochastic rounding keeps small updates
    in the mean, and fp32 weights are never rounded. Embeddings are not among them, since rows of
    tokens that did not come up rest for another reason.
    """
    resting = {
        id(parameter)
        for module in core.trainee.modules().values()
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters()
    }
    pipelines = core.optimizer.pipelines
    found = [
        member.parameter
        for member in core.optimizer.members
        if member.parameter.dtype == torch.bfloat16
        and isinstance(pipelines[member.layer].write.rounding, Nearest)
        and id(member.parameter) not in resting
    ]
    if not found:
        return None
    largest = tuple(sorted(found, key=lambda one: -one.numel())[:TENSORS])
    with core.at_home():
        return Excerpt(core, largest, tuple(excerpt_of(tensor).clone() for tensor in largest))


def excerpt_of(tensor: Tensor) -> Tensor:
    """At most WEIGHTS values, from all over the tensor: a view."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // WEIGHTS)]
