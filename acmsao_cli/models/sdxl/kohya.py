"""LoRA files as kohya's trainer writes them, which ComfyUI, A1111, Forge and diffusers load.

    <prefix><module's original name, dots as underscores>.lora_down.weight | .lora_up.weight
                                                         .alpha | .dora_scale

`alpha` is such that up @ down * alpha / rank is the change of the weight, also for rsLoRA.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.sdxl.components import Components
from acmsao_cli.models.sdxl.layout import clip_name, unet_name

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def kohya_weights(parts: Components) -> dict[str, Tensor]:
    """Every adapter of the pipeline under kohya's names."""
    found: dict[str, Tensor] = {}
    for component, prefix in PREFIXES.items():
        config = parts.config(component)
        for name, layer in adapted_layers(parts.module(component)):
            original = unet_name(name, config) if component == "unet" else clip_name(name)
            stem = prefix + original.replace(".", "_")
            found |= {f"{stem}.{part}": weight for part, weight in _layer_weights(layer).items()}
    return found


def effective_alpha(layer: LoraLayer) -> float:
    """The alpha for which alpha / rank is the adapter's scale."""
    return float(layer.scaling[ADAPTER]) * int(layer.r[ADAPTER])


def _layer_weights(layer: LoraLayer) -> Mapping[str, Tensor]:
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    weights = {
        "lora_down.weight": down,
        "lora_up.weight": up,
        "alpha": torch.tensor(effective_alpha(layer)),
    }
    if ADAPTER in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        weights["dora_scale"] = magnitude.reshape(-1, *[1] * (up.dim() - 1))
    return weights
