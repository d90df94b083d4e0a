"""`acmsao compare` and `acmsao ablate` as they are called."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.bench import contest, runner

Acmsao = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("line", "--trials", "2", "--seeds", "2")


def test_a_comparison_runs_reports_and_goes_on(acmsao: Acmsao) -> None:
    first = acmsao("compare", *QUICK, "--optimizer", "adamw")
    assert first.code == 0, first.err
    assert "1 of 4  line  adamw  lr 0.002  seed 0  loss" in first.out
    assert "wrote compare/compare.json, compare/compare.md, compare/compare.png" in first.out
    both = acmsao("compare", *QUICK, "--optimizer", "adamw", "--optimizer", "lion: {lr: 0.01}")
    assert "5 of 8  line  lion(lr=0.01)" in both.out
    assert "4 of 8" not in both.out
    again = acmsao("compare", *QUICK, "--optimizer", "lion", "--optimizer", "adamw", "--report")
    assert " of " not in again.out.partition("wrote")[0].replace("of 4 runs", "")
    assert Path("compare/compare.md").exists()


def test_the_reference_may_be_said_as_the_optimizer_was(acmsao: Acmsao) -> None:
    said = "lion: {lr: 0.01}"
    options = ("--optimizer", "adamw", "--optimizer", said, "--reference", said)
    assert acmsao("compare", *QUICK, *options).code == 0
    told = json.loads(Path("compare/compare.json").read_text())
    assert told["reference"] == "lion(lr=0.01)"
    assert told["tasks"]["line"]["figures"]["adamw"]["difference"] is not None


def test_programs_read_lines(acmsao: Acmsao) -> None:
    outcome = acmsao("compare", *QUICK, "--optimizer", "lion", "--json", "-o", "there")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events] == ["run"] * 4 + ["finished"]
    assert events[0]["total"] == 4
    assert events[-1]["files"][0] == "there/compare.json"
    assert "seed 0" in outcome.err


def test_an_ablation_uses_the_runs_of_a_comparison(acmsao: Acmsao) -> None:
    acmsao("compare", *QUICK, "--optimizer", "adamw", "-o", "here")
    options = ("--optimizer", "adamw", "--sensitivity", "-o", "here")
    outcome = acmsao("ablate", *QUICK, *options)
    assert outcome.code == 0, outcome.err
    assert "5 of " in outcome.out
    assert "\n 4 of " not in outcome.out
    assert "without momentum" in outcome.out
    text = Path("here/ablate.md").read_text()
    assert "| what changed |" in text
    assert "| betas.1 |" in text
    assert "Each row changes one thing" in text


def test_sensitivity_alone_is_for_any_rule(acmsao: Acmsao) -> None:
    refused = acmsao("ablate", "line", "--optimizer", "lion", "--lr", "0.01")
    assert refused.code == 2
    assert "what to take away from `lion`" in refused.err
    outcome = acmsao("ablate", "line", "--optimizer", "lion", "--lr", "0.01", "--sensitivity")
    assert outcome.code == 0, outcome.err


MISTAKES = {
    "no such optimizer": (("--optimizer", "lyon"), "unknown optimizer `lyon`", 2),
    "no such task": (("bites",), "unknown task `bites`", 2),
    "no such reference": (
        ("line", "--optimizer", "lion", "--reference", "adamw"),
        "--reference adamw is not among the optimizers",
        2,
    ),
    "nothing to report": (("line", "--report"), "no runs are recorded in compare", 2),
    "no trials": (("--trials", "0"), "invalid value for '--trials'", 2),
    "cannot be composed": (
        ("line", "--optimizer", "acmsao: {inner: prodigy}"),
        "cannot be put around prodigy",
        2,
    ),
}


@pytest.mark.parametrize(("arguments", "says", "code"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told_before_anything_runs(
    acmsao: Acmsao, arguments: tuple[str, ...], says: str, code: int
) -> None:
    outcome = acmsao("compare", *arguments)
    assert outcome.code == code
    assert says in outcome.err.replace("\n", " ")
    assert not Path("compare").exists()


def test_a_signal_stops_it_and_the_same_command_goes_on(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def interrupted(job: contest.Job) -> contest.Row:
        runs.append(job)
        if len(runs) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return contest.tried(job)

    monkeypatch.setattr(runner, "tried", interrupted)
    outcome = acmsao("compare", *QUICK, "--optimizer", "adamw")
    assert outcome.code == 130
    assert "every finished run is in compare/runs.jsonl" in outcome.err
    assert "the same command goes on from there" in outcome.err
    assert len(contest.recorded(Path("compare/runs.jsonl"))) == 2
    assert acmsao("compare", *QUICK, "--optimizer", "adamw").code == 0
    assert len(runs) == 3 + 2
