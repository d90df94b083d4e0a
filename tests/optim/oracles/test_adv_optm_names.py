"""What recipes make of adv_optm's names is what adv_optm computes.

Release 2.2.3. Not compared, because there it computes something else than in the release whose
names and defaults these are: everything with Simplified_AdEMAMix (another learning rate since 2.0),
weight decay (divided by the bias correction from 2.0 to 2.2), factored Prodigy (since 1.4). Its
`slice_p` looks at every eleventh element, ours at every eleventh column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acmsao_cli.config.aliases import LATER_OPTIONS, seed_called, translate
from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.engine.compose import pipeline_of
from acmsao_cli.optim import ComposedOptimizer

adv_optm = pytest.importorskip("adv_optm")

CLASSES = {
    "Adam_Adv": "AdamW_adv",
    "Adopt_Adv": "Adopt_adv",
    "Prodigy_Adv": "Prodigy_adv",
    "Lion_Adv": "Lion_adv",
    "Prodigy_Lion_Adv": "Lion_Prodigy_adv",
}
ESTIMATE = {"d0": 1e-2, "slice_p": 1}
CASES: list[tuple[str, dict[str, Any], float]] = [
    ("Adam_Adv", {}, 1e-5),
    ("Adam_Adv", {"use_atan2": True}, 1e-5),
    ("Adam_Adv", {"use_AdEMAMix": True, "alpha": 3.0}, 1e-5),
    ("Adam_Adv", {"use_bias_correction": False}, 1e-5),
    ("Adam_Adv", {"use_cautious": True}, 1e-5),
    ("Adam_Adv", {"use_grams": True}, 1e-5),
    ("Adam_Adv", {"use_orthograd": True}, 1e-5),
    ("Adam_Adv", {"factored": True}, 1e-4),
    ("Adopt_Adv", {}, 1e-3),
    ("Adopt_Adv", {"use_atan2": True}, 1e-3),
    ("Adopt_Adv", {"use_AdEMAMix": True}, 1e-3),
    ("Prodigy_Adv", ESTIMATE, 1e-4),
    ("Prodigy_Adv", {**ESTIMATE, "use_atan2": True}, 1e-4),
    ("Prodigy_Adv", {**ESTIMATE, "use_AdEMAMix": True, "d_coef": 2.0}, 1e-4),
    ("Lion_Adv", {}, 1e-5),
    ("Lion_Adv", {"factored": False, "use_cautious": True}, 1e-5),
    ("Prodigy_Lion_Adv", {**ESTIMATE, "factored": False}, 1e-4),
]


def moved(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[Tensor]:
    """How far twelve steps with given gradients go."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5), (7,))
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    start = [weight.detach().clone() for weight in weights]
    optimizer = make(weights)
    for _ in range(12):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator) * 0.3 + 0.2
        optimizer.step()
    return [weight.detach() - begin for weight, begin in zip(weights, start, strict=True)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "tolerance"), CASES, ids=[f"{n} {' '.join(o)}" for n, o, _ in CASES]
)
def test_their_names_do_as_they_do(name: str, options: dict[str, Any], tolerance: float) -> None:
    seed = seed_called(name)
    assert seed is not None
    translated = translate(seed, options)
    assert not translated.complaints
    section = OptimizerSection.model_validate(dict(translated.values))

    def ours(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        named = [(str(number), weight) for number, weight in enumerate(weights)]
        return ComposedOptimizer(named, pipeline_of(section), lr=section.lr)

    def theirs(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        later = {old: new for new, old in LATER_OPTIONS.items()}
        given = {"factored": seed.defaults["factored"], **options}
        spelled = {later.get(option, option): value for option, value in given.items()}
        if name == "Prodigy_Lion_Adv":
            spelled["d_limiter"] = False  # which it was in the release of these defaults
        optimizer: torch.optim.Optimizer = getattr(adv_optm, CLASSES[name])(
            weights, lr=section.lr, **spelled
        )
        return optimizer

    for mine, reference in zip(moved(ours), moved(theirs), strict=True):
        assert (mine - reference).abs().max() <= tolerance * reference.abs().max()
