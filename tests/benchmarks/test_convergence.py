"""The convergence script: its own contenders and grids on the package's contest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_contender_can_be_built_and_is_tuned_half_decades_apart() -> None:
    from convergence import CONTENDERS, PLAN

    from acmsao_cli.bench.compare import buildable

    assert buildable(CONTENDERS.values())[1] == {}
    for one in CONTENDERS.values():
        rates = PLAN.rates(one.centre("text"))
        assert len(rates) == 5
        assert rates[2] == pytest.approx(one.centre("text"))
        assert rates[-1] / rates[0] == pytest.approx(100, rel=0.01)


def test_the_results_that_are_kept_are_of_these_runs() -> None:
    from convergence import CONTENDERS, PLAN, ROOT, TASKS

    kept = json.loads((ROOT / "benchmarks" / "results" / "convergence.json").read_text())
    assert {name: about["steps"] for name, about in kept["about"].items()} == {
        name: PLAN.steps(task) for name, task in TASKS.items()
    }
    assert PLAN.clip is None
    for found in kept["tasks"].values():
        for name, row in found.items():
            text = CONTENDERS[name].text.partition(" ; ")[0]
            assert text.partition(" -> ")[0].partition("(")[0] in row["pipeline"]


def test_it_runs_what_is_missing_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import convergence

    short = replace(convergence.TASKS["text"], steps=10)
    monkeypatch.setitem(convergence.TASKS, "text", short)
    options = ["--tasks", "text", "--only", "lion factored", "--processes", "1", "--trials", "1"]
    places = {"--cache": "runs.jsonl", "--out": "convergence", "--plot": "picture.png"}
    options += [word for key, name in places.items() for word in (key, str(tmp_path / name))]
    for _ in range(2):
        convergence.main([*options, "--seeds", "1"])
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert "| lion factored |" in (tmp_path / "convergence.md").read_text()
    assert (tmp_path / "picture.png").stat().st_size > 1000
