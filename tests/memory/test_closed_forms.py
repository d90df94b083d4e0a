"""The formulas by which is searched come near the traces by which is decided, for true sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory.golden import METHODS, cases, golden, methods_of, write_model

from acmsao_cli.config.auto import with_values
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.memory.cards import GIB, card_named
from acmsao_cli.memory.estimate import Estimates

# Below the trace a search looks at what does not fit, above it passes what would.
LEAST, MOST = 0.93, 1.10

QUICK = {("sdxl", "full"), ("llama-3.1-8b", "full"), ("llama-3.2-1b", "qlora")}
EVERY = [case for case in cases() if case.method not in METHODS["tiers"]]
TRAININGS = sorted({(case.model, case.method) for case in EVERY})


@pytest.mark.parametrize(
    ("model", "method"),
    [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in TRAININGS],
)
def test_what_a_formula_expects_is_near_what_was_traced(
    model: str, method: str, tmp_path: Path
) -> None:
    folder = write_model(model, tmp_path / model)
    recipe, settings = methods_of(model)[method]
    estimates = None
    for case in (one for one in EVERY if (one.model, one.method) == (model, method)):
        source = f"model.source={folder}"
        wanted = resolve(Request(recipe, case.preset, (source, *settings))).recipe
        estimates = estimates or Estimates(wanted, card_named(case.preset))
        entry = golden()[str(case)]
        found = estimates.needed_bytes(with_values(wanted, entry["decided"])) / GIB
        assert LEAST <= found / entry["needs_gib"] <= MOST, (str(case), found)
