"""Sets of parameter shapes as models have them, and the whole SDXL UNet without its weights."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import UNet2DConditionModel
from torch import nn

Shape = tuple[int, ...]

RANK = 16

# A part of SDXL's UNet: convolutions of each level, one transformer block of width 1280.
SDXL: tuple[Shape, ...] = (
    (1280, 1280, 3, 3),
    (640, 640, 3, 3),
    (640, 320, 3, 3),
    (320, 320, 3, 3),
    (320, 4, 3, 3),
    *[(1280, 1280)] * 6,
    *[(1280, 2048)] * 2,
    (10240, 1280),
    (1280, 5120),
    *[(640, 640)] * 4,
    (10240,),
    *[(1280,)] * 14,
    *[(640,)] * 8,
    *[(320,)] * 8,
)

# One layer of Llama 3.2 1B.
LLAMA: tuple[Shape, ...] = (
    (2048, 2048),
    (512, 2048),
    (512, 2048),
    (2048, 2048),
    (8192, 2048),
    (8192, 2048),
    (2048, 8192),
    (2048,),
    (2048,),
)


@cache
def sdxl_unet() -> UNet2DConditionModel:
    """The architecture of stable-diffusion-xl-base-1.0, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def sdxl_unet_shapes() -> list[Shape]:
    """All 1,680 parameters, 2,567,463,684 elements."""
    return [tuple(parameter.shape) for parameter in sdxl_unet().parameters()]


def sdxl_lora_shapes() -> list[Shape]:
    """Rank 16 on every linear layer of the UNet's transformers: pairs (16, in), (out, 16)."""
    layers = [
        layer
        for name, layer in sdxl_unet().named_modules()
        if isinstance(layer, nn.Linear) and "attentions" in name
    ]
    return [
        shape
        for layer in layers
        for shape in ((RANK, layer.in_features), (layer.out_features, RANK))
    ]


def shape_set(name: str) -> list[Shape]:
    """`sdxl`, `llama` or `lora`; `small` is for trying the benchmark itself."""
    if name == "lora":
        return sdxl_lora_shapes()
    small: tuple[Shape, ...] = ((64, 64), (96, 32), (16, 16, 3, 3), (64,))
    return list({"sdxl": SDXL, "llama": LLAMA, "small": small}[name])


SETS = {
    "sdxl": "part of SDXL's UNet: convolutions of each level, a transformer block of width 1280",
    "llama": "one layer of Llama 3.2 1B",
    "lora": "LoRA of rank 16 on every transformer linear of SDXL's UNet",
    "small": "a few small tensors, to try the benchmark",
}
