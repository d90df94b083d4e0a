"""Low-bit state beside that of other libraries: as near to exact AdamW, or nearer."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim import AdamW

SHAPE = (64, 512)
STEPS = 40


def grads() -> list[Tensor]:
    """Rows and columns of different sizes, as real matrices have them."""
    generator = torch.Generator().manual_seed(0)
    row = torch.exp(torch.randn(SHAPE[0], 1, generator=generator))
    col = torch.exp(torch.randn(1, SHAPE[1], generator=generator))
    drift = 0.3 * torch.randn(SHAPE, generator=generator)
    return [row * col * (drift + torch.randn(SHAPE, generator=generator)) for _ in range(STEPS)]


def update(make) -> Tensor:
    """The last step's change of fp32 weights."""
    weights = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = make([weights])
    before = weights.detach().clone()
    for grad in grads():
        before = weights.detach().clone()
        weights.grad = grad.clone()
        optimizer.step()
    return weights.detach() - before


def fidelity(found: Tensor) -> float:
    exact = update(lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0))
    return torch.cosine_similarity(found.flatten(), exact.flatten(), 0).item()


def ours(storage: str) -> float:
    return fidelity(update(lambda p: AdamW(p, lr=1e-3, weight_decay=0.0, storage=storage)))


def test_int8_is_as_near_as_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    theirs = fidelity(
        update(lambda p: bnb.optim.AdamW8bit(p, lr=1e-3, weight_decay=0.0, min_8bit_size=1))
    )
    assert theirs > 0.98  # it does work on this machine
    assert ours("int8") > theirs - 0.01


def test_four_bits_are_nearer_than_those_of_torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao")
        from torchao.optim.adam import _AdamBase  # noqa: F401
        from torchao.optim.subclass_4bit import OptimState4bit

    def stored(value: Tensor, signed: bool) -> Tensor:
        kept = OptimState4bit.zeros(SHAPE, signed)
        return kept.copy_(value).dequantize()

    first, second = torch.zeros(SHAPE), torch.zeros(SHAPE)
    for step, grad in enumerate(grads(), 1):  # AdamW whose moments go through torchao's four bits
        first, second = first.lerp(grad, 0.1), second.lerp(grad.square(), 0.001)
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        change = -1e-3 * first / (1 - 0.9**step) / root
        first, second = stored(first, True), stored(second, False)
    theirs = fidelity(change)
    assert theirs > 0.5
    assert ours("factored_4bit") > theirs
