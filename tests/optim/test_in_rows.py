"""A gradient that is computed in rows is stepped as one that is there."""

from __future__ import annotations

import pytest
import torch
from optim.harness import Case, every_case

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Stacking, build_pipeline
from acmsao_cli.optim.in_rows import TOGETHER, GradientInRows
from acmsao_cli.optim.tracing import StorageTracer

SHAPE = (288, 64)
CASES = [case for case in every_case() if case.dtype is torch.bfloat16]  # as large heads are


def stepped(case: Case, in_rows: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameter = torch.nn.Parameter(torch.randn(SHAPE, generator=generator).to(case.dtype))
    stacking = Stacking(below=0, block=4096)
    optimizer = ComposedOptimizer(
        [("head", parameter)], case.pipeline, lr=0.01, weight_decay=0.1, stacking=stacking
    )
    for _ in range(3):
        gradient = torch.randn(SHAPE, generator=generator).to(case.dtype)
        if in_rows:
            rows = GradientInRows(parameter, lambda a, b, whole=gradient: whole[a:b].clone())
            optimizer.step_parameter(parameter, rows)
        else:
            parameter.grad = gradient
            optimizer.step_parameter(parameter)
        optimizer.step()
        parameter.grad = None
    norm = optimizer.gradient_norm()
    assert norm is not None
    return {"weights": parameter.detach(), "norm": norm} | optimizer.state_tensors()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_give_the_bits_of_the_whole(case: Case) -> None:
    whole, rows = stepped(case, in_rows=False), stepped(case, in_rows=True)
    assert whole.keys() == rows.keys()
    for name, value in whole.items():
        assert torch.equal(value, rows[name]), name


@pytest.mark.parametrize("storage", ["factored", "int8", "fp32"])
def test_the_largest_head_is_stepped_without_its_gradient(storage: str) -> None:
    shape = (128_256, 4096)
    parameter = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    pipeline = build_pipeline("adamw", storage=storage, gradient_edits=["rms_clip"])
    optimizer = ComposedOptimizer([("head", parameter)], pipeline, lr=1e-3)
    optimizer.allocate()
    asked = []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.append(stop - start)
        return parameter.new_empty(stop - start, shape[1])

    with StorageTracer() as tracer:
        optimizer.step_parameter(parameter, GradientInRows(parameter, compute))
    assert max(asked) * shape[1] <= TOGETHER
    assert tracer.peak_bytes <= 64 * 2**20 + 2 * TOGETHER


def test_rows_are_computed_once_for_those_that_are_read_in_turn() -> None:
    like, asked = torch.empty(TOGETHER // 1024 * 3, 1024), []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return torch.arange(start, stop)[:, None].expand(-1, 1024)

    rows = GradientInRows(like, compute)
    for start in range(0, len(like), 128):
        assert int(rows.cut(start, start + 128)[0, 0, 0]) == start
    assert len(asked) == 3
    assert torch.equal(rows.whole()[0, :, 0], torch.arange(len(like)))


def test_another_shape_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 5))
    optimizer = ComposedOptimizer([("head", parameter)], build_pipeline("adamw"), lr=0.1)
    rows = GradientInRows(torch.zeros(4, 6), lambda a, b: torch.zeros(b - a, 6))
    with pytest.raises(OptimizerError, match="`head` has another shape"):
        optimizer.step_parameter(parameter, rows)
