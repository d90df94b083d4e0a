"""`optimizer.kernels: true` from the command line: planned without a kernel, run with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optim.kernels.twins import needs_compiler

from acmsao_cli.optim.kernels import build, find

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart-llm.yaml"
KERNELS = ("--set", "optimizer.kernels=true")
FUSED = ("--set", "optimizer.fused_backward=true", "--set", "training.clip_norm=null")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept; none is known yet."""
    for cached in (find, build.load):
        cached.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "acmsao" / "kernels"


def test_a_dry_run_plans_with_kernels_and_builds_none(acmsao: Any, kernels: Path) -> None:
    done = acmsao("train", str(QUICKSTART), *KERNELS, "--dry-run")
    assert done.code == 0, done.err
    assert "with kernels" in done.out + done.err
    assert not kernels.exists()


def test_a_dry_run_refuses_what_has_no_kernel(acmsao: Any, kernels: Path) -> None:
    done = acmsao(
        *("train", str(QUICKSTART), *KERNELS, "--dry-run"),
        *("--set", "optimizer.direction_edits=[cautious]"),
    )
    assert done.code != 0
    assert "no kernel knows edit cautious" in done.err


@needs_compiler
@pytest.mark.parametrize("stepping", [(), FUSED], ids=["after", "during-backward"])
def test_a_run_steps_by_kernels(
    acmsao: Any, lm: Path, kernels: Path, stepping: tuple[str, ...]
) -> None:
    done = acmsao("train", str(lm), *KERNELS, *stepping, "--output", "out")
    assert done.code == 0, done.err
    assert len(list(kernels.iterdir())) == 1
