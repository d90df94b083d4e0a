"""The Adam family beside other libraries' implementations."""

import math

import pytest
import torch
from optim.trajectory import SHAPES, ours, relative_error, theirs

from acmsao_cli.optim import build_pipeline

LR = 0.01
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
FP32 = 3e-5  # what our fp32 arithmetic may differ from float64 in a dozen steps


def assert_agrees(pipeline, make, shape, *, lr=LR, dtype=torch.float64):
    found, expected = ours(pipeline, shape, lr=lr), theirs(make, shape, dtype=dtype)
    assert relative_error(found, expected, shape) < FP32


@shapes
def test_torch_adamw_with_amsgrad(shape):
    assert_agrees(
        build_pipeline("adamw", betas=(0.9, 0.5), amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, 0.5), weight_decay=0.0, amsgrad=True),
        shape,
    )


@shapes
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"dampening": 0.3}], ids=str)
def test_torch_sgd(shape, options):
    assert_agrees(
        build_pipeline("sgd", momentum={"name": "heavy_ball", **options}),
        lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, **options),
        shape,
    )


# torch factors the last two axes of a convolution, we its natural matrix; its eps1 is a floor.
@pytest.mark.parametrize("shape", [(5, 7), (9,)], ids=str)
def test_torch_adafactor(shape):
    assert_agrees(
        build_pipeline("adafactor", relative_step=True, scale_parameter=True),
        lambda p: torch.optim.Adafactor(p, lr=1e-2, eps=(1e-15, 1e-3), weight_decay=0.0),
        shape,
        lr=1.0,
    )


@pytest.mark.parametrize("shape", [(5, 7), (9,)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta1": 0.9},
        {"scale_parameter": True},
        {"relative_step": True, "scale_parameter": True},
    ],
    ids=str,
)
def test_transformers_adafactor(shape, options):
    optimization = pytest.importorskip("transformers.optimization")
    relative = options.get("relative_step", False)
    lr = 1.0 if relative else LR
    chosen = {"scale_parameter": False, "relative_step": False, **options}
    assert_agrees(
        build_pipeline("adafactor", **options),
        lambda p: optimization.Adafactor(p, lr=None if relative else lr, **chosen),
        shape,
        lr=lr,
    )


@shapes
@pytest.mark.parametrize("warmup", [None, 10])
def test_pytorch_optimizer_ademamix(shape, warmup):
    peers = pytest.importorskip("pytorch_optimizer")
    momentum = {"name": "ademamix", "slow_beta": 0.99, "alpha": 3.0, "warmup": warmup or 0}
    assert_agrees(
        build_pipeline("adamw", momentum=momentum),
        lambda p: peers.AdEMAMix(
            p, lr=LR, betas=(0.9, 0.999, 0.99), alpha=3.0, t_alpha_beta3=warmup, weight_decay=0.0
        ),
        shape,
    )


@shapes
def test_pytorch_optimizer_grams(shape):
    peers = pytest.importorskip("pytorch_optimizer")
    assert_agrees(
        build_pipeline("adamw", direction_edits=["grams"], eps=1e-6),
        lambda p: peers.Grams(p, lr=LR, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0),
        shape,
    )


@shapes
def test_pytorch_optimizer_adopt(shape):
    """Which counts the clip from 1 where the paper and its authors count from 0."""
    peers = pytest.importorskip("pytorch_optimizer")
    assert_agrees(
        build_pipeline("adopt"),
        lambda p: peers.ADOPT(p, lr=LR, clip_lambda=lambda step: (step - 1) ** 0.25),
        shape,
    )


@shapes
def test_pytorch_optimizer_laprop(shape):
    """Which divides eps, too, by the root of the second moment's weight: so eps is tiny here."""
    peers = pytest.importorskip("pytorch_optimizer")
    betas, eps = (0.9, 0.99), 1e-12
    assert_agrees(
        build_pipeline("nested_adam", betas=betas, eps=eps, eps_inside=False),
        lambda p: peers.LaProp(p, lr=LR, betas=betas, eps=eps, weight_decay=0.0),
        shape,
    )


# adv_optm's forms that differ from the papers are options of ours: eps added in ADOPT, the update
# corrected instead of the momentum. It applies Grams and Cautious to one part of AdEMAMix only.
ADAMW_FORMS = {
    "plain": ({}, {}),
    "atan2": ({"ratio": "atan2", "correction": "update"}, {"use_atan2": True}),
    "ademamix": (
        {
            "momentum": {"name": "ademamix", "slow_beta": 0.99, "alpha": 3.0},
            "correction": "update",
        },
        {"use_AdEMAMix": True, "beta3_ema": 0.99, "alpha": 3.0},
    ),
    "ademamix_without_fast": (
        {
            "betas": (0.0, 0.999),
            "momentum": {"name": "ademamix", "slow_beta": 0.99, "alpha": 3.0},
        },
        {"betas": (0.0, 0.999), "use_AdEMAMix": True, "beta3_ema": 0.99, "alpha": 3.0},
    ),
    "grams": ({"direction_edits": ["grams"]}, {"grams_moment": True}),
    "cautious": ({"direction_edits": ["cautious"]}, {"cautious_mask": True}),
    "orthograd": ({"gradient_edits": ["orthograd"]}, {"orthogonal_gradient": True}),
    "no_momentum": ({"betas": (0.0, 0.99)}, {"betas": (0.0, 0.99)}),
    "uncorrected": ({"correction": "none"}, {"use_bias_correction": False}),
}
# The square matrix is the one whose near-square reshape is itself.
ADV_SHAPES = pytest.mark.parametrize("shape", [(6, 6), (9,)], ids=str)
both = pytest.mark.parametrize("factored", [False, True])


@ADV_SHAPES
@both
@pytest.mark.parametrize("form", ADAMW_FORMS)
def test_adv_optm_adamw(form, shape, factored):
    peers = pytest.importorskip("adv_optm")
    options, theirs_too = ADAMW_FORMS[form]
    assert_agrees(
        build_pipeline("adamw", storage="factored" if factored else "fp32", **options),
        lambda p: peers.AdamW_adv(
            p,
            lr=LR,
            nnmf_factor=factored,
            vector_reshape=len(shape) == 1,  # only vectors are folded
            stochastic_rounding=False,
            **theirs_too,
        ),
        shape,
        dtype=torch.float32,
    )


ADOPT_FORMS = {
    "plain": ({"ratio": "divide"}, {}),
    "ademamix": (
        {"ratio": "divide", "momentum": {"name": "ademamix", "slow_beta": 0.99, "alpha": 3.0}},
        {"use_AdEMAMix": True, "beta3_ema": 0.99, "alpha": 3.0},
    ),
    "grams": ({"ratio": "divide", "direction_edits": ["grams"]}, {"grams_moment": True}),
    "cautious": ({"ratio": "divide", "direction_edits": ["cautious"]}, {"cautious_mask": True}),
    "no_momentum": ({"ratio": "divide", "betas": (0.0, 0.99)}, {"betas": (0.0, 0.99)}),
    "atan2": ({"ratio": "atan2", "clip": math.inf, "skip_first": False}, {"use_atan2": True}),
}


@ADV_SHAPES
@both
@pytest.mark.parametrize("form", ADOPT_FORMS)
def test_adv_optm_adopt(form, shape, factored):
    peers = pytest.importorskip("adv_optm")
    options, theirs_too = ADOPT_FORMS[form]
    # Its first step divides by a v that went through the factors, ours by the gradient's own size.
    shape = (7,) if factored and form == "atan2" else shape  # which cannot be folded
    assert_agrees(
        build_pipeline("adopt", storage="factored" if factored else "fp32", **options),
        lambda p: peers.Adopt_adv(
            p,
            lr=LR,
            nnmf_factor=factored,
            vector_reshape=len(shape) == 1,  # only vectors are folded
            stochastic_rounding=False,
            **theirs_too,
        ),
        shape,
        dtype=torch.float32,
    )
