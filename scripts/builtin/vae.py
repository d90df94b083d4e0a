"""The autoencoder, /4 with four latent channels: encoder set by hand, decoder trained.

Latents are 4x4 averages of red, green and blue and a slope of brightness, so they are smooth and
quick to learn; the decoder learns on the captioned world and on sketches of anything to draw sharp
edges from them.
"""

import math
from pathlib import Path
from random import Random

import numpy as np
import torch
from clock import Clock
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from sketches import sketch
from torch import Tensor, nn
from world import Pixels, random_scene, random_view, render

SIDE = 64
BATCH = 8
PEAK_RATE = 4e-4
CHANNELS = (16, 32, 64)
CONSTANT = 8.0
QUIET = 0.2
SLOPE = 1.5
LOGVAR = -7.0
LATENT_NOISE = 0.06
EDGE_WEIGHT = 0.5


def new_vae() -> AutoencoderKL:
    """SDXL's autoencoder in miniature. Few norm groups: a group's norm takes away the flat colour
    it holds.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
        force_upcast=False,
    )
    _start_as_average(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


@torch.no_grad()
def _start_as_average(vae: AutoencoderKL) -> None:
    """Make latents averages of the colours and a slope, and decoding repeat the averages.

    Channels 0-2 carry the colours and 3-5 their negatives, for silu(x) - silu(-x) = x; 6 and 7
    carry a constant and its negative, which rule the last norm's deviation and so keep it nearly
    linear; 8 and 9 carry the slope and its negative, made at the second halving. Every other branch
    starts silent.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.eye(10))
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif isinstance(module, Downsample2D):
            _carry(module.conv, torch.eye(8), corner_average=True)
        elif isinstance(module, Upsample2D):
            _carry(module.conv, torch.eye(8))
    signs = torch.cat([torch.eye(3), -torch.eye(3)])
    for half in (vae.encoder, vae.decoder):
        _carry(half.conv_in, signs)
        half.conv_in.weight[6:8], half.conv_in.bias[6], half.conv_in.bias[7] = (
            0,
            CONSTANT,
            -CONSTANT,
        )
        deviation = CONSTANT * math.sqrt(
            2 * vae.config.norm_num_groups / half.conv_norm_out.num_channels
        )
        _carry(half.conv_out, deviation * signs.T)
    _carry_slope(vae)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.out_channels)[..., None, None])
        conv.bias.zero_()
    vae.encoder.conv_out.weight[4:] = 0
    vae.encoder.conv_out.bias[4:] = LOGVAR


def _carry(conv: nn.Conv2d, matrix: Tensor, corner_average: bool = False) -> None:
    """Let the first channels pass through `matrix`, at the middle tap or as the mean of a 2x2
    corner; quiet the rest.
    """
    rows, cols = matrix.shape
    conv.weight.mul_(QUIET)
    conv.weight[:rows], conv.bias[:rows] = 0, 0
    if corner_average:
        conv.weight[:rows, :cols, :2, :2] = matrix[..., None, None] / 4
    else:
        middle = conv.kernel_size[0] // 2
        conv.weight[:rows, :cols, middle, middle] = matrix


def _carry_slope(vae: AutoencoderKL) -> None:
    """Make the fourth latent the brightness of a cell's upper left less that of its lower right."""
    conv, out = vae.encoder.down_blocks[1].downsamplers[0].conv, vae.encoder.conv_out
    conv.weight[8:10], conv.bias[8:10] = 0, 0
    for channel, sign in ((8, 1.0), (9, -1.0)):
        conv.weight[channel, :3, 0, 0], conv.weight[channel, :3, 1, 1] = (
            sign * SLOPE / 3,
            -sign * SLOPE / 3,
        )
    deviation = CONSTANT * math.sqrt(2 * vae.config.norm_num_groups / out.in_channels)
    out.weight[3], out.bias[3] = 0, 0
    out.weight[3, 8, 1, 1], out.weight[3, 9, 1, 1] = deviation, -deviation


def to_tensor(pictures: list[Pixels]) -> Tensor:
    """Pictures as float32 [n, 3, height, width] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(batch: Tensor) -> list[Pixels]:
    """The inverse of `to_tensor`, clipped."""
    scaled = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy())


def world_pictures(random: Random, count: int, held_out: bool = False) -> Tensor:
    """Pictures of the captioned world, any view."""
    return to_tensor(
        [
            render(random_scene(random, held_out), random_view(random, SIDE), random)
            for _ in range(count)
        ]
    )


def sketch_pictures(random: Random, count: int) -> Tensor:
    """Pictures of anything."""
    return to_tensor([sketch(random, SIDE) for _ in range(count)])


def _edges(batch: Tensor) -> tuple[Tensor, Tensor]:
    return batch.diff(dim=-1), batch.diff(dim=-2)


def _loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences (sharp edges); latents are as noisy as a denoiser
    leaves them.
    """
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.sample()
        latents += (
            LATENT_NOISE
            * torch.rand(len(latents), 1, 1, 1, device=latents.device)
            * torch.randn_like(latents)
        )
    rebuilt = vae.decode(latents).sample.float()
    pixel = (rebuilt - pictures).abs().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(_edges(rebuilt), _edges(pictures), strict=True))
    return pixel + EDGE_WEIGHT * edge


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures of the reconstruction's peak signal-to-noise ratio, dB."""
    device = next(vae.parameters()).device
    rebuilt = vae.decode(vae.encode(pictures.to(device)).latent_dist.mode()).sample.cpu()
    squared = ((rebuilt.clamp(-1, 1) - pictures) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * squared.log10()).mean())


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, seed: int) -> None:
    """Make the latents of the world have unit deviation, which the noise schedule takes for
    granted.
    """
    device = next(vae.parameters()).device
    latents = vae.encode(world_pictures(Random(seed), 64).to(device)).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))


def _trained(vae: AutoencoderKL) -> list[nn.Parameter]:
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def train_vae(minutes: float, seed: int, device: str, work: Path) -> AutoencoderKL:
    """The trained autoencoder; a snapshot in `work`/vae is written every minute and trained on if
    there.
    """
    torch.manual_seed(seed)
    saved = work / "vae-progress.pt"
    vae = new_vae().to(device)
    set_scaling_factor(vae, seed)
    optimizer = torch.optim.AdamW(_trained(vae), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    clock, step = Clock(minutes), 0
    if saved.exists():
        state = torch.load(saved, map_location=device)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        clock, step = Clock(minutes, worked_before=state["seconds"]), state["step"]
    random, snapshot_at = Random(f"{seed}/{step}"), clock.seconds + 60
    held_out = world_pictures(Random(seed + 1), 32, held_out=True)
    other = sketch_pictures(Random(seed + 2), 32)
    while clock.share < 1:
        pictures = torch.cat(
            [world_pictures(random, BATCH // 2), sketch_pictures(random, BATCH // 2)]
        ).to(device)
        optimizer.param_groups[0]["lr"] = clock.rate(PEAK_RATE, step)
        with torch.autocast(device, torch.bfloat16):
            loss = _loss(vae, pictures)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(_trained(vae), 1.0)
        optimizer.step()
        step += 1
        if clock.seconds > snapshot_at or clock.share == 1:
            snapshot_at = clock.seconds + 60
            world_db, other_db = psnr(vae, held_out), psnr(vae, other)
            print(
                f"vae {clock.seconds:5.0f} s  step {step}  loss {loss:.4f}  "
                f"world {world_db:.1f} dB  sketches {other_db:.1f} dB",
                flush=True,
            )
            progress = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "seconds": clock.seconds,
                "step": step,
            }
            torch.save(progress, saved)
            vae.save_pretrained(work / "vae-snapshot")
    vae.save_pretrained(work / "vae")
    return vae
