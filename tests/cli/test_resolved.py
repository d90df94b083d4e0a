"""Which preset a run is under when none was named."""

from __future__ import annotations

import pytest

from acmsao_cli.cli import resolved as module
from acmsao_cli.cli.resolved import preset_for, resolved

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "preset"),
    [
        *((6, "8gb"), (7.9, "8gb"), (11.9, "8gb"), (15.7, "16gb")),
        *((23.6, "24gb"), (47, "24gb"), (79.2, "80gb"), (139, "80gb")),
    ],
)
def test_a_card_gets_the_largest_preset_that_it_can_keep(gib: float, preset: str) -> None:
    assert preset_for(int(gib * GIB)) == preset


def test_a_gpu_picks_a_preset_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_bytes", lambda wanted: int(15.7 * GIB))
    assert resolved("quickstart-llm", None, ()).preset == "16gb"
    assert resolved("quickstart-llm", "24gb", ()).preset == "24gb"
    assert resolved("quickstart-llm", "none", ()).preset is None


@pytest.mark.parametrize(
    ("gib", "budget"),
    [(7.9, 7.6), (12, 11.4), (15.7, 15.2), (16, 15.2), (23.6, 22.8), (32, 30.4), (141, 133.95)],
)
def test_what_a_preset_allows_grows_with_the_card(gib: float, budget: float) -> None:
    """A card somewhat smaller than its name is the one of its name."""
    config = resolved("quickstart-llm", None, (), int(gib * GIB))
    assert config.recipe.memory.budget_gib == pytest.approx(budget)
    said = resolved("quickstart-llm", None, ("memory.budget_gib=3",), int(gib * GIB))
    assert said.recipe.memory.budget_gib == 3


def test_a_preset_that_was_named_is_taken_as_it_is() -> None:
    config = resolved("quickstart-llm", "16gb", (), 32 * GIB)
    assert config.recipe.memory.budget_gib == 15.2


def test_a_cpu_picks_none() -> None:
    assert resolved("quickstart-llm", None, ("training.device=cpu",)).preset is None
