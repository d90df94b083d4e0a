"""What stands at auto becomes the best that fits, and what is said is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from micro.causal_lm import build_model, build_recipe, build_tokenizer
from micro.sdxl import RecipeFor, Widths, micro_pipeline

from acmsao_cli.config.auto import ALL_BLOCKS, OPTIONS, STORAGE, at_best, open_keys
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.errors import ConfigError
from acmsao_cli.memory.cards import CARDS, card_named
from acmsao_cli.memory.choose import candidates, decide
from acmsao_cli.memory.estimate import Estimates
from acmsao_cli.memory.planner import PAGE_LOCKED, plan
from acmsao_cli.models.quiet import quiet_libraries

AUTO_MEMORY = {"offload_activations": "auto", "resident_blocks": "auto"}
FUSED = {"fused_backward": True, "storage": "auto"}
SIZES = {"batch_size": 8, "gradient_checkpointing": "auto", "clip_norm": None, "steps": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    with quiet_libraries():
        micro_pipeline(Widths()).save_pretrained(base / "sdxl")
        build_model("llama").save_pretrained(base / "causal_lm")
        build_tokenizer().save_pretrained(base / "causal_lm")
    return {name: base / name for name in ("sdxl", "causal_lm")}


def run(folders: dict[str, Path], bound: float | None = None, **changes: Any) -> RunConfig:
    """A full training with everything open, that may take `bound` bytes."""
    budget = {} if bound is None else {"budget_gib": bound / 2**30}
    sections: dict[str, Any] = {
        "method": {"kind": "full"},
        "optimizer": FUSED,
        "training": SIZES,
        "memory": AUTO_MEMORY | budget,
    }
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values
    return RunConfig("x", build_recipe(folders["causal_lm"], **sections), {})


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "grows",
    [{"batch_schedule": [[1, 3]]}, {"accumulation": 2, "adaptive_batch": 4}],
    ids=["schedule", "adaptive"],
)
def test_a_batch_that_grows_is_expected_to_need_what_two_portions_do(
    folders: dict[str, Path], method: str, grows: dict[str, Any]
) -> None:
    """As it is traced: the largest step decides, not the first."""

    def expected(**training: Any) -> int:
        recipe = at_best(run(folders, method={"kind": method}, training=training).recipe)
        return Estimates(recipe, None).needed_bytes(recipe)

    assert expected() < expected(accumulation=2) == expected(**grows)


def test_without_a_bound_the_best_is_taken(folders: dict[str, Path]) -> None:
    decided = decide(run(folders))
    assert decided.config.recipe == at_best(run(folders).recipe)
    assert decided.config.recipe.memory.resident_blocks == ALL_BLOCKS
    assert not open_keys(decided.config.recipe)


def test_the_finest_state_that_fits_is_taken(folders: dict[str, Path]) -> None:
    """What fits and would have been better was looked at, and does not fit."""
    everything = [
        decide(run(folders, optimizer={"storage": kept}, training={"gradient_checkpointing": True}))
        for kept in OPTIONS[STORAGE]
    ]
    needs = [one.plan.needed_bytes for one in everything]
    assert needs == sorted(needs, reverse=True)
    for bound in (needs[0], needs[2], needs[4]):
        decided = decide(run(folders, 1.3 * bound))
        assert decided.plan.needed_bytes <= 1.3 * bound
        assert decided.config.recipe.memory.resident_blocks == ALL_BLOCKS
        assert "best that fits" in decided.why


def test_where_nothing_else_fits_blocks_leave(folders: dict[str, Path]) -> None:
    card = card_named("16gb")
    smallest = {"storage": "factored"}, {"gradient_checkpointing": True}
    resident = run(folders, optimizer=smallest[0], training=smallest[1], memory=ALL_STAY)
    none = run(folders, optimizer=smallest[0], training=smallest[1], memory=NONE_STAY)
    most, least = (plan(one, card).tensor_bytes for one in (resident, none))
    assert least < most
    assert plan(none, card).host[PAGE_LOCKED] > 0
    decided = decide(run(folders, plan(resident, card).needed_bytes - 1), card)
    assert isinstance(decided.config.recipe.memory.resident_blocks, int)


ALL_STAY = {"offload_activations": False, "resident_blocks": "all"}
NONE_STAY = {"offload_activations": False, "resident_blocks": 0}


def test_what_is_said_is_never_changed(folders: dict[str, Path]) -> None:
    said = {"storage": "bf16"}, {"gradient_checkpointing": False}
    config = run(folders, 1.0, optimizer=said[0], training=said[1])
    decided = decide(config)
    assert decided.config.recipe.optimizer.storage == "bf16"
    assert decided.config.recipe.training.gradient_checkpointing is False
    assert decided.plan.needed_bytes > 1.0  # and is then refused
    assert set(decided.settings) == {"memory.offload_activations", "memory.resident_blocks"}


def test_every_value_says_that_it_was_planned(folders: dict[str, Path]) -> None:
    decided = decide(run(folders))
    assert {str(decided.config.origins[key]) for key in decided.settings} == {
        "planned nothing bounds the run"
    }


def test_candidates_go_from_the_best_to_the_smallest(folders: dict[str, Path]) -> None:
    found = list(candidates(run(folders).recipe))
    assert found[0][STORAGE] == OPTIONS[STORAGE][0]
    assert found[-1] == {
        STORAGE: OPTIONS[STORAGE][-1],
        "training.gradient_checkpointing": True,
        "memory.offload_activations": True,
        "memory.resident_blocks": ALL_BLOCKS,
    }
    order = [OPTIONS[STORAGE].index(one[STORAGE]) for one in found]
    assert order == sorted(order)


def test_estimates_order_settings_as_plans_do(folders: dict[str, Path]) -> None:
    recipe = run(folders).recipe
    estimates = Estimates(recipe, None)
    sizes = []
    for kept in OPTIONS[STORAGE]:
        one = run(folders, optimizer={"storage": kept}, memory=ALL_STAY)
        one = RunConfig("x", at_best(one.recipe), {})
        sizes.append((estimates.needed_bytes(one.recipe), plan(one).needed_bytes))
    by_form, traced = zip(*sizes, strict=True)
    assert list(by_form) == sorted(by_form, reverse=True)
    assert list(traced) == sorted(traced, reverse=True)


def test_a_card_adds_its_context_and_its_allocator(folders: dict[str, Path]) -> None:
    recipe = RecipeFor()(folders["sdxl"], training={"steps": 1})
    config = RunConfig("x", recipe, {})
    here, there = plan(config), plan(config, card_named("16gb"))
    assert here.by_category["context"] == 0
    assert there.by_category["context"] > 0
    assert there.needed_bytes >= there.peak_bytes
    assert str(there.device) == "cuda"
    assert there.host["parts at rest"] > 0


@pytest.mark.parametrize("text", ["16gb", "16", "16 GiB", "12.5"])
def test_cards_are_named_by_their_size(text: str) -> None:
    card = card_named(text)
    assert card.usable_bytes == int(0.95 * card.gib * 2**30)
    assert text.startswith(f"{card.gib:g}")
    assert (card in CARDS.values()) == (card.gib == 16)


@pytest.mark.parametrize("text", ["", "big", "-3", "0", "16tb"])
def test_what_is_no_size_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match="--card takes a size") as error:
        card_named(text)
    assert "16gb" in str(error.value.hint)
