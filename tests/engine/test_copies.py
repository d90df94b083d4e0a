"""On a CPU the copy that a checkpoint is written from counts against the run's budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.checkpoint import background
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import train
from acmsao_cli.engine.measured import Expectation
from acmsao_cli.engine.signals import Stop

GIB = 2**30


@pytest.mark.parametrize(
    ("budget", "planned", "copies"),
    [(None, GIB, True), (2.0, GIB, True), (1.0, GIB - 100, False), (1.0, 2 * GIB, False)],
)
def test_where_plan_and_copy_exceed_it_nothing_is_copied(
    tmp_path: Path,
    make_run: Any,
    make_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    budget: float | None,
    planned: int,
    copies: bool,
) -> None:
    copied, made = background.copied, []

    def noted(files: background.Files) -> Any:
        made.append(files.keys())
        return copied(files)

    monkeypatch.setattr(background, "copied", noted)
    run = make_run(make_config(memory={"budget_gib": budget}))
    train(run, RunFolder(tmp_path), Stop(), lambda event: None, Expectation(planned, 0))
    assert bool(made) == copies
