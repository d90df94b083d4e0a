"""What the documentation says that switches buy is what the planner says."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory.golden import write_model
from memory.switches import FACTORED, LADDERS, cases, needs, planned, rungs

QUICK = {f"{LADDERS[2].title}: {FACTORED}"}


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    """Folders of models, by name, as they are asked for."""
    return {}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case[0], marks=() if case[0] in QUICK else pytest.mark.slow)
        for case in cases()
    ],
)
def test_switches_buy_what_is_told(
    case: tuple[str, str, str, tuple[str, ...]],
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    key, model, recipe, settings = case
    if model not in folders:
        folders[model] = write_model(model, tmp_path_factory.mktemp("shapes") / model)
    found, told = needs(recipe, settings, folders[model]), planned()[key]
    assert found["needs_gib"] == pytest.approx(told["needs_gib"], rel=0.01)
    assert found["host_gib"] == pytest.approx(told["host_gib"], rel=0.01, abs=0.01)


def test_every_row_is_there_and_no_other() -> None:
    assert [key for key, *_ in cases()] == list(planned())


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder.title)
def test_no_switch_makes_a_run_larger(ladder) -> None:
    needed = [planned()[key]["needs_gib"] for key, _ in rungs(ladder)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] < needed[0] / 3
