"""Samples are the plain pipeline's pictures, and taking them leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from micro.sdxl import RecipeFor, Widths

from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.family import FAMILY

CPU = torch.device("cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_samples_equal_those_of_the_plain_pipeline(
    folder_of: Callable[[Widths], Path], recipe_for: RecipeFor, prediction: str
) -> None:
    folder = folder_of(Widths(prediction=prediction))
    samples = {"prompts": ["red round", "blue"], "steps": 2, "seed": 3, "width": 32, "height": 64}
    ours = list(FAMILY.open(recipe_for(folder, samples=samples), CPU, torch.float32).sample())
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        for number, sample in enumerate(ours):
            theirs = pipeline(
                sample.prompt,
                width=32,
                height=64,
                num_inference_steps=2,
                guidance_scale=5.0,
                generator=torch.Generator().manual_seed(3 + number),
            ).images[0]
            assert sample.image is not None
            assert sample.image.size == (32, 64)
            difference = np.asarray(sample.image, dtype=int) - np.asarray(theirs, dtype=int)
            assert np.abs(difference).max() <= 1


def test_sampling_leaves_modes_and_random_streams_alone(micro: Path, recipe_for: RecipeFor) -> None:
    recipe = recipe_for(micro, samples={"prompts": ["red"], "steps": 1}, method={"dropout": 0.5})
    trainee = FAMILY.open(recipe, CPU, torch.bfloat16)
    modes = {name: part.training for name, part in trainee.parts.unet.named_modules()}
    state = torch.get_rng_state()
    first, again = (next(iter(trainee.sample())).image for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: part.training for name, part in trainee.parts.unet.named_modules()} == modes
    assert any(modes.values())
    assert first is not None
    assert again is not None
    assert first.tobytes() == again.tobytes()


def test_whoever_stops_after_one_picture_has_everything_as_it_was(
    micro: Path, recipe_for: RecipeFor
) -> None:
    samples = {"prompts": ["red", "blue"], "steps": 1}
    trainee = FAMILY.open(recipe_for(micro, samples=samples), CPU, torch.float32)
    modes = {name: part.training for name, part in trainee.parts.unet.named_modules()}
    state = torch.get_rng_state()
    drawing = trainee.sample()
    assert next(drawing).prompt == "red"
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: part.training for name, part in trainee.parts.unet.named_modules()} == modes
    assert next(drawing).prompt == "blue"


def test_the_recipe_may_overrule_the_prediction(micro: Path, recipe_for: RecipeFor) -> None:
    recipe = recipe_for(micro, model={"prediction": "v_prediction"})
    trainee = FAMILY.open(recipe, CPU, torch.float32)
    assert trainee.diffusion.prediction == "v_prediction"
    assert trainee.parts.pipeline().scheduler.config.prediction_type == "v_prediction"
    words = FAMILY.facts(recipe).details["prediction"]
    assert words == "v_prediction (by model.prediction; the model says epsilon)"
