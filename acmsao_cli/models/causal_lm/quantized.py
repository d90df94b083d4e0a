"""A frozen base in 4 bits (QLoRA, arXiv:2305.14314), through bitsandbytes.

Linear layers but the output head are stored as nf4 with doubly quantised scales: half a byte a
weight, a scale for each 64 of them. bitsandbytes is imported only where a recipe asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.errors import ModelError

# nf4: weights for each scale, and scales for each second-level scale.
WEIGHTS_PER_SCALE = 64
SCALES_PER_SCALE = 256


def nf4_config(compute: torch.dtype) -> Any:
    """The library's configuration; raises ModelError where bitsandbytes does not load."""
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except Exception as error:  # a build that does not fit the driver fails in many ways
        raise ModelError(
            f"model.quantize=nf4 needs bitsandbytes, which does not load here: {error}",
            hint="install a bitsandbytes for this machine, or set model.quantize=none",
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking weights for the CPU when the model first answers.

    It fails for layers whose width is no multiple of 64, and training then computes with others.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class PackedLinear(nn.Linear):
    """On the meta device, the storages of a 4-bit layer and of its forward and backward.

    bitsandbytes cannot build its layers there. The packed weight and both levels of scales are
    kept; the weight is unpacked for each product and let go after it.
    """

    weight: nn.Parameter

    def __init__(self, dense: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        count = dense.weight.numel()
        scales = -(-count // WEIGHTS_PER_SCALE)

        def packed(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        self.weight = nn.Parameter(packed(-(-count // 2), 1, dtype=torch.uint8), False)
        self.register_buffer("scales", packed(scales, dtype=torch.uint8))
        second = -(-scales // SCALES_PER_SCALE)
        self.register_buffer("scale_scales", packed(second, dtype=torch.float32))
        self.bias = dense.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the input's dtype."""
        product: Tensor = _UnpackedProduct.apply(input, self.out_features)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _UnpackedProduct(torch.autograd.Function):
    """Allocates what a product with an unpacked weight allocates; the weight is not kept."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, out_features: int) -> Tensor:
        ctx.shape, ctx.out_features = value.shape, out_features
        unpacked = value.new_empty((out_features, value.shape[-1]))
        return value @ unpacked.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unpacked = gradients[0].new_empty((ctx.out_features, ctx.shape[-1]))
        return gradients[0] @ unpacked, None


def pack_on_meta(model: Any) -> None:
    """Put 4-bit stand-ins in the place of a meta model's linear layers, but for its head."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, PackedLinear(child))
