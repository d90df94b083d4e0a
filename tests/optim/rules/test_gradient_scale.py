"""Gradients that come several times larger, with `grad_scale` saying so, give the same updates."""

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.rules.base import Context

SHAPE = (2, 4, 5)
# An eps of the size of the gradients, so that it matters.
PIPELINES = [
    build_pipeline("adamw", eps=0.5),
    build_pipeline("adamw", eps=0.5, amsgrad=True),
    build_pipeline("adopt", eps=0.5),
    build_pipeline("adopt", eps=0.5, ratio="divide"),
    build_pipeline("nested_adam", eps=0.5),
    build_pipeline("nested_adam", eps=0.5, eps_inside=False),
    build_pipeline("adafactor", eps1=0.5),
    build_pipeline("warm_start", steps=2, inner="nested_adam"),
]


def train(pipeline, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(SHAPE)
    state = pipeline.allocate(*SHAPE, torch.device("cpu"))
    noise = Noise(torch.zeros(2, 1, 1, dtype=torch.int32), 0)
    for step in range(1, 5):
        ctx = Context(step, step == 1, 0.1, 0.0, weights, *SHAPE[1:], grad_scale=scale)
        pipeline.step(weights, torch.randn(SHAPE, generator=generator) * scale, state, ctx, noise)
    return weights


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 100.0])
def test_the_scale_is_taken_out(pipeline, scale):
    torch.testing.assert_close(train(pipeline, scale), train(pipeline, 1.0), rtol=1e-5, atol=1e-5)
