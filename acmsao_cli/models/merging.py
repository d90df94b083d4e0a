"""Adapters folded into the weights they were trained on.

The base is the very one of the training: where that is packed, what its bytes unpack to, not the
weights it was packed from, to which the adapters were never fitted. Sums are fp32 and rounded
once, by whoever writes them; peft's own merge would pack the sum again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.packed import unpacked_weight

BASE = "base_layer"


@torch.no_grad()
def merged_weight(layer: LoraLayer) -> Tensor:
    """What the layer multiplies with, fp32 in the base weight's shape; DoRA sets its row norms."""
    total = unpacked_weight(layer.get_base_layer())
    total += layer.get_delta_weight(ADAPTER).to(total)
    if ADAPTER not in layer.lora_magnitude_vector:
        return total
    outputs = 1 if getattr(layer, "fan_in_fan_out", False) else 0
    others = [dim for dim in range(total.dim()) if dim != outputs]
    norm = torch.linalg.vector_norm(total, dim=others, keepdim=True)
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight
    total *= magnitude.detach().to(total).reshape(norm.shape) / norm
    return total


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the dense model that computes what `model` does, under its plain name.

    One at a time, fp32 where it was merged or unpacked; a weight that two layers share stands once,
    unless one of the two was adapted.
    """
    layers = dict(adapted_layers(model))
    adapters = {
        module
        for layer in layers.values()
        for name, child in layer.named_children()
        if name != BASE
        for module in child.modules()
    }
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        plain = name.removesuffix(f".{BASE}")
        if module in adapters:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if key == "weight" and plain in layers:
                yield f"{plain}.{key}", merged_weight(layers[plain])
            elif parameter not in seen:
                dense = parameter.is_floating_point()
                yield f"{plain}.{key}", parameter.detach() if dense else unpacked_weight(module)
                seen.add(parameter)
