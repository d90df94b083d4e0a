"""Pictures of the recipe's prompts with the weights as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from acmsao_cli.config.sdxl import ImageSamples
from acmsao_cli.models.base import Sample
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.components import Components
from acmsao_cli.models.sdxl.encode import latent_scale


@contextlib.contextmanager
def visiting(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules in eval mode on `device`; modes, devices and random streams are put back."""
    modes = [{part: part.training for part in module.modules()} for module in modules]
    homes = [next(module.parameters()).device for module in modules]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        try:
            for module in modules:
                module.eval().to(device)
            yield
        finally:
            for module, mode, home in zip(modules, modes, homes, strict=True):
                module.to(home)
                for part, training in mode.items():
                    part.training = training
            if cuda:
                torch.cuda.empty_cache()  # what the visit needed would count against the training


def draw_samples(
    parts: Components, samples: ImageSamples, resolution: int, device: torch.device
) -> Iterator[Sample]:
    """One picture for each prompt; the n-th has seed + n, whatever the device.

    All latents come before all pictures: decoding needs the memory that the text encoders took.
    Everything is back in its place before each picture is handed out.
    """
    pipeline = parts.pipeline()
    networks = [parts.unet, parts.vae, parts.text_encoder, parts.text_encoder_2]
    with visiting(networks, device), quiet_libraries():
        latents = [
            pipeline(
                prompt,
                width=samples.width or resolution,
                height=samples.height or resolution,
                num_inference_steps=samples.steps,
                guidance_scale=samples.guidance,
                generator=torch.Generator().manual_seed(samples.seed + number),
                output_type="latent",
            ).images
            for number, prompt in enumerate(samples.prompts)
        ]
    for prompt, drawn in zip(samples.prompts, latents, strict=True):
        with visiting([parts.vae], device):
            image = _decode(parts.vae, drawn)
        yield Sample(prompt, image=image)


def _decode(vae: AutoencoderKL, latents: Tensor) -> Image.Image:
    """The pipeline would decode in the UNet's dtype; the VAE is fp32 here."""
    scale, shift = latent_scale(vae.config)
    latents = latents.float() / scale.to(latents.device) + shift.to(latents.device)
    decoded = vae.decode(latents).sample[0]
    array = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
