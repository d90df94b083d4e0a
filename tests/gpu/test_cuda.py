"""Trainings on a CUDA device: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = ("-s", "training.device=cuda", "-s", "model.dtype=bf16")
FULL = ("-p", "16gb", "-s", "memory.budget_gib=null")


def weights_of(run: str) -> dict[str, torch.Tensor]:
    newest = sorted((Path(run) / "checkpoints").iterdir())[-1]
    return dict(load_file(newest / "weights.safetensors"))


def with_method(recipe: Path, **method: Any) -> str:
    values = json.loads(recipe.read_text())
    values["method"] = method
    recipe.write_text(json.dumps(values))
    return str(recipe)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["sdxl", "lm"])
def test_a_training_runs_and_its_files_load_back(
    acmsao: Any, sdxl: Path, lm: Path, family: str, method: str
) -> None:
    recipe = with_method(sdxl if family == "sdxl" else lm, kind=method)
    done = acmsao("train", recipe, "-o", "out", *CUDA, *(FULL if method == "full" else ()))
    assert done.code == 0, done.err
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["peak_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("family", "quantize"), [("lm", "nf4"), ("lm", "int8"), ("sdxl", "fp8"), ("sdxl", "nf4")]
)
def test_a_packed_base_trains(
    acmsao: Any, lm: Path, sdxl: Path, family: str, quantize: str
) -> None:
    recipe = with_method(sdxl if family == "sdxl" else lm, kind="lora", rank=4)
    packed = ("-s", f"model.quantize={quantize}", "-s", "output.formats=[merged]")
    done = acmsao("train", recipe, "-o", "out", *CUDA, *packed)
    assert done.code == 0, done.err


def test_a_resumed_training_is_close_to_an_uninterrupted_one(acmsao: Any, lm: Path) -> None:
    whole = acmsao("train", str(lm), "-o", "whole", *CUDA)
    assert whole.code == 0, whole.err
    for steps in (4, 6):
        part = acmsao("train", str(lm), "-o", "parts", *CUDA, "-s", f"training.steps={steps}")
        assert part.code == 0, part.err
    for name, value in weights_of("whole").items():
        assert torch.allclose(value, weights_of("parts")[name], atol=1e-2), name
