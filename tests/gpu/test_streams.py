"""Copies on streams of their own change no bit of a run on a CUDA device that is deterministic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acmsao_cli.checkpoint import background
from acmsao_cli.engine import activations, streaming

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
SETTINGS = {
    "training.device": DEVICE,
    "training.deterministic": True,
    "training.clip_norm": None,
    "model.dtype": "bf16",
    "optimizer.storage": "factored",
    "optimizer.fused_backward": True,
    "memory.budget_gib": None,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
}
AWAY: dict[str, dict[str, Any]] = {
    "blocks": {"memory.resident_blocks": 0},
    "activations": {"memory.offload_activations": True},
    "both": {"memory.resident_blocks": 1, "memory.offload_activations": True},
}


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and activations of micro models are small."""
    monkeypatch.setattr(streaming, "SMALLEST", 1)
    monkeypatch.setattr(activations, "SMALLEST", 1)


def train(acmsao: Any, recipe: Path, method: str, run: str, **changes: Any) -> None:
    """A run of this name, with other settings."""
    values = json.loads(recipe.read_text())
    values["method"] = {"kind": method}
    recipe.write_text(json.dumps(values))
    chosen = {"memory.resident_blocks": "all", "memory.offload_activations": False}
    settings = {**SETTINGS, **chosen, **changes}
    options = (f"{key}={json.dumps(value)}" for key, value in settings.items())
    done = acmsao("train", str(recipe), "-o", run, *(x for one in options for x in ("-s", one)))
    assert done.code == 0, done.err


def saved(run: str) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and state of every checkpoint."""
    folder = Path(run) / "checkpoints"
    return {
        str(file.relative_to(folder)): load_file(file)
        for file in sorted(folder.rglob("*.safetensors"))
    }


def assert_same(one: str, other: str) -> None:
    """The checkpoints that both runs have, one at least, are the same to the bit."""
    left, right = saved(one), saved(other)
    both = left.keys() & right.keys()
    assert both
    for file in both:
        assert left[file].keys() == right[file].keys()
        for name, value in left[file].items():
            assert torch.equal(value, right[file][name]), f"{file}: {name}"


@pytest.mark.parametrize("away", AWAY)
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["lm", "sdxl"])
def test_what_is_in_host_memory_meanwhile_trains_and_saves_as_what_is_not(
    acmsao: Any, family: str, method: str, away: str, request: pytest.FixtureRequest
) -> None:
    recipe = request.getfixturevalue(family)
    train(acmsao, recipe, method, "resident")
    train(acmsao, recipe, method, "away", **AWAY[away])
    assert_same("resident", "away")


@pytest.mark.parametrize("place", ["here", *AWAY])
def test_a_state_taken_between_steps_changes_none_of_them(
    acmsao: Any, lm: Path, place: str
) -> None:
    for run, every in (("each", 1), ("last", 100)):
        train(acmsao, lm, "full", run, **AWAY.get(place, {}), **{"checkpoint.every": every})
    assert len(saved("each")) > len(saved("last"))
    assert_same("each", "last")


@pytest.mark.parametrize("place", ["here", "blocks"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_copy_written_beside_the_steps_is_a_save_that_was_waited_for(
    acmsao: Any, lm: Path, method: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, copies = background.copied, []

    def noted(files: background.Files) -> Any:
        copies.append(files.keys())
        return copied(files)

    monkeypatch.setattr(background, "copied", noted)
    for run, aside in (("waited", False), ("beside", True)):
        train(acmsao, lm, method, run, **AWAY.get(place, {}), **{"checkpoint.background": aside})
        assert bool(copies) == aside
    assert saved("waited").keys() == saved("beside").keys()
    assert_same("waited", "beside")


@pytest.mark.parametrize("place", ["here", *AWAY])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["lm", "sdxl"])
def test_steps_taken_again_come_out_the_same(
    acmsao: Any, family: str, method: str, place: str, request: pytest.FixtureRequest
) -> None:
    train(acmsao, request.getfixturevalue(family), method, "out", **AWAY.get(place, {}))
    verified = acmsao("resume", "--verify", "out", "--steps", "3")
    assert verified.code == 0, verified.err
