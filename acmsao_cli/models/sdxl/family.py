"""SDXL as a model family: looking at a model, opening it, showing what training will see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.data.base import Example, ImageExample
from acmsao_cli.data.images import geometry
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.base import Facts, ModelFamily, home_of
from acmsao_cli.models.locate import Located
from acmsao_cli.models.sdxl.components import (
    TEXT_ENCODERS,
    Prediction,
    latent_stride,
)
from acmsao_cli.models.sdxl.convert import LAYOUTS, export_model
from acmsao_cli.models.sdxl.loss import diffusion
from acmsao_cli.models.sdxl.source import Source, find, open_parts, prediction_of
from acmsao_cli.models.sdxl.text import count_tokens
from acmsao_cli.models.sdxl.trainee import SdxlTrainee


def find_for(recipe: SdxlRecipe) -> tuple[Located, Source]:
    """The stored model of a recipe. Raises ModelError and ConfigError."""
    model = recipe.model
    return find(model.source, model.revision, model.config)


class SdxlFamily:
    """See `models.base.ModelFamily`."""

    name = "sdxl"
    layouts = LAYOUTS

    def facts(self, recipe: Recipe) -> Facts:
        """Sizes, prediction type and what had to be assumed, from configurations and headers."""
        assert isinstance(recipe, SdxlRecipe)
        located, source = find_for(recipe)
        check_recipe(recipe, source)
        return Facts(
            family=self.name,
            source=recipe.model.source,
            path=located.path,
            kind=located.kind,
            parameters=source.num_parameters(),
            details={"prediction": _prediction_words(recipe, source), **source.notes},
        )

    def files(self, recipe: Recipe) -> Mapping[str, Path]:
        """The files of every component, and the settings."""
        assert isinstance(recipe, SdxlRecipe)
        return find_for(recipe)[1].files()

    def open(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> SdxlTrainee:
        """Load what the recipe trains onto `device`; what only encodes rests on the CPU."""
        assert isinstance(recipe, SdxlRecipe)
        _, source = find_for(recipe)
        check_recipe(recipe, source)
        prediction = prediction_for(recipe, source)
        trained = ("unet", *TEXT_ENCODERS) if recipe.method.text_encoders else ("unet",)
        home, quantize = home_of(recipe, device), recipe.model.quantize
        parts = open_parts(source, home, dtype, prediction, trained, quantize)
        tables = diffusion(parts.scheduler, prediction, recipe.loss.min_snr_gamma, device)
        return SdxlTrainee(recipe, parts, tables, device, dtype)

    def preview(self, recipe: Recipe, examples: Sequence[Example]) -> Iterable[str]:
        """The picture's way to its bucket, and its caption, with what the tokenizer cuts off."""
        assert isinstance(recipe, SdxlRecipe)
        data = recipe.data
        tokenizer = find_for(recipe)[1].settings.tokenizer
        for example in examples:
            assert isinstance(example, ImageExample)
            image = example.open()
            plan = geometry(
                image.height, image.width, data.resolution, data.buckets, data.bucket_step
            )
            length, most = count_tokens(tokenizer, example.caption), tokenizer.model_max_length
            cut = f"\n  cut to {most} of its {length} tokens" if length > most else ""
            height, width = plan.target
            yield (
                f"{example.place}: {image.width} x {image.height} -> {width} x {height} "
                f"(kept {plan.kept:.0%})\n  {example.caption}{cut}"
            )

    def copy(self, source: str, directory: Path, layout: str) -> list[Path]:
        """A diffusers folder, or a single file in `directory`."""
        return export_model(source, directory, layout)


def prediction_for(recipe: SdxlRecipe, source: Source) -> Prediction:
    """What the recipe says, else what the model says."""
    wanted = recipe.model.prediction
    return prediction_of(source.settings.scheduler, source.path) if wanted == "auto" else wanted


def _prediction_words(recipe: SdxlRecipe, source: Source) -> str:
    used, said = (
        prediction_for(recipe, source),
        source.settings.scheduler.get("prediction_type", "epsilon"),
    )
    return used if used == said else f"{used} (by model.prediction; the model says {said})"


def check_recipe(recipe: SdxlRecipe, source: Source) -> None:
    """Refuse sizes that the latents cannot have: ConfigError."""
    data, samples, stride = (
        recipe.data,
        recipe.samples,
        latent_stride(source.settings.configs["vae"]),
    )
    sizes = {
        "samples.width": samples.width,
        "samples.height": samples.height,
        "data.bucket_step": data.bucket_step if data.buckets else None,
        "data.resolution": None if data.buckets else data.resolution,
    }
    if samples.prompts and not (samples.width and samples.height):
        sizes["data.resolution"] = data.resolution
    for key, pixels in sizes.items():
        if pixels is not None and pixels % stride:
            raise ConfigError(
                f"{key} is {pixels}, but this model's pictures have multiples of {stride} pixels",
                hint=f"--set {key}={max(stride, pixels // stride * stride)}",
            )


FAMILY: ModelFamily = SdxlFamily()
