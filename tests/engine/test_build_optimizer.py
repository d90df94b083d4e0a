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
    group = ParameterGroup((("weight", nn.Parameter(torch.ones(4, 3))),))
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
    ],
)
def test_the_recipes_parts_are_the_pipelines(parts: dict[str, Any]) -> None:
    assert built(parts).pipeline == build_pipeline("adamw", **parts)


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
