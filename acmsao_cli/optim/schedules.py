"""Numbers that follow a course over a parameter's steps."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from torch import Tensor

from acmsao_cli.optim.registry import Registry

# A number; a 0-d tensor where a compiled step must not depend on its value.
Scalar: TypeAlias = float | Tensor


class Schedule(Protocol):
    """A frozen dataclass that can be called: the value at a step, counted from 1."""

    def __call__(self, step: Scalar) -> Scalar: ...


Course: TypeAlias = float | Schedule  # an option that is a number, or follows a schedule

schedule: Registry[type[Schedule]] = Registry("schedule")


def value_at(course: Course, step: Scalar) -> Scalar:
    """The course's value at this step."""
    return course if isinstance(course, float | int) else course(step)
