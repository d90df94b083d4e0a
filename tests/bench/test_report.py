"""Reports say what was spent, what came out and how surely, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.bench import report
from acmsao_cli.bench.asked import contender_asked
from acmsao_cli.bench.compare import compared, stages
from acmsao_cli.bench.contest import Plan, recorded
from acmsao_cli.bench.provenance import provenance
from acmsao_cli.bench.runner import perform
from acmsao_cli.bench.tasks import TASKS, Task

PLAN = Plan(trials=2, seeds=2)


@pytest.fixture
def result(tmp_path: Path, line: Task, broken: Task) -> dict[str, Any]:
    """AdamW and Lion through on both tasks, SGD not begun."""
    done = [contender_asked(name) for name in ("adamw", "lion")]
    cache = tmp_path / "runs.jsonl"
    perform(stages([line, broken], done, PLAN), cache, 1, lambda progress: None)
    everyone = [*done, contender_asked("sgd")]
    found = compared([line, broken], everyone, PLAN, recorded(cache), "adamw")
    return provenance("Compared", "acmsao") | found | {"skipped": {"nobody": "is not here"}}


def test_every_run_and_every_figure_is_in_the_json(tmp_path: Path, result: dict[str, Any]) -> None:
    report.write(tmp_path / "compare", result)
    found = json.loads((tmp_path / "compare.json").read_text())
    assert {"command", "machine", "versions", "plan", "reference"} <= found.keys()
    assert len(found["runs"]) == 2 * (2 + 2) + 2 * 2
    assert {"lr", "seed", "steps", "final", "contender", "task"} <= found["runs"][0].keys()
    lion = found["tasks"]["line"]["figures"]["lion"]
    assert lion["mean"] == pytest.approx(sum(lion["finals"]) / 2)
    assert found["tasks"]["line"]["unfinished"] == {"sgd": "0 of 4 runs"}
    assert found["tasks"]["broken"]["failed"]["lion"] == "ArithmeticError: no such root"


def test_the_tables_name_all_that_a_reader_needs(result: dict[str, Any]) -> None:
    text = report.markdown(result)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    for column in ("learning rate", "against adamw", "steps to adamw's", "state B/parameter"):
        assert column in lines["optimizer"]
    assert " ± " in lines["lion"]
    assert "* |" in lines["lion"]  # of two rates each is at an edge
    assert lines["lion"].rstrip(" |").endswith("4.00")
    for said in (
        "2 learning rates, 2 times apart",
        "clipped to a global norm of 1",
        "- sgd: 0 of 4 runs",
        "- lion: ArithmeticError: no such root",
        "- nobody: is not here",
    ):
        assert said in text


def test_the_picture_is_drawn_or_left_out(
    tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (tmp_path / "a.png") in report.write(tmp_path / "a", result)
    assert (tmp_path / "a.png").stat().st_size > 1000
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else there(name)
    )
    assert [path.suffix for path in report.write(tmp_path / "b", result)] == [".json", ".md"]
    assert not (tmp_path / "b.png").exists()


def test_the_page_names_the_tasks_and_their_lengths() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "comparing.md"
    rows = re.findall(r"^\| `(.*)` \|.*\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    built_in = {name: task.steps for name, task in TASKS.items() if name not in ("line", "broken")}
    assert {name: int(steps) for name, steps in rows} == built_in
