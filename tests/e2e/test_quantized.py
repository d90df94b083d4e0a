"""Trainings on packed bases from the command line: stopped, continued, sampled and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acmsao_cli.engine import loop


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a run's last checkpoint."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return dict(load_file(newest / "weights.safetensors"))


@pytest.mark.parametrize(
    ("model", "quantize"),
    [
        ("sdxl", "fp8"),
        pytest.param("sdxl", "nf4", marks=pytest.mark.slow),  # each is quick with one of the others
        ("lm", "nf4"),
        ("lm", "int8"),
    ],
)
def test_a_stopped_run_on_a_packed_base_goes_on_to_the_same_bits(
    acmsao: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    quantize: str,
) -> None:
    path = request.getfixturevalue(model)
    recipe = json.loads(path.read_text())
    recipe["method"] = {"kind": "lora", "rank": 4}
    recipe["model"]["quantize"] = quantize
    recipe["output"] = {"formats": ["kohya" if model == "sdxl" else "peft", "merged"]}
    path.write_text(json.dumps(recipe))
    whole = acmsao("train", str(path), "-o", "whole")
    assert whole.code == 0, whole.err
    assert "cast" not in whole.err
    assert len(list(Path("whole/final").iterdir())) == 2
    assert list(Path("whole/samples").iterdir())
    advance = loop.advance

    def broken(run: Any, *rest: Any) -> Any:
        if run.step == 2:
            raise KeyboardInterrupt
        return advance(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "advance", broken)
        acmsao("train", str(path), "-o", "parts")
    resumed = acmsao("train", str(path), "-o", "parts")
    assert resumed.code == 0, resumed.err
    assert "continuing at step 2" in resumed.out
    for name, value in weights_of(Path("whole")).items():
        assert torch.equal(value, weights_of(Path("parts"))[name]), name


@pytest.mark.parametrize(
    ("model", "method", "key"),
    [
        ("sdxl", {"kind": "full"}, "method `full`"),
        ("sdxl", {"kind": "lora", "dora": True}, "`method.dora`"),
        ("lm", {"kind": "full"}, "method `full`"),
        ("lm", {"kind": "lora", "dora": True}, "`method.dora`"),
    ],
)
def test_what_packed_weights_cannot_do_is_refused(
    acmsao: Any, request: pytest.FixtureRequest, model: str, method: dict[str, Any], key: str
) -> None:
    path = request.getfixturevalue(model)
    recipe = json.loads(path.read_text())
    recipe["method"] = method
    recipe["model"]["quantize"] = "fp8" if model == "sdxl" else "int8"
    path.write_text(json.dumps(recipe))
    done = acmsao("train", str(path))
    assert done.code == 2
    said = " ".join(done.err.split())
    assert all(word in said for word in ("model.quantize", key))
    assert "Traceback" not in said
