"""Frozen weights in 8-bit floats (e4m3, arXiv:2209.05433) with an fp32 scale for each output.

A weight is rounded to one part in 16 of itself or better, unless it is 2^-15 of its row's largest
or less. Products are computed in the input's dtype with the weight unpacked for that one product:
the backward unpacks it again, so no dense weight outlives a layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, ...) -> the bytes of its 8-bit floats, in its shape, and fp32 scales (rows, 1, ...).

    Each row is scaled so that its largest weight is the format's largest number.
    """
    exact = weight.detach().float()
    largest = exact.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1))
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (exact / scale).to(FORMAT).view(torch.uint8), scale


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights that `pack` kept, rounded once to `dtype`."""
    return packed.view(FORMAT).to(dtype).mul_(scale)


class Fp8Layer(nn.Module):
    """A layer whose `weight` is kept as bytes: a float dtype would follow a module's casts."""

    weight: Tensor
    scale: Tensor

    def keep(self, weight: Tensor) -> None:
        """Pack `weight` where it lies."""
        packed, scale = pack(weight)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", scale)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight that this layer computes with, fresh, where its scales are.

        The bytes themselves may wait in the host's memory.
        """
        return unpack(self.weight.to(self.scale.device), self.scale, dtype)

    @abstractmethod
    def product(self, value: Tensor, weight: Tensor) -> Tensor:
        """The layer's output."""

    @abstractmethod
    def input_gradient(self, gradient: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the input, whose shape is given."""

    def forward(self, input: Tensor) -> Tensor:
        """As of the dense layer, in the input's dtype; neither weight nor bias has a gradient."""
        product: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """Keeps the layer itself: its weight is asked for where and as it then is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, layer: Fp8Layer) -> Tensor:
        ctx.layer, ctx.shape = layer, value.shape
        return layer.product(value, layer.unpacked(value.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        weight = ctx.layer.unpacked(gradient.dtype)
        return ctx.layer.input_gradient(gradient, weight, ctx.shape), None


class Fp8Linear(Fp8Layer, nn.Linear):
    """A linear layer, (..., in_features) -> (..., out_features)."""

    def __init__(self, dense: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.bias = dense.bias
        self.keep(dense.weight)

    def product(self, value: Tensor, weight: Tensor) -> Tensor:
        """See `Fp8Layer`."""
        return functional.linear(value, weight, self.bias)

    def input_gradient(self, gradient: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Fp8Layer`."""
        return gradient @ weight


class Fp8Conv2d(Fp8Layer, nn.Conv2d):
    """A convolution, (batch, in, height, width) -> (batch, out, height, width)."""

    def __new__(cls, *given: Any, **options: Any) -> Any:
        """peft makes an adapter's convolutions by its layer's class: those are ordinary ones."""
        if given and not isinstance(given[0], nn.Conv2d):
            return nn.Conv2d(*given, **options)
        return super().__new__(cls)

    def __init__(self, dense: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        geometry = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        for name in (*geometry, "transposed", "output_padding", "groups", "padding_mode"):
            setattr(self, name, getattr(dense, name))
        self.bias = dense.bias
        self.keep(dense.weight)

    def product(self, value: Tensor, weight: Tensor) -> Tensor:
        """See `Fp8Layer`."""
        product: Tensor = self._conv_forward(value, weight, self.bias)
        return product

    def input_gradient(self, gradient: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Fp8Layer`."""
        stride, padding, dilation = self.stride, self.padding, self.dilation
        groups = self.groups
        found: Tensor = conv2d_input(shape, weight, gradient, stride, padding, dilation, groups)
        return found


def fp8_layer(dense: nn.Module) -> Fp8Layer | None:
    """`dense` with its weight packed where it lies; None for what has no 8-bit form here."""
    if type(dense) is nn.Linear:
        return Fp8Linear(dense)
    if type(dense) is nn.Conv2d and dense.padding_mode == "zeros":
        return Fp8Conv2d(dense)
    return None
