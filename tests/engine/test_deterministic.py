"""What `training.deterministic` turns on for a run, and turns back behind it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.engine.deterministic import WORKSPACE, reproducible
from acmsao_cli.errors import ConfigError

ASKED = TrainingSection(deterministic=True)


def settings() -> dict[str, Any]:
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(WORKSPACE),
    }


@pytest.mark.parametrize("workspace", [None, ":0:0", ":16:8"])
def test_what_was_set_before_holds_again_whatever_happens(
    workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    if workspace:
        monkeypatch.setenv(WORKSPACE, workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    within: list[dict[str, Any]] = []

    def fail() -> None:
        within.append(settings())
        raise KeyError

    with pytest.raises(KeyError), reproducible(ASKED):
        fail()
    assert settings() == before
    assert within == [
        {
            "algorithms": True,
            "warn_only": False,
            "cudnn": True,
            "benchmark": False,
            "workspace": ":16:8" if workspace == ":16:8" else ":4096:8",
        }
    ]


def test_a_run_that_does_not_ask_is_left_alone() -> None:
    before = settings()
    with reproducible(TrainingSection()):
        assert settings() == before


def test_an_operation_that_has_no_such_kernel_is_named() -> None:
    with pytest.raises(ConfigError, match="no deterministic `put_`") as caught, reproducible(ASKED):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    assert "training.deterministic=false" in str(caught.value.hint)


def test_other_errors_are_told_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), reproducible(ASKED):
        torch.zeros(3).add_(torch.zeros(2))
