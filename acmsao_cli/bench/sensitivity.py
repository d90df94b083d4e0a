"""Each number of an optimizer, one at a time, at values around the one it has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acmsao_cli.bench.contenders import Contender
from acmsao_cli.config.parts import spoken
from acmsao_cli.errors import OptimizerError

FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a number, or of what a decay is short of 1
TINY: Final = 1e-4  # below it a number only keeps others from 0, and takes larger factors
TINY_FACTORS: Final = (1e-4, 1e-2, 1.0, 1e2, 1e4)
RATE: Final = "lr"

# By rule: values of options whose default has no neighbours, or whose own say more. None is the
# rule's default.
GRIDS: Final[Mapping[str, Mapping[str, Sequence[Any]]]] = {
    "acmsao": {
        "scales": ([1], [16], [1, 16], [1, 4, 16], [1, 4, 16, 64]),
        "horizon": (2.0, 5.0, None, 25.0, 100.0),
        "alpha": (0.5, 1.0, None, 4.0, 8.0),
        "kappa": (0.0, 0.5, 1.0, 2.0, 4.0),
        "sparsity_factor": (0.0, 0.05, 0.1, 0.2, 0.5),
        "cycle": (0.0, 0.05, 0.1, 0.2, 0.4),
        "cycle_period": (50, 200, 1000, 4000),
    },
}
# By rule: numbers that mean nothing unless another option has another value than its default.
ASLEEP: Final[Mapping[str, frozenset[str]]] = {
    "acmsao": frozenset({"magnitude_threshold", "temperature", "history_size"}),
}


@dataclass(frozen=True)
class Point:
    """A value of an option, the contender that has it, and its rate in those of the base."""

    value: str
    contender: Contender
    is_base: bool
    rate: float = 1.0


@dataclass(frozen=True)
class Grid:
    """An option's values, in their order."""

    option: str
    points: Sequence[Point]


def grids(base: Contender) -> tuple[list[Grid], dict[str, str]]:
    """The learning rate's and every number's grid; of options without one, why there is none."""
    rate = Grid(RATE, [Point(f"{f:g}x", base, f == 1.0, f) for f in FACTORS])
    found, left_out = [rate], {}
    for option, value in numbers(base):
        values = values_of(base, option, value)
        points = [point for one in values if (point := _point(base, option, one))]
        if len(points) > 1:
            found.append(Grid(option, points))
        else:
            left_out[option] = f"{spoken(value)} has no neighbours that can be tried"
    return found, left_out


def numbers(base: Contender) -> Iterator[tuple[str, Any]]:
    """Options of the base's rule that have a grid or are numbers, with their values now.

    An option of a part is named after it, as in `momentum.alpha`; an entry of a list by its number,
    as in `betas.1`.
    """
    from acmsao_cli.engine.compose import pipeline_of

    rule = pipeline_of(base.section).rule
    known = GRIDS.get(base.says["name"], {})
    asleep = ASLEEP.get(base.says["name"], frozenset())
    for option, value in _fields(rule):
        if option in known:
            yield option, value
        elif option not in asleep:
            yield from _numbers_in(option, value)


def _fields(part: Any) -> Iterator[tuple[str, Any]]:
    for one in dataclasses.fields(part):
        yield one.name, getattr(part, one.name)


def _numbers_in(option: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield option, value
    elif isinstance(value, tuple) and all(isinstance(one, float) for one in value):
        yield from ((f"{option}.{number}", one) for number, one in enumerate(value, 1))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for inner, one in _fields(value):
            yield from _numbers_in(f"{option}.{inner}", one)


def values_of(base: Contender, option: str, value: Any) -> Sequence[Any]:
    """What is tried of an option: the rule's own grid, else around the value."""
    known = GRIDS.get(base.says["name"], {})
    return known[option] if option in known else around(value)


def around(value: float) -> list[Any]:
    """Values around a number: a decay's distance from 1 is scaled, a count stays whole.

    Neither 0 nor infinity has any.
    """
    if not value or not math.isfinite(value):
        return []
    if isinstance(value, int):
        return sorted({max(1, round(value * factor)) for factor in FACTORS})
    if 0.5 <= value < 1:
        short = sorted((1 - value) * factor for factor in FACTORS)
        return [value if one == 1 - value else _short(1 - one) for one in short[::-1] if one < 1]
    factors = FACTORS if abs(value) >= TINY else TINY_FACTORS
    return [value if f == 1.0 else _short(value * f) for f in factors]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _point(base: Contender, option: str, value: Any) -> Point | None:
    """The base with another value of an option; None where that cannot be composed."""
    says = {**base.says, **_change(base, option, value)}
    shown = "default" if value is None else spoken(value)
    one = Contender(f"{base.name}, {option} {shown}", says, base.centres)
    try:
        is_base = one.text == base.text
    except OptimizerError:
        return None
    return Point(shown, base if is_base else one, is_base)


def _change(base: Contender, option: str, value: Any) -> dict[str, Any]:
    """The section's key that gives an option another value."""
    from acmsao_cli.engine.compose import pipeline_of

    head, _, rest = option.partition(".")
    rule = pipeline_of(base.section).rule
    return {head: _within(getattr(rule, head), rest, value) if rest else value}


def _within(part: Any, option: str, value: Any) -> Any:
    """What stands in a recipe for `part` with one of its options changed."""
    from acmsao_cli.optim.registry import part_name

    head, _, rest = option.partition(".")
    if isinstance(part, tuple):
        return [value if str(number) == head else one for number, one in enumerate(part, 1)]
    fields = {key: one for key, one in _fields(part) if _plain(one)}
    inner = _within(getattr(part, head), rest, value) if rest else value
    return {"name": part_name(part), **fields, head: inner}


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return isinstance(value, bool | int | float | str)
