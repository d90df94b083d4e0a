"""Nested Adam, and what its documentation says of the bias."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optim.trajectory import SHAPES, ours, stream
from reference.nested import nested_adam as paper

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.rules.base import Context

PAGE = Path(__file__).resolve().parents[3] / "docs" / "nested-adam.md"
BETA1, BETA2 = 0.9, 0.999
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@pytest.mark.parametrize(
    "options", [{}, {"eps": 0.3}, {"eps": 0.3, "eps_inside": False}, {"betas": (0.0, 0.9)}], ids=str
)
def test_nested_adam_equals_its_sums(shape, options):
    written = {"inside" if k == "eps_inside" else k: v for k, v in options.items()}
    expected = paper(*stream(shape), lr=0.01, **written)
    found = ours(build_pipeline("nested_adam", **options), shape, lr=0.01)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def updates(beta1: float, grads: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The rule's own updates, step by step."""
    pipeline = build_pipeline("nested_adam", betas=(beta1, BETA2))
    state = None
    for step, grad in enumerate(grads, start=1):
        if state is None:
            state = pipeline.allocate(*grad.shape, grad.device)
        weights = torch.zeros_like(grad)
        ctx = Context(step, step == 1, 1.0, 0.0, weights, *grad.shape[1:])
        pipeline.step(weights, grad, state, ctx, Noise(torch.zeros(1, 1, 1, dtype=torch.int32), 0))
        yield -weights


def gradients(mean: float, steps: int) -> Iterator[torch.Tensor]:
    """Noise of size 1 in pairs of opposite signs, which takes most of the chance out of means."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        noise = torch.randn(1, 1, 100_000, generator=generator)
        yield mean + torch.cat([noise, -noise], dim=2)


def measured(mean: float) -> dict[int, list[float]]:
    """Columns of the table by step."""
    limit = mean / math.sqrt(mean**2 + 1)
    quotients = updates(0.0, gradients(mean, 50))
    averages = updates(BETA1, gradients(mean, 50))
    uncorrected = torch.zeros(())  # an average of quotients whose v is not corrected
    found = {}
    for step, (n, average) in enumerate(zip(quotients, averages, strict=True), start=1):
        weight = 1 - BETA1**step
        uncorrected = BETA1 * uncorrected + (1 - BETA1) * n / math.sqrt(1 - BETA2**step)
        means = [n.mean(), average.mean(), average.mean() * weight, uncorrected.mean() / weight]
        found[step] = [float(n.square().mean()), *(float(m) / limit for m in means)]
    return found


@pytest.mark.parametrize("mean", [0.1, 1.0])
def test_the_documented_bias_is_the_measured_one(mean):
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines()]
    numbers = [
        [float(x) for x in row] for row in rows if len(row) == 7 and row[0].strip()[:1] in "01"
    ]
    table = {int(step): values for size, step, *values in numbers if size == mean}
    assert list(table) == [1, 2, 5, 10, 50]
    found = measured(mean)
    for step, values in table.items():
        assert found[step] == pytest.approx(values, abs=0.011), step


def test_a_constant_gradient_is_exact_from_the_first_step():
    grads = [torch.full((1, 3, 2), -2.5)] * 20
    for update in updates(BETA1, iter(grads)):
        torch.testing.assert_close(update, torch.full((1, 3, 2), -1.0), rtol=1e-6, atol=0)


def test_a_quotient_is_at_most_the_root_of_the_steps_number():
    grads = [torch.full((1, 1, 1), 10.0**step) for step in range(12)]
    for step, update in enumerate(updates(0.0, iter(grads)), start=1):
        assert update.item() <= math.sqrt(step) + 1e-6
