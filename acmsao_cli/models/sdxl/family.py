"""SDXL as a model family: looking at a model, opening it, showing what training will see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.data.base import Example, ImageExample
from acmsao_cli.data.images import geometry
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.base import Facts
from acmsao_cli.models.locate import Located, locate
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.components import (
    TEXT_ENCODERS,
    Components,
    Config,
    Prediction,
    Source,
    empty_component,
    latent_stride,
    prediction_of,
)
from acmsao_cli.models.sdxl.folder import HUB_PATTERNS, FolderSource
from acmsao_cli.models.sdxl.loss import diffusion
from acmsao_cli.models.sdxl.trainee import SdxlTrainee


@dataclass(frozen=True)
class SdxlFamily:
    """See `models.base.ModelFamily`."""

    name: str = "sdxl"

    def facts(self, recipe: Recipe) -> Facts:
        """Sizes, prediction type and what had to be assumed, from configurations and headers."""
        assert isinstance(recipe, SdxlRecipe)
        located, source = find(recipe.model.source, recipe.model.revision)
        check_recipe(recipe, source)
        return Facts(
            family=self.name,
            source=recipe.model.source,
            path=located.path,
            kind=located.kind,
            parameters=source.num_parameters(),
            details={"prediction": _prediction_words(recipe, source), **source.notes},
        )

    def open(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> SdxlTrainee:
        """Load what the recipe trains onto `device`; what only encodes rests on the CPU."""
        assert isinstance(recipe, SdxlRecipe)
        _, source = find(recipe.model.source, recipe.model.revision)
        check_recipe(recipe, source)
        prediction = prediction_for(recipe, source)
        trained = ("unet", *TEXT_ENCODERS) if recipe.method.text_encoders else ("unet",)
        parts = open_parts(source, trained, device, dtype, prediction)
        tables = diffusion(parts.scheduler, prediction, recipe.loss.min_snr_gamma, device)
        return SdxlTrainee(recipe, parts, tables, device, dtype)

    def preview(self, recipe: Recipe, examples: Sequence[Example]) -> Iterable[str]:
        """The picture's way to its bucket, and its caption."""
        assert isinstance(recipe, SdxlRecipe)
        data = recipe.data
        for example in examples:
            assert isinstance(example, ImageExample)
            image = example.open()
            plan = geometry(
                image.height, image.width, data.resolution, data.buckets, data.bucket_step
            )
            yield (
                f"{example.place}: {image.width} x {image.height} -> "
                f"{plan.target[1]} x {plan.target[0]} (kept {plan.kept:.0%})\n  {example.caption}"
            )


def find(source: str, revision: str | None) -> tuple[Located, Source]:
    """The stored model that `source` names."""
    located = locate(source, revision, single_file_allowed=True, patterns=HUB_PATTERNS)
    if located.kind == "single-file":
        from acmsao_cli.models.sdxl.single_file import SingleFileSource

        return located, SingleFileSource(located.path)
    return located, FolderSource(located.path)


def open_parts(
    source: Source,
    trained: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    prediction: Prediction,
) -> Components:
    """Every part of the pipeline; on the meta device without weights.

    The VAE is fp32: in half precision SDXL's overflows.
    """
    scheduler: Config = {**source.scheduler, "prediction_type": prediction}
    tokenizer, tokenizer_2 = source.tokenizers()
    cpu = torch.device("cpu")
    read = {}
    for component in ("unet", "vae", *TEXT_ENCODERS):
        cast = torch.float32 if component == "vae" else dtype
        if device.type == "meta":
            config = source.configs[component]
            with quiet_libraries():
                read[component] = empty_component(component, config, source.path).to(device, cast)
        else:
            home = device if component in trained else cpu
            read[component] = source.read(component, home, cast)
    return Components(
        **read,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=scheduler,
        force_zeros=source.force_zeros,
    )


def prediction_for(recipe: SdxlRecipe, source: Source) -> Prediction:
    """What the recipe says, else what the model says."""
    wanted = recipe.model.prediction
    return prediction_of(source.scheduler, source.path) if wanted == "auto" else wanted


def _prediction_words(recipe: SdxlRecipe, source: Source) -> str:
    used, said = prediction_for(recipe, source), source.scheduler.get("prediction_type", "epsilon")
    return used if used == said else f"{used} (by model.prediction; the model says {said})"


def check_recipe(recipe: SdxlRecipe, source: Source) -> None:
    """Refuse sizes that the model's latents cannot have. Raises ConfigError."""
    data, samples, stride = recipe.data, recipe.samples, latent_stride(source.configs["vae"])
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


FAMILY = SdxlFamily()
