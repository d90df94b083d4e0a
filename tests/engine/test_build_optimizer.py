"""Laws of the optimizer that a recipe asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.engine.step import build_optimizer
from acmsao_cli.errors import ConfigError, OptimizerError
from acmsao_cli.models.base import ParameterGroup
from acmsao_cli.optim import build_pipeline


def recipe_with(optimizer: dict[str, Any]) -> Recipe:
    return SdxlRecipe.model_validate(
        {
            "model": {"family": "sdxl", "source": "x"},
            "method": {"kind": "full"},
            "data": {"source": "x"},
            "optimizer": optimizer,
        }
    )


def built(optimizer: dict[str, Any]) -> Any:
    bias = nn.Parameter(torch.ones(3))
    group = ParameterGroup((("weight", nn.Parameter(torch.ones(4, 3))), ("bias", bias)), lr=0.5)
    trainee: Any = SimpleNamespace(parameter_groups=lambda: [group])
    return build_optimizer(recipe_with(optimizer), trainee)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"betas": (0.8, 0.9), "eps": 1e-6, "rounding": "nearest"},
        {"ratio": "atan2", "momentum": "nesterov"},
        {"momentum": {"name": "ademamix", "alpha": 2.0}},
        {"storage": {"default": "factored", "momentum": "bf16"}},
        {
            "gradient_edits": ["orthograd", {"name": "rms_clip", "limit": 0.5}],
            "direction_edits": ["cautious"],
        },
        {"decay": "cautious", "rounding": "nearest", "amsgrad": True},
        {"eps": {"name": "milestones", "steps": [10], "values": [1e-8, 1e-6]}},
        {"storage": "offloaded(bf16)"},
        {"name": "a2grad", "beta": 5.0, "variant": "exp"},
        {"name": "prodigy", "inner": {"name": "adopt", "momentum": "ademamix"}, "d0": 1e-5},
    ],
)
def test_the_recipes_parts_are_the_pipelines(parts: dict[str, Any]) -> None:
    assert built(parts).pipeline == build_pipeline(**{"name": "adamw", **parts})


def test_equal_settings_are_equal_pipelines_however_they_are_written() -> None:
    whole, fraction = {"momentum": {"name": "ademamix", "alpha": 2}}, {"inner": {"name": "lion"}}
    assert "alpha=2.0" in built(whole).pipeline.signature()
    assert (
        built({"name": "prodigy", **fraction}).pipeline
        == built({"name": "prodigy", "inner": "lion"}).pipeline
    )


def test_layers_have_their_own_pipelines_and_rates() -> None:
    optimizer = built(
        {
            "betas": (0.8, 0.9),
            "weight_decay": 0.1,
            "layers": [
                {"match": "*weight", "name": "muon", "scale": "match_rms_adamw", "lr": 2.0},
                {"ndim": 1, "weight_decay": 0.0},
            ],
        }
    )
    weight, bias = optimizer.param_groups
    assert optimizer.pipelines[1:] == (
        build_pipeline("muon", scale="match_rms_adamw"),
        build_pipeline("adamw", betas=(0.8, 0.9)),
    )
    assert (weight["layer"], weight["lr"], weight["initial_lr"]) == (1, 2.0, 2.0)
    assert (weight["weight_decay"], bias["weight_decay"]) == (0.1, 0.0)
    assert (bias["layer"], bias["lr"]) == (2, 0.5)


def test_a_pattern_that_fits_nothing_is_named() -> None:
    with pytest.raises(OptimizerError, match="match=\\*attn\\*"):
        built({"layers": [{"match": "*attn*", "lr": 1.0}]})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"storage": {"default": "fp32", "mean": "bf16"}}, "slot `mean`"),
        ({"gradient_edits": [{"name": "rms_clip", "limit": 0}]}, "must be positive"),
        ({"momentum": {"name": "ademamix", "slow_beta": 2}}, "slow_beta"),
    ],
)
def test_what_only_the_part_can_judge_is_still_a_bad_recipe(
    parts: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptimizerError, match=says) as caught:
        built(parts)
    assert caught.value.exit_code == ConfigError.exit_code == 2
