"""The parts of an SDXL pipeline, what has to hold between them, and how they are put together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import diffusers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
)

from acmsao_cli.errors import ModelError
from acmsao_cli.models.quiet import quiet_libraries

Config = Mapping[str, Any]
Prediction = Literal["epsilon", "v_prediction"]

CLASSES: Mapping[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# Real models have tens; a damaged configuration must not keep a machine busy building layers.
MAX_LAYERS = 256
MAX_BLOCKS = 16
MAX_TIMESTEPS = 100_000

SDXL_SCHEDULER: Config = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


@dataclass(frozen=True)
class Components:
    """An opened pipeline; the text encoders and the VAE may rest on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    scheduler: Config
    force_zeros: bool

    def module(self, component: str) -> nn.Module:
        """One of the four networks by name."""
        found: nn.Module = getattr(self, component)
        return found

    def config(self, component: str) -> Any:
        """A network's configuration, as its library keeps it."""
        return self.module(component).config

    def pipeline(self) -> StableDiffusionXLPipeline:
        """diffusers' pipeline over these very modules."""
        with quiet_libraries():
            pipeline = StableDiffusionXLPipeline(
                vae=self.vae,
                text_encoder=self.text_encoder,
                text_encoder_2=self.text_encoder_2,
                tokenizer=self.tokenizer,
                tokenizer_2=self.tokenizer_2,
                unet=self.unet,
                scheduler=sampling_scheduler(self.scheduler),
                force_zeros_for_empty_prompt=self.force_zeros,
                add_watermarker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def library_class(library: ModuleType, name: str, base: type) -> Any:
    """The library's class of that name if it is a kind of `base`, else None."""
    found = getattr(library, name, None)
    return found if inspect.isclass(found) and issubclass(found, base) else None


def sampling_scheduler(config: Config) -> Any:
    """The model's own scheduler."""
    name = str(config.get("_class_name", "EulerDiscreteScheduler"))
    found = library_class(diffusers, name, diffusers.SchedulerMixin)
    if found is None:
        raise ModelError(f"the scheduler {name!r} is not one of diffusers'")
    with quiet_libraries():
        return found.from_config(dict(config))


def check_scheduler(config: Config, place: Path) -> None:
    """Refuse a scheduler that cannot be built, and noise of no known size, before it is needed."""
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= MAX_TIMESTEPS:
        raise ModelError(
            f"{place}: num_train_timesteps is {steps!r}; 1 to {MAX_TIMESTEPS} can be trained"
        )
    try:
        sampling_scheduler(config)
        kept = noise_schedule(config).alphas_cumprod
    except Exception as error:  # the libraries check configurations only by failing somewhere
        raise ModelError(f"{place} does not describe a scheduler: {error}") from error
    if not bool(((kept >= 0) & (kept <= 1)).all()):
        raise ModelError(f"{place} describes noise outside of 0 to 1")


def noise_schedule(config: Config) -> DDPMScheduler:
    """The forward process that `config` describes, whatever it samples with."""
    with quiet_libraries():
        return DDPMScheduler.from_config(dict(config))


def empty_component(component: str, config: Config, place: Path) -> nn.Module:
    """A component built from its configuration alone, its weights on the meta device.

    Raises ModelError naming `place` for a configuration that describes no such network.
    """
    try:
        with quiet_libraries(), init_empty_weights(include_buffers=False):
            if component in TEXT_ENCODERS:
                module = CLASSES[component](CLIPTextConfig(**config))
            else:
                module = CLASSES[component].from_config(dict(config))
    except Exception as error:  # the libraries check configurations only by failing somewhere
        raise ModelError(f"{place} does not describe a {component}: {error}") from error
    found: nn.Module = module
    return found


def check_layers(config: Config, place: Path) -> None:
    """Refuse counts of layers that no SDXL has, before anything is built of them."""
    for name, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if "block" in name and len(numbers) > MAX_BLOCKS:
            raise ModelError(f"{place}: {name} has {len(numbers)}; at most {MAX_BLOCKS} are read")
        if "layers" in name and any(
            isinstance(number, int) and not 0 <= number <= MAX_LAYERS for number in numbers
        ):
            raise ModelError(f"{place}: {name} is {value!r}; at most {MAX_LAYERS} are read")


def check_fit(configs: Mapping[str, Config], place: Path) -> None:
    """Refuse what is not SDXL, or whose parts do not belong together."""
    unet, vae = configs["unet"], configs["vae"]
    first, second = (configs[name] for name in TEXT_ENCODERS)
    if unet.get("addition_embed_type") != "text_time":
        raise ModelError(
            f"{place} is not an SDXL model: its UNet takes no size conditioning (text_time)",
            hint="SD 1.x and 2.x cannot be trained here",
        )
    time_width = 6 * int(unet.get("addition_time_embed_dim") or 256)
    pairs = (
        ("the UNet's cross attention", unet.get("cross_attention_dim"),
         "both text encoders", first["hidden_size"] + second["hidden_size"]),
        ("the UNet's size conditioning", unet.get("projection_class_embeddings_input_dim"),
         "six sizes and the pooled text", time_width + second["projection_dim"]),
        ("the UNet's input", unet.get("in_channels"), "the VAE's latents", vae["latent_channels"]),
    )  # fmt: skip
    for one, width, other, needed in pairs:
        if width != needed:
            raise ModelError(
                f"{place} does not fit together: {one} is {width} wide, {other} {needed}",
                hint="inpainting models and refiners cannot be trained here",
            )


def latent_stride(vae: Config) -> int:
    """Pixels of a picture's side for each latent."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))
