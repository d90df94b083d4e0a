"""Numbers that follow a course over a parameter's steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry

# A number; a 0-d tensor where a compiled step must not depend on its value.
Scalar: TypeAlias = float | Tensor


class Schedule(Protocol):
    """A frozen dataclass or a function that can be called: the value at a step, counted from 1."""

    def __call__(self, step: Scalar) -> Scalar: ...


Course: TypeAlias = float | Schedule  # an option that is a number, or follows a schedule

schedule: Registry[type[Schedule]] = Registry("schedule")


def value_at(course: Course, step: Scalar) -> Scalar:
    """The course's value at this step."""
    return course if isinstance(course, float | int) else course(step)


def check_positive(name: str, course: Course, hint: str) -> None:
    """Refuse numbers that are not positive."""
    _check(name, course, lambda number: number > 0, "positive", hint)


def check_not_negative(name: str, course: Course, hint: str) -> None:
    """Refuse numbers below 0."""
    _check(name, course, lambda number: number >= 0, "0 or more", hint)


def check_decay(name: str, course: Course, hint: str) -> None:
    """Refuse decay rates outside [0, 1)."""
    _check(name, course, lambda number: 0 <= number < 1, "in [0, 1)", hint)


def _check(
    name: str, course: Course, allowed: Callable[[float], bool], what: str, hint: str
) -> None:
    """Refuse the option's own number, or one its schedule goes through, if it is known."""
    for number in _numbers(course):
        if not allowed(number):
            where = "" if isinstance(course, float | int) else f" as in {course}"
            raise OptimizerError(f"{name} must be {what}, not {number}{where}", hint=hint)


@schedule("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line that leaves `start` at step 0 and stays at `stop` from step `steps` on."""

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _check_steps("linear", self.steps)

    def __call__(self, step: Scalar) -> Scalar:
        """Return start + (stop - start) t / steps."""
        return between(self.start, self.stop, progress(step, self.steps))


@schedule("geometric")
@dataclass(frozen=True)
class Geometric(Schedule):
    """From `start` to `stop` by equal factors in `steps` steps: for what spans magnitudes."""

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _check_steps("geometric", self.steps)
        if not (self.start > 0 and self.stop > 0):
            raise OptimizerError(
                f"a geometric schedule cannot go from {self.start} to {self.stop}",
                hint="both must be positive",
            )

    def __call__(self, step: Scalar) -> Scalar:
        """Return start (stop / start)^(t / steps)."""
        return _power(self.stop / self.start, progress(step, self.steps)) * self.start


@schedule("half_life")
@dataclass(frozen=True)
class HalfLife(Schedule):
    """A decay rate whose half-life ln(1/2) / ln(b) grows by equal amounts (arXiv:2409.03137).

    AdEMAMix's course of beta3: 1 / ln b(t) = (1 - t / steps) / ln start + (t / steps) / ln stop.
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _check_steps("half_life", self.steps)
        if not (0 <= self.start < 1 and 0 < self.stop < 1):
            raise OptimizerError(
                f"half_life cannot go from {self.start} to {self.stop}",
                hint="decay rates lie between 0 and 1; typical: from 0.9 to 0.9999",
            )

    def __call__(self, step: Scalar) -> Scalar:
        """Return the decay rate."""
        return decay_between(self.start, self.stop, progress(step, self.steps))


@schedule("power")
@dataclass(frozen=True)
class Power(Schedule):
    """A power of the step: scale t^exponent."""

    scale: float = 1.0
    exponent: float = 0.25

    def __call__(self, step: Scalar) -> Scalar:
        """Return the power."""
        value: Scalar = step**self.exponent * self.scale
        return value


@schedule("milestones")
@dataclass(frozen=True)
class Milestones(Schedule):
    """Constant between milestones: `values[0]` at first, `values[1]` from step `steps[0]` on."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = list(self.steps) == sorted(set(self.steps))
        if not ascending or len(self.values) != len(self.steps) + 1:
            raise OptimizerError(
                f"milestones at steps {self.steps} do not go with the values {self.values}",
                hint="ascending steps, and one value more: steps [100, 200], values [1, 2, 3]",
            )

    def __call__(self, step: Scalar) -> Scalar:
        """Return the value of the last milestone that was reached."""
        first, *others = self.values
        if not isinstance(step, Tensor):
            return self.values[sum(step >= milestone for milestone in self.steps)]
        value = torch.full_like(step, first)
        for milestone, other in zip(self.steps, others, strict=True):
            value = torch.where(step >= milestone, torch.full_like(step, other), value)
        return value


def progress(step: Scalar, steps: int) -> Scalar:
    """How much of `steps` is done, at most 1; all of none."""
    if steps == 0:
        return 1.0
    return (step / steps).clamp(max=1.0) if isinstance(step, Tensor) else min(step / steps, 1.0)


def between(start: Scalar, stop: Scalar, share: Scalar) -> Scalar:
    """Return the number at this share of the way; exactly `stop` at its end."""
    return (1 - share) * start + share * stop


def decay_between(start: float, stop: Scalar, share: Scalar) -> Scalar:
    """Return the decay rate at this share of the way from half-life to half-life."""
    if isinstance(share, float) and share == 1.0:
        return stop
    pace = (1 - share) * _pace(start) + share * _pace(stop)
    if isinstance(pace, Tensor):
        return (1 / pace).exp()
    return math.exp(1 / pace) if pace else 0.0


def _pace(beta: Scalar) -> Scalar:
    """1 / ln b, which goes with the half-life; of no memory at all 0."""
    if isinstance(beta, Tensor):
        return 1 / beta.log()
    return 1 / math.log(beta) if beta > 0 else 0.0


def _power(base: float, exponent: Scalar) -> Scalar:
    return torch.pow(base, exponent) if isinstance(exponent, Tensor) else base**exponent


def _check_steps(name: str, steps: int) -> None:
    if not steps > 0:
        raise OptimizerError(
            f"schedule {name} cannot take {steps} steps", hint="a whole number from 1 on"
        )


def _numbers(course: Course) -> tuple[float, ...]:
    """Every number the course is known to take: a registered schedule's extremes."""
    if isinstance(course, float | int):
        return (course,)
    if isinstance(course, Milestones):
        return course.values
    if isinstance(course, Linear | Geometric | HalfLife):
        return course.start, course.stop
    return (course.scale,) if isinstance(course, Power) else ()
