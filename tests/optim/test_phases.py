"""Phases at the document's boundaries, and tables of the user's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.multi_scale import MultiScale
from acmsao_cli.optim.phases import Phase, as_phases, at, position, three_phases
from acmsao_cli.optim.rules.base import Context

FACTORS = {"high": 1.1, "mid": 1.0, "low": 0.9}
RECENCY = {"high": 2.0, "mid": 1.0, "low": 0.5}


def documents(step: int, period: int) -> str:
    """The document's formula."""
    cycle = math.floor(1 + step / (2 * period))
    x = abs(step / period - 2 * cycle + 1)
    return "high" if x < 0.25 else "low" if x > 0.75 else "mid"


def in_phase(step: int | torch.Tensor, **options: Any) -> Context:
    weights = torch.zeros(1, 1, 1)
    return Context(step, False, 0.1, 0.0, weights, 1, 1, **options)


BOUNDARIES = [
    (0.0, "low"),
    (0.249, "low"),
    (0.25, "mid"),
    (0.5, "mid"),
    (0.75, "mid"),
    (0.751, "high"),
    (1.0, "high"),
    (1.249, "high"),
    (1.25, "mid"),
    (1.75, "mid"),
    (1.751, "low"),
    (2.0, "low"),
]


@pytest.mark.parametrize(("share", "phase"), BOUNDARIES)
@pytest.mark.parametrize("cycle", [0, 1, 7])
def test_phases_change_where_the_document_says(share, phase, cycle):
    period = 1000
    step = round((share + 2 * cycle) * period)
    assert documents(step, period) == phase
    phases = three_phases(0.1)
    for count in (step, torch.tensor(float(step), dtype=torch.float64)):
        place = position(count, period)
        assert float(at(phases, place, "factor")) == pytest.approx(FACTORS[phase])
        assert float(at(phases, place, "recency")) == pytest.approx(RECENCY[phase])


@pytest.mark.parametrize(("share", "phase"), BOUNDARIES)
def test_a_step_is_of_the_phase_before_it(share, phase):
    """The first step, 1, is at the cycle's position 0."""
    step = round(share * 1000) + 1
    assert float(MultiScale(cycle_period=1000).rate(in_phase(step))) == pytest.approx(
        FACTORS[phase]
    )


@settings(max_examples=60, deadline=None)
@given(step=st.integers(0, 10**6), period=st.integers(1, 5000))
def test_it_is_the_documents_formula_everywhere(step, period):
    place = position(step, period)
    assert 0 <= float(place) <= 1
    phase = documents(step, period)
    assert at(three_phases(0.1), place, "factor") == pytest.approx(FACTORS[phase])
    tensor = position(torch.tensor(float(step), dtype=torch.float64), period)
    assert float(tensor) == place


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.floats(0.01, 0.99), max_size=4, unique=True),
    place=st.floats(0, 1),
)
def test_every_position_is_of_the_first_phase_that_reaches_it(ends, place):
    ends = [*sorted(ends), 1.0]
    phases = as_phases(
        {f"p{n}": {"until": until, "factor": float(n)} for n, until in enumerate(ends)}
    )
    found = at(phases, place, "factor")
    assert found == float(at(phases, torch.tensor(place, dtype=torch.float64), "factor"))
    assert place <= ends[int(found)]
    assert found == 0 or place >= ends[int(found) - 1]


@settings(max_examples=40, deadline=None)
@given(cycle=st.floats(0, 0.99), period=st.integers(1, 60))
def test_over_a_cycle_rates_average_to_one(cycle, period):
    """High and low are equally long, but for what a short period cannot share out."""
    rule = MultiScale(cycle=cycle, cycle_period=4 * period)
    rates = [float(rule.rate(in_phase(step))) for step in range(1, 8 * period + 1)]
    assert sum(rates) / len(rates) == pytest.approx(1.0, abs=cycle / (2 * period))


def test_a_cycle_of_the_schedule_is_one_in_the_run():
    rule = MultiScale(cycle_period="schedule")
    rates = [float(rule.rate(in_phase(step, total_steps=80))) for step in range(1, 81)]
    assert rates[:10] == [0.9] * 10
    assert rates[10] == 1.0
    assert rates[40] == 1.1
    assert rates[79] == 0.9
    own = MultiScale(cycle_period="schedule", total_steps=80)
    assert [float(own.rate(in_phase(step))) for step in range(1, 81)] == rates


def test_a_table_of_ones_own_is_in_force():
    table = {"up": {"until": 0.5, "factor": 1.3, "recency": 3}, "down": {"until": 1, "factor": 0.5}}
    rule = MultiScale(phases=table, cycle_period=10)
    assert rule.phases == (Phase("up", 0.5, 1.3, 3.0), Phase("down", 1.0, 0.5, 1.0))
    rates = [float(rule.rate(in_phase(step))) for step in range(1, 21)]
    assert rates == [*[0.5] * 6, *[1.3] * 9, *[0.5] * 5]
    assert float(rule.of_phase(in_phase(11), "recency")) == 3.0


def test_tables_may_be_phases_or_their_options():
    phases = (Phase("a", 0.4, 2.0), Phase("b", 1.0))
    assert as_phases(phases) == phases
    assert as_phases([{"name": "a", "until": 0.4, "factor": 2}, Phase("b", 1.0)]) == phases
    assert as_phases({"a": Phase("other", 0.4, 2.0), "b": {"until": 1}}) == phases
    assert build_pipeline("acmsao", phases={"a": {"until": 0.4, "factor": 2}, "b": {"until": 1}})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((), "phases must end"),
        ((Phase("half", 0.5),), "phases must end"),
        ((Phase("a", 0.5), Phase("b", 0.5), Phase("c", 1.0)), "phases must end"),
        ((Phase("a", 0.7), Phase("b", 0.3), Phase("c", 1.0)), "phases must end"),
        ((Phase("a", 0.0), Phase("b", 1.0)), "phases must end"),
        ((Phase("a", 0.5), Phase("b", 1.5)), "phases must end"),
        ((Phase("a", math.nan), Phase("b", 1.0)), "phases must end"),
        ((Phase("a", 1.0, -1.0),), "has factor -1.0"),
        ((Phase("a", 1.0, math.inf),), "has factor inf"),
        ((Phase("a", 1.0, math.nan),), "has factor nan"),
        ((Phase("a", 1.0, 1.0, -2.0),), "recency -2.0"),
        ((Phase("a", 1.0, 1.0, math.nan),), "recency nan"),
        ((Phase("a", 1.0, 1.0, math.inf),), "recency inf"),
        ({"a": {"factor": 1.0}}, "a phase cannot be"),
        ({"a": {"until": "1"}}, "a phase cannot be"),
        ({"a": {"until": 1.0, "height": 2.0}}, "a phase cannot be"),
        ({"a": {"until": True}}, "a phase cannot be"),
        ({"a": 1.0}, "a phase cannot be"),
        ([{"until": 1.0}], "a phase cannot be"),
    ],
)
def test_what_is_no_cycle_is_refused(table, message):
    with pytest.raises(OptimizerError, match=message) as caught:
        as_phases(table)
    assert caught.value.hint


@pytest.mark.parametrize("cycle", [-0.1, 1.0, math.nan])
def test_a_cycle_must_leave_a_step(cycle):
    with pytest.raises(OptimizerError, match="cycle must lie in"):
        three_phases(cycle)
