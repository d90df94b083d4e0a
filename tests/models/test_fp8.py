"""Layers kept in 8-bit floats compute what dense layers of the same weights compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from acmsao_cli.models.fp8 import fp8_layer, pack, unpack
from acmsao_cli.models.packed import unpacked_weight

LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(24, 40), (2, 5, 24)),
    (lambda: nn.Linear(24, 40, bias=False), (3, 24)),
    (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 10, 6)),
    (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (2, 8, 9, 7)),
    (lambda: nn.Conv2d(8, 12, 1, bias=False), (2, 8, 5, 5)),
]


@given(st.integers(0, 10_000), st.sampled_from([1e-30, 1e-6, 1.0, 1e6]))
def test_a_weight_comes_back_within_a_sixteenth_of_itself(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 33, generator=generator) * size
    error = (unpack(*pack(weight), torch.float32) - weight).abs()
    smallest = weight.abs().amax(1, keepdim=True) / 448 * 2**-10
    assert (error <= weight.abs() / 16 * (1 + 1e-5) + smallest * (1 + 1e-5)).all()


def test_packing_what_was_unpacked_changes_nothing() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    once = unpack(*pack(weight), torch.float32)
    torch.testing.assert_close(unpack(*pack(once), torch.float32), once, rtol=1e-6, atol=0)


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.randn(3, 5)
    weight[1] = 0
    assert not unpack(*pack(weight), torch.float32)[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_products_and_gradients_are_those_of_the_dense_layer(
    build: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    dense = build().to(dtype).requires_grad_(False)
    packed = fp8_layer(dense)
    assert packed is not None
    assert packed.weight.shape == dense.weight.shape
    dense.weight.copy_(packed.unpacked(dtype))
    values = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2)]
    values[1].data.copy_(values[0])
    outputs = [layer(value) for layer, value in zip((packed, dense), values, strict=True)]
    assert torch.equal(*outputs)
    upstream = torch.randn(outputs[0].shape).to(dtype)
    for output in outputs:
        output.backward(upstream)
    assert torch.equal(values[0].grad, values[1].grad)


def test_a_cast_of_the_model_leaves_the_bytes_alone() -> None:
    packed = fp8_layer(nn.Linear(8, 8))
    before = packed.weight.clone()
    assert torch.equal(packed.to(torch.bfloat16).weight, before)


def test_no_dense_weight_is_kept_for_the_backward() -> None:
    kept: list[torch.Size] = []
    packed = fp8_layer(nn.Linear(64, 48))
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.shape), lambda _: _):
        packed(torch.randn(2, 64, requires_grad=True))
    assert kept == []


def test_bytes_that_wait_elsewhere_are_unpacked_where_the_scales_are() -> None:
    layer = fp8_layer(nn.Linear(8, 4))
    layer.scale = layer.scale.to("meta")  # stands in for another device
    assert unpacked_weight(layer).device.type == "meta"
