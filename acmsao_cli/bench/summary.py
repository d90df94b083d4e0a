"""Figures of runs: what a contender reached on a task, how surely, and how soon."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from acmsao_cli.bench.contest import Row, outcome


@dataclass(frozen=True)
class Figures:
    """One contender on one task, over its seeds; what one run cannot tell is None.

    `deviation` is the sample's, `error` the mean's standard error. `difference` from the reference
    is also given in standard errors of the two together. Steps and CPU seconds `to_reference` are
    the median of the `reached` seeds, until the validation loss was the reference's mean final one.
    `at_edge` marks a rate beyond which more might have been found; None where none was looked for.
    """

    lr: float
    at_edge: bool | None
    mean: float
    deviation: float | None
    error: float | None
    lowest: float
    highest: float
    finals: list[float]
    not_finished: list[str]
    difference: float | None
    in_errors: float | None
    reached: int
    steps_to_reference: float | None
    seconds_to_reference: float | None
    seconds: float
    state_bytes_per_parameter: float
    tuning: dict[str, float | None]
    optimizer: str


def figures(rows: Sequence[Row], tuning: Sequence[Row], reference: Sequence[Row]) -> Figures | None:
    """Of a contender's final runs, held against the reference's; None where none has a loss."""
    finished = [row for row in rows if row["final"] is not None]
    if not finished:
        return None
    finals = losses(rows)
    there = losses(reference)
    arrived = arrivals(finished, statistics.fmean(there)) if there else []
    rates = [row["lr"] for row in tuning]
    return Figures(
        lr=rows[0]["lr"],
        at_edge=rows[0]["lr"] in (min(rates), max(rates)) if rates else None,
        mean=statistics.fmean(finals),
        deviation=deviation(finals),
        error=standard_error(finals),
        lowest=min(finals),
        highest=max(finals),
        finals=finals,
        not_finished=[outcome(row) for row in rows if row["final"] is None],
        difference=statistics.fmean(finals) - statistics.fmean(there) if there else None,
        in_errors=in_errors(finals, there) if finals != there else None,  # not from itself
        reached=len(arrived),
        steps_to_reference=statistics.median(s for s, _ in arrived) if arrived else None,
        seconds_to_reference=statistics.median(s for _, s in arrived) if arrived else None,
        seconds=statistics.median(row["seconds"] for row in finished),
        state_bytes_per_parameter=finished[0]["state_bytes"] / finished[0]["parameters"],
        tuning={f"{row['lr']:g}": row["final"] for row in tuning},
        optimizer=rows[0]["text"],
    )


def losses(rows: Sequence[Row]) -> list[float]:
    """The final losses there are."""
    return [row["final"] for row in rows if row["final"] is not None]


def deviation(values: Sequence[float]) -> float | None:
    """The sample's standard deviation; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean: how far it may be from that of all seeds there could be."""
    spread = deviation(values)
    return None if spread is None else spread / math.sqrt(len(values))


def in_errors(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The difference of two means over sqrt(e1^2 + e2^2), their standard errors; below 0: lower."""
    first, second = standard_error(values), standard_error(others)
    if first is None or second is None:
        return None
    together = math.hypot(first, second)
    apart = statistics.fmean(values) - statistics.fmean(others)
    return apart / together if together > 0 else None


def arrivals(rows: Sequence[Row], target: float) -> list[tuple[float, float]]:
    """Steps and seconds to the target, of the runs that reached it."""
    found = [(steps_to(target, row["curve"]), row["seconds"] / row["steps"]) for row in rows]
    return [(steps, steps * each) for steps, each in found if steps is not None]


def steps_to(target: float, curve: Sequence[Sequence[float]]) -> float | None:
    """Steps until the validation loss first reached `target`, linear between two evaluations."""
    for (start, before), (end, after) in pairwise(curve):
        if after <= target:
            return start + (end - start) * min(1.0, (before - target) / max(before - after, 1e-12))
    return None
