"""Gradients that come several times larger, with `grad_scale` saying so, give the same updates."""

import pytest
import torch
from optim.rules.stepped import stepped
from torch import Tensor

from acmsao_cli.optim import build_pipeline

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
    grads = [torch.randn(SHAPE, generator=generator) for _ in range(4)]
    return stepped(pipeline, grads, lr=0.1, grad_scale=scale)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 100.0])
def test_the_scale_is_taken_out(pipeline, scale):
    torch.testing.assert_close(train(pipeline, scale), train(pipeline, 1.0), rtol=1e-5, atol=1e-5)
