"""What presets decide for published models does not change unnoticed, and keeps their promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory.golden import METHODS, PRESETS, Case, cases, golden, write_model
from micro.shapes import LANGUAGE_MODELS

from acmsao_cli.config.auto import OPTIONS, STORAGE
from acmsao_cli.memory.cards import CARDS, GIB

QUICK = {
    Case("sdxl", "full", "16gb"),
    Case("llama-3.1-8b", "full", "16gb"),
    Case("llama-3.1-8b", "qlora", "8gb"),
    Case("llama-3.2-1b", "full", "8gb"),
    Case("qwen3-4b", "lora", "16gb"),
}
EVERY = [case for case in cases() if str(case) in golden()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models, by name, as they are asked for."""
    return {}


@pytest.mark.parametrize(
    "case",
    [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in EVERY],
    ids=str,
)
def test_presets_decide_as_they_did(
    case: Case, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if case.model not in folders:
        base = tmp_path_factory.mktemp("shapes")
        folders[case.model] = write_model(case.model, base / case.model)
    expected, found = golden()[str(case)], case.decided(folders[case.model])
    assert found["decided"] == expected["decided"]
    assert found["fits"] == expected["fits"]
    assert found["needs_gib"] == pytest.approx(expected["needs_gib"], rel=0.01)


def test_every_published_model_is_decided_for() -> None:
    assert [str(case) for case in cases()] == list(golden())
    assert {case.model for case in EVERY} == {"sdxl", *LANGUAGE_MODELS}


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_what_fits_needs_no_more_than_its_card_leaves(case: Case) -> None:
    entry = golden()[str(case)]
    usable = CARDS[case.preset].usable_bytes / GIB
    assert entry["fits"] == (entry["needs_gib"] <= usable + 0.005)


@pytest.mark.parametrize(
    ("model", "method"),
    sorted({(one.model, one.method) for one in EVERY if one.method not in METHODS["tiers"]}),
)
def test_a_larger_card_has_no_coarser_state_and_no_more_in_host_memory(
    model: str, method: str
) -> None:
    entries = [golden()[str(Case(model, method, preset))] for preset in PRESETS]
    states = [OPTIONS[STORAGE].index(one["decided"].get(STORAGE, "fp32")) for one in entries]
    assert states == sorted(states, reverse=True)
    away = [one["host_gib"] for one in entries if one["fits"]]
    assert away == sorted(away, reverse=True)
