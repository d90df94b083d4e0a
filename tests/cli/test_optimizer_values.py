"""Values that no optimizer can be composed of are told at once, with their key and place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Acmsao = Callable[..., Any]

RECIPE = """\
model: {family: sdxl, source: builtin:tiny-sdxl}
method: {kind: METHOD}
data: {source: builtin:zoblins}
training: {steps: 10, device: cpu}
optimizer:
"""

# The optimizer's keys, each on a line; the place is that of the last line.
WRONG = {
    "limit of an edit": ("gradient_edits: [{name: rms_clip, limit: 0}]", "gradient_edits"),
    "estimate of none": ("name: prodigy\n  d0: 0", "d0"),
    "no iterations": ("name: muon\n  iterations: 0", "iterations"),
    "negative steps": ("name: warm_start\n  steps: -3", "steps"),
    "milestones that fall": (
        "eps: {name: milestones, steps: [5, 2], values: [1, 2, 3]}",
        "eps",
    ),
    "a slot that is none": ("storage: {default: factored, momntum: bf16}", "storage"),
    "a rule that keeps no mean square": ("name: dadaptation\n  inner: lion", "inner"),
    "kernels for what has none": ("name: adopt\n  kernels: true", "kernels"),
    "kahan of fp32 weights": ("rounding: kahan", "rounding"),
}


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize(("keys", "key"), WRONG.values(), ids=list(WRONG))
def test_a_value_that_cannot_be_composed_is_told_with_its_place(
    acmsao: Acmsao, tmp_path: Path, command: str, keys: str, key: str
) -> None:
    dtype = ", dtype: fp32" if command == "validate" and key == "rounding" else ""
    text = RECIPE.replace("METHOD", "full").replace("tiny-sdxl}", f"tiny-sdxl{dtype}}}")
    (tmp_path / "r.yaml").write_text(f"{text}  {keys}\n")
    outcome = acmsao(command, "./r.yaml")
    first, second = outcome.err.splitlines()
    assert outcome.code == 2
    assert outcome.out == ""  # nothing was started
    assert first.startswith(f"error: `optimizer.{key}`")
    assert first.endswith(f"in r.yaml:{6 + keys.count(chr(10))}")
    assert second.startswith("  help: ")


def test_in_an_entry_of_layers_the_key_is_told_too(acmsao: Acmsao, tmp_path: Path) -> None:
    keys = "layers:\n    - {ndim: 1, lr: 1}\n    - {ndim: 2, name: muon, iterations: 0, lr: 1}"
    (tmp_path / "r.yaml").write_text(f"{RECIPE.replace('METHOD', 'lora')}  {keys}\n")
    said = acmsao("validate", "./r.yaml").err
    assert said.startswith("error: `iterations` in entry 2 of `optimizer.layers`: ")
    assert "in r.yaml:6\n" in said


def test_where_the_device_decides_the_dtype_validating_allows_both(
    acmsao: Acmsao, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(f"{RECIPE.replace('METHOD', 'full')}  rounding: kahan\n")
    assert acmsao("validate", "./r.yaml").code == 0
