"""A language model's frozen base in 4 or 8 bits: its linear layers but the output head."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from acmsao_cli.models.packed import Int8Linear, PackedLinear, bitsandbytes_for, replace_layers

Quantize = Literal["none", "nf4", "int8"]


def loading_config(quantize: Quantize, compute: torch.dtype) -> Any:
    """What transformers is told to load packed, None for nothing. Raises ModelError."""
    if quantize == "none":
        return None
    bitsandbytes_for(quantize)
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def pack_on_meta(model: Any, quantize: Quantize) -> None:
    """Put stand-ins in the place of the layers of a meta model that would be loaded packed."""
    head = model.get_output_embeddings()
    if quantize == "none":
        return
    stand_in = PackedLinear if quantize == "nf4" else Int8Linear

    def packed(layer: nn.Module) -> nn.Module | None:
        return stand_in(layer) if type(layer) is nn.Linear and layer is not head else None

    replace_layers(model, packed)
