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


@pytest.mark.parametrize(
    ("recipe", "storage", "words"),
    [
        ("llm-full", "offloaded(fp32)", "less on the device\n"),
        (QUICKSTART, "offloaded(factored)", "too little to be worth it"),
    ],
)
def test_whether_offloaded_state_pays_is_said(
    acmsao: Any, recipe: str, storage: str, words: str
) -> None:
    sources = ("-s", "model.source=builtin:tiny-llm", "-s", "data.source=builtin:pirate")
    done = acmsao("plan", recipe, *sources, "-s", f"optimizer.storage={storage}")
    assert done.code == 0, done.err
    assert words in done.out


def test_a_card_is_planned_for_without_one_and_its_step_is_drawn(acmsao: Any) -> None:
    done = acmsao("plan", QUICKSTART, "--card", "12", "--picture", "step.png")
    assert done.code == 0, done.err
    assert "bfloat16 on cuda" in done.out
    assert "context" in done.out
    assert Path("step.png").stat().st_size > 10_000
    told = json.loads(acmsao("plan", QUICKSTART, "--card", "16gb", "--json").out)
    assert (told["card"], told["preset"]) == ("16gb", "16gb")
    assert told["decided"]["memory.resident_blocks"] == "all"
    assert told["why"].startswith("the best that fits 15.20 GiB")


def test_a_card_without_a_size_is_refused(acmsao: Any) -> None:
    done = acmsao("plan", QUICKSTART, "--card", "large")
    assert done.code == 2
    assert "16gb" in done.err
