"""The learning rate as a function of the step, so that there is no scheduler state to save."""

from __future__ import annotations

import math

from acmsao_cli.config.sections import ScheduleSection


def lr_factor(schedule: ScheduleSection, step: int, total_steps: int) -> float:
    """What the peak rate is multiplied by at `step` (0-based) of `total_steps`.

    Warm-up rises as (step + 1) / warmup_steps, so its last step has the full rate; linear and
    cosine then fall so that the step after the last would be zero.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule.kind == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
