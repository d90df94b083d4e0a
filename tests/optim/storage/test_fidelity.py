"""Updates from compressed states stay near exact AdamW's, and small whatever the gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from optim.storage.kept import CPU, noise
from torch import Tensor, nn

from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.codec import Cell
from acmsao_cli.optim.storage.policy import named_storage

BETAS, EPS = (0.9, 0.999), 1e-8
STEPS, COUNTED = 90, 60
SLOTS = (
    Slot("mean_square", Role.POSITIVE),
    Slot("momentum", Role.SIGNED, unit="mean_square"),
)


@pytest.fixture(scope="module")
def gradients() -> Tensor:
    """Of the middle layer of a small network that learns, in batches: (steps, 1, 96, 96)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 8)
    )
    teacher = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(100 + STEPS):
        x = torch.randn(64, 32)
        loss = nn.functional.cross_entropy(model(x), teacher(x).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        found.append(model[2].weight.grad.clone())
        optimizer.step()
    return torch.stack(found[100:]).unsqueeze(1)


def updates(name: str, stream: Tensor) -> Iterator[Tensor]:
    """AdamW on averages that are always corrected (arXiv:1804.04235, 7.1), kept in a storage."""
    storage = named_storage(name)
    codecs = [storage.codec(slot) for slot in SLOTS]
    kept = [codec.allocate(stream.shape[1:], CPU) for codec in codecs]
    for step, grad in enumerate(stream, start=1):
        square = Cell(codecs[0], kept[0], noise(1, step * 77).stream(1))
        momentum = Cell(codecs[1], kept[1], noise(1, step * 77).stream(2), square)
        share1, share2 = ((1 - beta) / (1 - beta**step) for beta in BETAS)
        v = square.read().lerp(grad.square(), share2)
        square.write(v)
        m = momentum.read().lerp(grad, share1)
        momentum.write(m)
        momentum.close()
        yield m / (v.sqrt() + EPS)


def exact_updates(stream: Tensor) -> Iterator[Tensor]:
    """AdamW in fp64 as its paper has it (arXiv:1711.05101)."""
    m = v = torch.zeros(stream.shape[1:], dtype=torch.float64)
    for step, grad in enumerate(stream.double(), start=1):
        m = BETAS[0] * m + (1 - BETAS[0]) * grad
        v = BETAS[1] * v + (1 - BETAS[1]) * grad.square()
        yield m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)


def cosine(name: str, stream: Tensor) -> float:
    """Mean with fp64 AdamW over the last steps."""
    pairs = zip(updates(name, stream), exact_updates(stream), strict=True)
    found = [
        torch.cosine_similarity(update.double().flatten(), exact.flatten(), 0)
        for update, exact in pairs
    ]
    return float(torch.stack(found[-COUNTED:]).mean())


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("factored", 0.69),
        ("factored_2bit", 0.79),
        ("factored_4bit", 0.95),
        ("factored_8bit", 0.97),
        ("factored_second", 0.97),
        ("int8", 0.99),
    ],
)
def test_updates_point_where_exact_ones_do(name: str, least: float, gradients: Tensor) -> None:
    assert cosine(name, gradients) >= least


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("factored_4bit", (0.76, 0.64, 0.64)),
        ("factored_8bit", (0.99, 0.97, 0.97)),
        ("int8", (0.99, 0.97, 0.97)),
        ("factored_second", (0.99, 0.99, 0.99)),
        ("bf16", (0.99, 0.99, 0.99)),
    ],
)
def test_a_slow_average_without_unit_follows_a_signal_that_changes(
    name: str, least: tuple[float, ...]
) -> None:
    found = [followed(name, beta) for beta in (0.99, 0.999, 0.9999)]  # of Lion, of AdEMAMix
    assert all(cosine >= floor for cosine, floor in zip(found, least, strict=True)), found


def followed(name: str, beta: float) -> float:
    """Cosine of a stored average with the exact one; rounded to the nearest it stands still."""
    codec = named_storage(name).codec(Slot("slow_momentum"))
    generator = torch.Generator().manual_seed(0)
    signals = torch.randn(2, 1, 32, 64, generator=generator) * 0.3
    kept, exact = codec.allocate((1, 32, 64), CPU), torch.zeros(1, 32, 64)
    for step in range(600):
        grad = signals[step // 300] + torch.randn(1, 32, 64, generator=generator)
        exact = exact.lerp(grad, 1 - beta)
        codec.write(kept, codec.read(kept).lerp(grad, 1 - beta), noise(1, step * 77).stream(1))
    return float(torch.cosine_similarity(codec.read(kept).flatten(), exact.flatten(), 0))


@pytest.mark.parametrize("name", ["factored", "factored_2bit", "factored_4bit", "factored_8bit"])
@pytest.mark.parametrize("kind", ["alike", "rows and columns", "elements"])
def test_no_update_is_above_three_learning_rates(name: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def sizes(deviation: float, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * deviation).exp()

    scale = {
        "alike": torch.ones(64, 96),
        "rows and columns": sizes(1.0, 64, 1) * sizes(1.0, 1, 96),
        "elements": sizes(2.0, 64, 96),
    }[kind]
    stream = torch.randn(STEPS, 1, 64, 96, generator=generator) * scale
    assert max(float(update.abs().max()) for update in updates(name, stream)) <= 3


@pytest.mark.parametrize(("name", "jitter"), [("factored_8bit", 0.02), ("factored_4bit", 0.24)])
def test_a_bank_whose_increments_are_small_steps_converges_to_the_mean(
    name: str, jitter: float
) -> None:
    slope, apart = banked(name)
    assert slope == pytest.approx(1, abs=0.02)  # on average nothing is lost
    assert apart < jitter  # the exact bank's own noise is .14


def test_a_bank_of_signs_does_not() -> None:
    """An increment of a twenty-fifth cannot turn a sign: for banks, four bits are the least."""
    slope, apart = banked("factored")
    assert slope < 0.5
    assert apart > 0.25


def banked(name: str, visits: int = 600) -> tuple[float, float]:
    """H += (x - H) / 25 where x is a constant and noise: stored over exact, and the rms between.

    The first is of the time averages' components along the constant.
    """
    codec = named_storage(name).codec(Slot("bank"))
    generator = torch.Generator().manual_seed(0)
    constant = torch.randn(1, 32, 128, generator=generator) * 0.3
    kept = codec.allocate((1, 32, 128), CPU)
    exact, stored_sum, exact_sum = (torch.zeros_like(constant) for _ in range(3))
    apart = []
    for visit in range(visits):
        x = constant + torch.randn(constant.shape, generator=generator)
        exact = exact.lerp(x, 1 / 25)
        codec.write(kept, codec.read(kept).lerp(x, 1 / 25), noise(1, visit * 77))
        if visit >= 100:
            stored = codec.read(kept)
            stored_sum += stored
            exact_sum += exact
            apart.append((stored - exact).square().mean())
    slope = (stored_sum * constant).sum() / (exact_sum * constant).sum()
    return float(slope), float(torch.stack(apart).mean().sqrt())
