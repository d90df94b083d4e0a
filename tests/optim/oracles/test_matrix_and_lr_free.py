"""Muon, SOAP, Prodigy and D-adaptation beside other libraries, as far as those are right.

Not here: pytorch_optimizer's A2Grad, which counts k from 1, and adv_optm's factored Prodigy, whose
factors lose gradients below 1e-6.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim.rules.trajectory import SHAPES, bowl, deviation, draws, follow, follow_with, noise

from acmsao_cli.optim import build_pipeline

SMALL = [0.01 * weights for weights in draws(SHAPES, seed=1)]
MATRICES = draws([(64, 48), (32, 96)], seed=1)
ADV: dict[str, Any] = {"slice_p": 1, "stochastic_rounding": False}


def peers(
    make: Callable[..., torch.optim.Optimizer], start, gradient, num_steps, **options: Any
) -> list[torch.Tensor]:
    parameters = [torch.nn.Parameter(weights.clone()) for weights in start]
    follow_with(make(parameters, **options), parameters, gradient, num_steps)
    return [p.detach().double() for p in parameters]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"lr": 0.5, "safeguard_warmup": True}, {"lr": 0.5, "safeguard_warmup": True}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"d_coef": 2.0, "growth_rate": 2.0}, {"d_coef": 2.0, "growth_rate": 2.0}),
    ],
    ids=str,
)
def test_prodigy_equals_the_authors(ours, theirs):
    library = pytest.importorskip("prodigyopt")
    run = {"lr": ours.pop("lr", 1.0), "weight_decay": ours.pop("weight_decay", 0.0)}
    found, _ = follow(build_pipeline("prodigy", **ours), SMALL, bowl, 40, **run)
    expected = peers(library.Prodigy, SMALL, bowl, 40, **theirs)
    assert deviation(found, expected, SMALL) < 3e-4


@pytest.mark.parametrize(
    ("inner", "theirs"),
    [
        ({}, {}),
        ({"momentum": "ademamix"}, {"use_AdEMAMix": True}),
        ({"ratio": "atan2"}, {"use_atan2": True}),
    ],
    ids=str,
)
def test_prodigy_around_adams_kin_equals_adv_optm(inner, theirs):
    library = pytest.importorskip("adv_optm")
    inner = {"name": "adamw", "correction": "none", **inner}
    found, _ = follow(build_pipeline("prodigy", inner=inner), SMALL, bowl, 40, lr=1.0)
    expected = peers(library.Prodigy_adv, SMALL, bowl, 40, **theirs, **ADV)
    assert deviation(found, expected, SMALL) < 3e-4


def test_prodigy_around_lion_equals_adv_optm():
    library = pytest.importorskip("adv_optm")
    found, _ = follow(build_pipeline("prodigy", inner="lion"), SMALL, bowl, 20, lr=1.0)
    expected = peers(library.Lion_Prodigy_adv, SMALL, bowl, 20, d_limiter=False, **ADV)
    assert deviation(found, expected, SMALL) < 3e-4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dadaptation_equals_pytorch_optimizer(weight_decay):
    library = pytest.importorskip("pytorch_optimizer")
    pipeline = build_pipeline("dadaptation")
    found, _ = follow(pipeline, SMALL, bowl, 40, lr=1.0, weight_decay=weight_decay)
    theirs = {"lr": 1.0, "weight_decay": weight_decay, "weight_decouple": True}
    expected = peers(library.DAdaptAdam, SMALL, bowl, 40, **theirs)
    assert deviation(found, expected, SMALL) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_equals_torch_as_far_as_bf16_goes(precision, scale):
    pipeline = build_pipeline("muon", precision=precision, scale=scale)
    found, _ = follow(pipeline, MATRICES, noise, 10, lr=0.02, weight_decay=0.1)
    theirs = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": scale}
    expected = peers(torch.optim.Muon, MATRICES, noise, 10, **theirs)
    assert deviation(found, expected, MATRICES) < 2e-2


def test_soap_equals_pytorch_optimizer():
    library = pytest.importorskip("pytorch_optimizer")
    start = draws([(6, 6), (8, 8), (11,)], seed=1)  # full rank: else a basis is partly arbitrary
    found, _ = follow(build_pipeline("soap"), start, noise, 24, lr=0.003)
    expected = peers(library.SOAP, start, noise, 24, lr=0.003, weight_decay=0.0)
    assert deviation(found, expected, start) < 1e-3
