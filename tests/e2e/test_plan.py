"""`acmsao plan` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = str(Path(__file__).parents[2] / "recipes" / "quickstart-llm.yaml")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_plan_is_told_and_nothing_is_written(acmsao: Any, tmp_path: Path) -> None:
    done = acmsao("plan", QUICKSTART)
    assert done.code == 0, done.err
    assert "weights" in done.out
    assert "peak" in done.out
    assert not Path("runs").exists()


def test_programs_get_bytes(acmsao: Any) -> None:
    told = json.loads(acmsao("plan", QUICKSTART, "-s", "memory.budget_gib=1", "--json").out)
    assert told["event"] == "planned"
    assert told["peak_bytes"] == sum(told["by_category"].values())
    assert told["bounds"] == [{"bytes": 2**30, "by": "memory.budget_gib allows"}]


def test_what_does_not_fit_ends_with_what_would(acmsao: Any) -> None:
    peak = json.loads(acmsao("plan", QUICKSTART, "--json").out)["peak_bytes"]
    done = acmsao("plan", QUICKSTART, "-s", f"memory.budget_gib={0.9 * peak / 2**30}")
    assert done.code == 8
    assert "does not fit" in done.out
    assert "any one of these fits:" in done.err
    assert "--set " in done.err
    assert "saves " in done.err
