"""Frozen weights in 4 or 8 bits through bitsandbytes, which is imported only where it is asked for.

nf4 (QLoRA, arXiv:2305.14314): half a byte a weight, a scale for each 64 of them, the scales
themselves in 8 bits. int8 (LLM.int8, arXiv:2208.07339): a byte a weight, an fp32 scale for each
row. What the libraries build on a device, classes here stand for on the meta device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.errors import ModelError
from acmsao_cli.models.fp8 import Fp8Layer

# nf4: weights for each scale, and scales for each second-level scale.
WEIGHTS_PER_SCALE = 64
SCALES_PER_SCALE = 256
INT8_STEPS = 127


def bitsandbytes_for(quantize: str) -> Any:
    """The library, told not to speak at every product; raises ModelError where it does not load."""
    try:
        import bitsandbytes
    except Exception as error:  # a build that does not fit the driver fails in many ways
        raise ModelError(
            f"model.quantize={quantize} needs bitsandbytes, which does not load here: {error}",
            hint="install a bitsandbytes for this machine, or set model.quantize=none",
        ) from error
    # Each int8 product of inputs that are not fp16 would warn that they are cast.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights for the CPU when the model first answers.

    It fails for layers whose width is no multiple of 64, and training then computes with others.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def nf4_linear(dense: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    """`dense` as bitsandbytes' layer, packed on `device`; on the meta device its stand-in."""
    if device.type == "meta":
        return PackedLinear(dense)
    library = bitsandbytes_for("nf4")
    kind = {"compress_statistics": True, "quant_type": "nf4"}
    layer: nn.Module = library.nn.Linear4bit(
        dense.in_features,
        dense.out_features,
        bias=dense.bias is not None,
        compute_dtype=compute,
        device="meta",
        **kind,
    )
    weight = library.nn.Params4bit(dense.weight.detach(), module=layer, **kind)
    layer.weight, layer.bias = weight.to(device), dense.bias
    return layer


@torch.no_grad()
def unpacked_weight(layer: nn.Module) -> Tensor:
    """The fp32 matrix that a layer computes with, however it is kept; fresh.

    It is on the layer's device: where the scales are, if packed bytes wait in the host's memory.
    """
    if isinstance(layer, Fp8Layer):
        return layer.unpacked(torch.float32)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if (state := getattr(weight, "quant_state", None)) is not None:
        library = bitsandbytes_for("nf4")
        unpacked: Tensor = library.functional.dequantize_4bit(
            weight.data.to(state.absmax.device), state
        )
        return unpacked.float()
    if weight.dtype is torch.int8:
        kept = getattr(weight, "SCB", None)  # moved to the layer's state by the first product
        state = layer.state
        scale: Any = getattr(state, "SCB", None) if kept is None else kept
        dense: Tensor = weight.data.float() * (scale.unsqueeze(1) / INT8_STEPS)
        return dense
    return weight.detach().float().clone()


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
        self.weight = nn.Parameter(_on_meta(-(-count // 2), 1, dtype=torch.uint8), False)
        self.register_buffer("scales", _on_meta(scales, dtype=torch.uint8))
        second = -(-scales // SCALES_PER_SCALE)
        self.register_buffer("scale_scales", _on_meta(second, dtype=torch.float32))
        self.bias = dense.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the input's dtype."""
        product: Tensor = _UnpackedProduct.apply(input, self.out_features)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class Int8Linear(nn.Linear):
    """On the meta device, the storages of an 8-bit layer and of its forward and backward."""

    weight: nn.Parameter

    def __init__(self, dense: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        shape = self.out_features, self.in_features
        self.weight = nn.Parameter(_on_meta(*shape, dtype=torch.int8), False)
        self.register_buffer("scales", _on_meta(self.out_features, dtype=torch.float32))
        self.bias = dense.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the input's dtype."""
        product: Tensor = _Int8Product.apply(input, self.out_features)  # type: ignore[no-untyped-call]
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


class _Int8Product(torch.autograd.Function):
    """Allocates in turn what the library's two products do, so the peak is the higher one's.

    On the CPU the weight is unpacked; on CUDA the input is rounded to int8 and multiplied into
    int32. Both keep the input until the backward, which unpacks the weight.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, out_features: int) -> Tensor:
        ctx.value, ctx.out_features = value, out_features
        product = _UnpackedProduct.forward(ctx, value, out_features)
        half = value.to(torch.float16)
        rounded = half.to(torch.int8)
        del half
        sums = product.new_empty(product.shape, dtype=torch.int32)
        product.new_empty(product.shape, dtype=torch.float16)
        del rounded, sums
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _UnpackedProduct.backward(ctx, *gradients)


def _on_meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def replace_layers(model: nn.Module, packed: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put `packed(layer)` in the place of each layer of `model` for which it is not None.

    No layer is held longer than it takes to pack it.
    """
    for module in model.modules():
        for name in [name for name, _ in module.named_children()]:
            replacement = packed(getattr(module, name))
            if replacement is not None:
                setattr(module, name, replacement)
