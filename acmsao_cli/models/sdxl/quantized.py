"""The UNet's frozen base in 8 or 4 bits.

What is packed are the layers of its blocks: with fp8 linear ones and convolutions, with nf4 linear
ones alone. Input and output convolutions, embeddings, norms and biases stay dense: they are few
and small. So do the text encoders, which are on the device only where they are trained.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from acmsao_cli.models.fp8 import fp8_layer
from acmsao_cli.models.packed import bitsandbytes_for, keep_layout, nf4_linear, replace_layers

Quantize = Literal["none", "fp8", "nf4"]


def check_loads(quantize: Quantize) -> None:
    """Raise ModelError where what packs does not load, before any weight is read."""
    if quantize == "nf4":
        bitsandbytes_for(quantize)


@torch.no_grad()
def pack_unet(
    unet: UNet2DConditionModel, quantize: Quantize, device: torch.device, dtype: torch.dtype
) -> None:
    """Pack the layers of the blocks in place, each on `device`, where one at a time is dense.

    On the meta device they are what the planner traces.
    """

    def packed(layer: nn.Module) -> nn.Module | None:
        if quantize == "fp8":
            return fp8_layer(layer.to(device)) if type(layer) in (nn.Linear, nn.Conv2d) else None
        return nf4_linear(layer, device, dtype) if type(layer) is nn.Linear else None

    if quantize == "none":
        return
    for blocks in (unet.down_blocks, unet.mid_block, unet.up_blocks):
        replace_layers(blocks, packed)
    keep_layout(unet)
