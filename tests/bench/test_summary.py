"""Figures against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from acmsao_cli.bench.summary import figures, in_errors, standard_error, steps_to


def row(final: float | None, seed: int = 1, lr: float = 0.1) -> dict[str, Any]:
    """Ten steps a second from 4 to `final`."""
    curve = [[0, 4.0], [10, final]] if final is not None else [[0, 4.0]]
    return {
        **{"task": "line", "contender": "x", "text": "x()", "lr": lr, "seed": seed, "steps": 10},
        **{"final": final, "curve": curve, "seconds": 1.0, "parameters": 2, "state_bytes": 16},
    }


def test_steps_to_a_loss_lie_between_two_evaluations() -> None:
    curve = [(0, 4.0), (10, 2.0), (20, 1.0)]
    assert steps_to(1.5, curve) == pytest.approx(15)
    assert steps_to(2.0, curve) == pytest.approx(10)
    assert steps_to(0.5, curve) is None


def test_the_error_of_a_mean() -> None:
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert standard_error([1.0]) is None


def test_a_difference_in_errors_of_both() -> None:
    # Errors 1 / sqrt(3) and 2 / sqrt(3): together sqrt(5 / 3).
    assert in_errors([1.0, 2.0, 3.0], [4.0, 6.0, 8.0]) == pytest.approx(-4 / math.sqrt(5 / 3))
    assert in_errors([1.0], [4.0, 6.0]) is None
    assert in_errors([1.0, 1.0], [2.0, 2.0]) is None


def test_a_contender_against_the_reference() -> None:
    rows = [row(1.0), row(2.0, 2), row(3.0, 3), row(None, 4)]
    tuning = [row(2.0, 0, 0.05), row(1.5, 0, 0.1), row(None, 0, 0.2)]
    found = figures(rows, tuning, [row(2.0), row(3.0)])
    assert found is not None
    assert (found.mean, found.deviation, found.lowest, found.highest) == (2.0, 1.0, 1.0, 3.0)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.not_finished == ["diverged"]
    assert found.difference == pytest.approx(-0.5)
    assert found.in_errors == pytest.approx(-0.5 / math.hypot(1 / math.sqrt(3), 0.5))
    # To 2.5 from 4: half of the way down to 1, three quarters of that to 2, never with 3.
    assert found.reached == 2
    assert found.steps_to_reference == pytest.approx((5 + 7.5) / 2)
    assert found.seconds_to_reference == pytest.approx((0.5 + 0.75) / 2)
    assert found.state_bytes_per_parameter == 8
    assert found.at_edge is False
    assert found.tuning == {"0.05": 2.0, "0.1": 1.5, "0.2": None}


def test_the_edge_of_a_grid_is_marked() -> None:
    tuning = [row(2.0, 0, 0.05), row(1.5, 0, 0.1)]
    found = figures([row(1.0)], tuning, [])
    assert found is not None
    assert found.at_edge is True
    assert found.in_errors is None
    assert figures([row(1.0)], [], []).at_edge is None  # type: ignore[union-attr]


def test_no_figures_where_no_run_finished() -> None:
    assert figures([row(None)], [], []) is None
