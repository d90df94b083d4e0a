"""An optimizer taken apart: rows change one thing each, grids lie around what it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.bench.ablation import ABLATIONS, BASE, Study, variations
from acmsao_cli.bench.asked import contender_asked
from acmsao_cli.bench.compare import buildable
from acmsao_cli.bench.contest import Plan, recorded
from acmsao_cli.bench.runner import perform
from acmsao_cli.bench.sensitivity import GRIDS, around, grids
from acmsao_cli.bench.tasks import Task
from acmsao_cli.config.choices import parts
from acmsao_cli.errors import ConfigError


@pytest.mark.parametrize("rule", ABLATIONS)
def test_every_row_can_be_built_and_differs_from_the_others(rule: str) -> None:
    base = contender_asked(rule)
    there, absent = buildable(variations(base))
    assert absent == {}
    texts = [base.text, *(one.text for one in there)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("rule", GRIDS)
def test_every_grid_has_several_values_that_can_be_built(rule: str) -> None:
    found, left_out = grids(contender_asked(rule))
    assert {grid.option for grid in found} >= set(GRIDS[rule])
    assert not left_out.keys() & GRIDS[rule].keys()
    for grid in found:
        assert len(grid.points) > 1


@pytest.mark.parametrize("rule", parts()["rule"])
def test_every_rules_numbers_have_a_grid_or_a_reason(rule: str) -> None:
    found, left_out = grids(contender_asked(rule))
    for grid in found:
        assert len({(point.contender.text, point.rate) for point in grid.points}) == len(
            grid.points
        )
    assert not {grid.option for grid in found} & left_out.keys()


def test_the_numbers_of_parts_are_found_and_changed_alone() -> None:
    base = contender_asked("adamw: {momentum: {name: ademamix, alpha: 2, slow_beta: 0.99}}")
    found = {grid.option: grid for grid in grids(base)[0]}
    assert {"lr", "betas.1", "betas.2", "momentum.alpha", "momentum.slow_beta"} <= set(found)
    doubled = next(p for p in found["momentum.alpha"].points if p.value == "4")
    assert "ademamix(slow_beta=0.99, alpha=4.0, warmup=0)" in doubled.contender.text
    assert [p.value for p in found["betas.1"].points] == ["0.6", "0.8", "0.9", "0.95", "0.975"]
    assert [p.value for p in found["betas.1"].points if p.is_base] == ["0.9"]


def test_values_around_a_number() -> None:
    assert around(4.0) == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert around(5) == [1, 2, 5, 10, 20]
    assert around(1e-8) == [1e-12, 1e-10, 1e-8, 1e-6, 1e-4]
    assert around(0.0) == around(float("inf")) == []
    assert around(0.9)[2] == 0.9


def test_a_rule_without_rows_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="what to take away from `lion`"):
        variations(contender_asked("lion"))


def studied(tmp_path: Path, line: Task, **given: Any) -> dict[str, Any]:
    base = contender_asked("adamw")
    rows = variations(base)[:2]
    along = [grid for grid in grids(base)[0] if grid.option in ("lr", "eps")]
    study = Study(base, rows, along, Plan(trials=2, seeds=2), **given)
    seen: list[Any] = []
    perform(study.stages([line]), tmp_path / "runs.jsonl", 1, seen.append)
    assert [progress.done for progress in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].done == seen[-1].total
    return study.result([line], recorded(tmp_path / "runs.jsonl"))


def test_rows_run_at_the_bases_tuned_rate_and_seeds(tmp_path: Path, line: Task) -> None:
    result = studied(tmp_path, line)
    found = result["tasks"]["line"]
    assert set(found["figures"]) == {BASE, "without momentum", "without correction"}
    assert {row["lr"] for row in found["figures"].values()} == {found["lr"]}
    assert found["figures"][BASE]["at_edge"] is True
    assert found["figures"][BASE]["in_errors"] is None
    assert found["figures"]["without momentum"]["in_errors"] is not None
    assert [p["value"] for p in found["sensitivity"]["lr"]] == ["0.25x", "0.5x", "1x", "2x", "4x"]
    assert all(p["runs"] == 1 for points in found["sensitivity"].values() for p in points)
    # Tuning, then two seeds of three, and the points that are not the base's.
    assert len(result["runs"]) == 2 + 2 * 3 + (5 - 1) + (5 - 1)


def test_a_rate_that_is_given_is_not_tuned(tmp_path: Path, line: Task) -> None:
    result = studied(tmp_path, line, lr=0.05, grid_seeds=2)
    found = result["tasks"]["line"]
    assert found["lr"] == 0.05
    assert found["figures"][BASE]["at_edge"] is None
    assert all(p["runs"] == 2 for points in found["sensitivity"].values() for p in points)
    assert len(result["runs"]) == 2 * 3 + 2 * (4 + 4)
