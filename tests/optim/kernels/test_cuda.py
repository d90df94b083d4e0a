"""The Triton kernel, without a GPU: interpreted, and compiled for two kinds of GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.kernels.parts import recognise

POINTERS = {"momentum": "*u8", "square": "*bf16", "numbers": "*i32"}
WHOLE_NUMBERS = {"salt", "momentum_salt", "square_salt", "batch", "rows", "cols", "numel"}


def test_it_equals_its_pipeline_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    here = Path(__file__).parent
    paths = [str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(here / "interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("adamw", {"storage": "factored", "ratio": "atan2"}),
        ("adamw", {"storage": {"default": "factored", "momentum": "bf16"}}),
        ("lion", {"storage": "bf16", "rounding": "nearest"}),
    ],
)
def test_it_compiles_ahead_of_time(rule: str, options: dict[str, Any], capability: int) -> None:
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from acmsao_cli.optim.kernels import cuda

    kernel = cuda.kernel(recognise(build_pipeline(rule, **options), torch.bfloat16))
    dense = {"momentum": "*bf16"} if kernel.options["MOMENTUM"] == "HALF" else {}
    signature = {
        name: "constexpr" if name in kernel.options else type_of(name, dense)
        for name in cuda.advance.arg_names
    }
    source = ASTSource(fn=cuda.advance, signature=signature, constexprs=kernel.options)
    assert compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def type_of(name: str, others: dict[str, str]) -> str:
    if name in ("weights", "grad"):
        return "*bf16"
    if name.endswith(("_row", "_col", "_sums")):
        return "*fp32"
    return {**POINTERS, **others}.get(name, "i32" if name in WHOLE_NUMBERS else "fp32")
