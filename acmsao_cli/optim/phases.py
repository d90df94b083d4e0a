"""Cyclic phases: parts of a cycle in which steps are longer or shorter, and the past counts more
or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias, cast

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.schedules import Scalar


@dataclass(frozen=True)
class Phase:
    """A part of the cycle: where the position stays up to `until` and no earlier phase's is.

    `factor` multiplies the learning rate, `recency` how readily a bank takes in what is new.
    """

    name: str
    until: float
    factor: float = 1.0
    recency: float = 1.0


Phases: TypeAlias = tuple[Phase, ...]
Of: TypeAlias = Literal["factor", "recency"]
_EXAMPLE: Final = "{high: {until: 0.25, factor: 1.1, recency: 2}, low: {until: 1, factor: 0.9}}"


def three_phases(cycle: float) -> Phases:
    """High, mid and low: factors 1 + cycle, 1 and 1 - cycle; recency 2, 1 and 1/2."""
    if not 0 <= cycle < 1:
        raise OptimizerError(f"cycle must lie in [0, 1), not {cycle}", hint="typical: 0.1; 0: off")
    return (
        Phase("high", 0.25, 1 + cycle, 2.0),
        Phase("mid", 0.75, 1.0, 1.0),
        Phase("low", 1.0, 1 - cycle, 0.5),
    )


def phases_of(cycle: float, given: Phases | Mapping[str, Any] | None) -> Phases:
    """The phases that are in force: those given, else three whose size is `cycle`."""
    return three_phases(cycle) if given is None else as_phases(given)


def as_phases(given: Phases | Sequence[Any] | Mapping[str, Any]) -> Phases:
    """Phases from {name: Phase or its options}, or a list of them; refuse what is no cycle."""
    named = given.items() if isinstance(given, Mapping) else ((None, one) for one in given)
    phases = tuple(_phase(name, one) for name, one in named)
    ends = [phase.until for phase in phases]
    rising = all(before < after for before, after in pairwise([0.0, *ends]))
    if not rising or not ends or ends[-1] != 1:
        raise OptimizerError(
            f"phases must end at rising positions up to 1, not at {ends}", hint=_EXAMPLE
        )
    for phase in phases:
        if not (0 <= phase.factor < math.inf and 0 <= phase.recency < math.inf):
            raise OptimizerError(
                f"phase `{phase.name}` has factor {phase.factor} and recency {phase.recency}",
                hint="both are finite numbers from 0 on; 1 changes nothing",
            )
    return phases


def position(step: Scalar, period: float) -> Scalar:
    """Where in the cycle a step is (from 0): from 1 down to 0 in a period, and up again.

    x = |s / p - 2 floor(1 + s / (2 p)) + 1|; a cycle takes two periods and begins at 1.
    """
    if isinstance(step, Tensor):
        return (step / period - 2 * (1 + step / (2 * period)).floor() + 1).abs()
    return abs(step / period - 2 * math.floor(1 + step / (2 * period)) + 1)


def at(phases: Phases, place: Scalar, of: Of) -> Scalar:
    """The number of the phase at this position; a boundary belongs to the phase that is nearer to
    the middle of the way.
    """
    numbers: list[float] = [getattr(phase, of) for phase in phases]
    value: Scalar = numbers[-1]
    for phase, other in reversed(list(zip(phases[:-1], numbers, strict=False))):
        here = place < phase.until if phase.until <= 0.5 else place <= phase.until
        if isinstance(here, Tensor):
            value = torch.where(here, torch.as_tensor(other), torch.as_tensor(value))
        elif here:
            value = other
    return value


def _phase(name: str | None, given: Any) -> Phase:
    if isinstance(given, Phase):
        return given if name is None else Phase(name, given.until, given.factor, given.recency)
    known = {field.name for field in fields(Phase)}
    options = dict(given) if isinstance(given, Mapping) else {}
    if name is not None:
        options["name"] = name
    numbers = {key: one for key, one in options.items() if key != "name"}
    if not {"name", "until"} <= options.keys() <= known or not all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in numbers.values()
    ):
        raise OptimizerError(f"a phase cannot be {given!r}", hint=f"for example {_EXAMPLE}")
    return Phase(cast(str, options["name"]), **{key: float(one) for key, one in numbers.items()})
