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
    monkeypatch.setattr(module, "preset_here", lambda wanted: "16gb")
    assert resolved("quickstart-llm", None, ()).preset == "16gb"
    assert resolved("quickstart-llm", "24gb", ()).preset == "24gb"
    assert resolved("quickstart-llm", "none", ()).preset is None


def test_a_cpu_picks_none() -> None:
    assert resolved("quickstart-llm", None, ("training.device=cpu",)).preset is None
