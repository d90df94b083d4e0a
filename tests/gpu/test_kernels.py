"""The Triton kernel against its pipeline on a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim.kernels.twins import assert_close, gradients, start

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.kernels import require

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
@pytest.mark.parametrize(
    ("rule", "options"), [("adamw", {}), ("adamw", {"ratio": "atan2"}), ("lion", {})]
)
def test_it_equals_its_pipeline(
    rule: str, options: dict[str, Any], storage: str, dtype: torch.dtype
) -> None:
    pipeline = build_pipeline(rule, storage=storage, **options)
    kernel = require(pipeline, CUDA, dtype)
    for shape in ((1, 1280, 1000), (3, 16, 320), (4, 1, 1283), (2, 50, 37)):
        slow, fast = (start(pipeline, shape, dtype, CUDA) for _ in range(2))
        for grad in gradients(shape, dtype):
            slow.step(pipeline, grad.to(CUDA))
            fast.step(kernel, grad.to(CUDA))
        assert_close(slow, fast)


def test_the_grid_has_no_limit_that_a_parameter_reaches() -> None:
    """More tiles than the 65,535 that CUDA allows on all axes of a grid but the first."""
    pipeline = build_pipeline("adamw", storage="factored")
    shape = (1, 1, 65_536 * 256 + 43)  # a prime, so that it is not folded
    run = start(pipeline, shape, torch.bfloat16, CUDA)
    before = run.weights.clone()
    norms = run.step(require(pipeline, CUDA, torch.bfloat16), torch.ones_like(before))
    assert norms is not None
    assert norms.item() == pytest.approx(shape[2] ** 0.5, rel=1e-3)
    assert (run.weights[..., -4096:] != before[..., -4096:]).any()
    torch.testing.assert_close(
        run.state["momentum"]["col"], torch.ones_like(before, dtype=torch.float32)
    )


def test_a_step_does_not_wait_for_the_device() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    kernel = require(pipeline, CUDA, torch.bfloat16)
    shape = (1, 256, 256)
    run = start(pipeline, shape, torch.bfloat16, CUDA)
    grads = [grad.to(CUDA) for grad in gradients(shape, torch.bfloat16)]
    run.step(kernel, grads[0])  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        for grad in grads[1:]:
            run.step(kernel, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
