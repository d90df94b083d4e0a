"""Pictures and captions, computed once into what training reads again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import ImageExample
from acmsao_cli.data.images import FittedImage, open_and_fit
from acmsao_cli.data.randomness import Draw
from acmsao_cli.data.workers import Job
from acmsao_cli.errors import ModelError


@dataclass(frozen=True)
class Posterior:
    """A picture's latents as the VAE's normal distribution, scaled for the UNet.

    fp16 [channels, height, width] each: a thousandth of the noise added to them in training.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self, draw: Draw) -> Tensor:
        """fp32 latents with the draw's noise."""
        noise = draw.normal("posterior", tuple(self.mean.shape))
        return self.mean.float() + self.deviation.float() * noise


@dataclass(frozen=True)
class Item:
    """An encoded example: one posterior, or two where the picture may be mirrored."""

    orientations: tuple[Posterior, ...]
    time_ids: tuple[int, ...]
    caption: str


def pixels(image: Image.Image) -> Tensor:
    """fp32 [1, 3, height, width] in -1..1."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def posterior(vae: AutoencoderKL, image: Image.Image) -> Posterior:
    """What the VAE makes of a picture, in the UNet's scale."""
    found = vae.encode(pixels(image).to(vae.device, vae.dtype)).latent_dist
    scale, shift = latent_scale(vae.config)
    scale, shift = scale.to(found.mean.device), shift.to(found.mean.device)
    mean, deviation = (found.mean - shift) * scale, found.std * scale
    return Posterior(mean[0].half().cpu(), deviation[0].half().cpu())


def latent_scale(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(scale, shift), [1, channels or 1, 1, 1]: the UNet sees (latents - shift) * scale."""
    scale = torch.full((1, 1, 1, 1), float(config["scaling_factor"]))
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return scale, torch.zeros(1, 1, 1, 1)
    return scale / torch.tensor(deviation).view(1, -1, 1, 1), torch.tensor(mean).view(1, -1, 1, 1)


def fitting(example: ImageExample, data: ImageData) -> Job[FittedImage]:
    """Decode a picture and fit it to its bucket: what needs no model."""
    settings = data.resolution, data.buckets, data.bucket_step
    return Job(example.place, partial(open_and_fit, example.open, *settings))


def encode_picture(
    vae: AutoencoderKL, example: ImageExample, fitted: FittedImage, *, flip: bool
) -> Item:
    """Encode an example's picture; mirrored too if the recipe may ask for that.

    `time_ids` are in the order of diffusers: original size, crop, target size; (height, width)
    and (top, left). The crop is central, so the mirrored picture has the same. Raises ModelError
    for numbers that are not finite.
    """
    views = [fitted.image, ImageOps.mirror(fitted.image)] if flip else [fitted.image]
    orientations = tuple(posterior(vae, view) for view in views)
    found = [part for one in orientations for part in (one.mean, one.deviation)]
    if not all(bool(part.isfinite().all()) for part in found):
        raise ModelError(
            f"the VAE makes numbers that are not finite of {example.place}",
            hint="its weights are damaged, or the picture is not what it seems",
        )
    return Item(
        orientations,
        (*fitted.original_size, *fitted.crop, *fitted.target_size),
        example.caption,
    )


def stack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Equal shapes, stacked along a new first axis on `device`."""
    return torch.stack(list(tensors)).to(device)
