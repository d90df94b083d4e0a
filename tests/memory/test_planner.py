"""The plan is what a run really holds, and says so before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_model, build_recipe, build_tokenizer
from micro.sdxl import Painted, RecipeFor, Widths, micro_pipeline

from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.data.base import Example, ImageExample, TextExample
from acmsao_cli.data.randomness import Draw
from acmsao_cli.engine.step import Core, build_core
from acmsao_cli.memory.attention import fused_attention_shapes
from acmsao_cli.memory.experts import grouped_products
from acmsao_cli.memory.planner import BLOCK, meta_batches, plan, trace_step
from acmsao_cli.models import catalog
from acmsao_cli.models.quiet import quiet_libraries

FULL = {"method": {"kind": "full"}}
LORA = {"method": {"kind": "lora", "rank": 4}}
FUSED = {"optimizer": {"fused_backward": True, "storage": "factored"}}
CLIPPED = {"accumulation": 2, "clip_norm": 1.0}
CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One micro model of each family."""
    base = tmp_path_factory.mktemp("models")
    with quiet_libraries():
        micro_pipeline(Widths()).save_pretrained(base / "sdxl")
        for kind, name in (("llama", "causal_lm"), ("qwen3-moe", "experts")):
            build_model(kind).save_pretrained(base / name)
            build_tokenizer().save_pretrained(base / name)
    return {name: base / name for name in ("sdxl", "causal_lm", "experts")}


def recipe_of(family: str, folders: dict[str, Path], **sections: Any) -> Recipe:
    training = {"steps": 2, "batch_size": 2, "clip_norm": None} | sections.pop("training", {})
    build: Callable[..., Recipe] = RecipeFor() if family == "sdxl" else build_recipe
    return build(folders[family], training=training, **sections)


def opened(recipe: Recipe, device: str) -> Core:
    family = catalog.family(recipe.model.family)
    return build_core(recipe, family.open(recipe, torch.device(device), torch.float32))


def planned(recipe: Recipe) -> dict[str, int]:
    """Bytes at the peak of a step that never happens."""
    core = opened(recipe, "meta")
    with fused_attention_shapes(), grouped_products():
        return dict(trace_step(core, meta_batches(core, recipe)).tracer.peak)


def real(recipe: Recipe) -> dict[str, int]:
    """Bytes at the peak of a real step: torch's own attention, batches of encoded examples."""
    core = opened(recipe, "cpu")
    items = core.trainee.encode(largest_examples(recipe))
    size, portions = recipe.training.batch_size, recipe.training.accumulation
    draws = [Draw(0, number) for number in range(size)]
    batches = [core.trainee.collate(items[:size], draws) for _ in range(portions)]
    return dict(trace_step(core, batches).tracer.peak)


def largest_examples(recipe: Recipe) -> Sequence[Example]:
    """Examples that fill a batch: pictures of the largest bucket, or texts of the full length."""
    if recipe.model.family == "sdxl":
        return [ImageExample(f"{n}.png", "red round", Painted(64, 64, (9, 9, 9))) for n in (0, 1)]
    return [TextExample(f"{n}.txt", text="hello world " * 60) for n in (0, 1)]


@pytest.mark.parametrize("family", ["sdxl", "causal_lm"])
@pytest.mark.parametrize(
    "sections",
    [
        FULL,
        LORA,
        FULL | FUSED,
        FULL | {"training": CHECKPOINTED},
        FULL | {"training": {"accumulation": 2}},
        LORA | {"training": CHECKPOINTED},
        FULL | FUSED | {"training": CLIPPED | {"clip": "two_pass"}},
        FULL | FUSED | {"training": CLIPPED | {"clip": "delayed", "accumulation": 1}},
    ],
    ids=[
        *("full", "lora", "fused", "checkpointed", "accumulated", "lora-checkpointed"),
        *("two-pass", "delayed"),
    ],
)
def test_the_meta_device_holds_what_a_real_step_holds(
    folders: dict[str, Path], family: str, sections: dict[str, Any]
) -> None:
    recipe = recipe_of(family, folders, **sections)
    foretold, truth = planned(recipe), real(recipe)
    assert sum(foretold.values()) == pytest.approx(sum(truth.values()), rel=0.02)
    assert foretold["weights"] == truth["weights"]


@pytest.mark.parametrize("sections", [FULL | FUSED, LORA, FULL | {"training": CHECKPOINTED}])
def test_experts_are_foretold(folders: dict[str, Path], sections: dict[str, Any]) -> None:
    recipe = recipe_of("experts", folders, **sections)
    foretold, truth = planned(recipe), real(recipe)
    assert sum(foretold.values()) == pytest.approx(sum(truth.values()), rel=0.02)
    assert foretold["weights"] == truth["weights"]


def test_a_sliced_head_is_foretold(folders: dict[str, Path]) -> None:
    recipe = recipe_of("causal_lm", folders, **FULL, **FUSED, memory={"slice_head": True})
    foretold, truth = planned(recipe), real(recipe)
    assert sum(foretold.values()) == pytest.approx(sum(truth.values()), rel=0.02)


@pytest.mark.parametrize("family", ["sdxl", "causal_lm"])
def test_what_saves_memory_shows_in_the_plan(folders: dict[str, Path], family: str) -> None:
    def peak(**sections: Any) -> int:
        return plan(RunConfig("x", recipe_of(family, folders, **sections), {})).peak_bytes

    full = peak(**FULL)
    assert peak(**FULL, optimizer={"storage": "bf16"}) < full
    offloaded = peak(**FULL, optimizer={"storage": "offloaded(bf16)"})
    assert offloaded < peak(**FULL, optimizer={"storage": "bf16"})
    factored, fused = peak(**FULL, optimizer={"storage": "factored"}), peak(**FULL, **FUSED)
    assert factored < full
    # The micro language model's peak is in its loss, where no gradient exists yet.
    assert fused < factored if family == "sdxl" else fused == factored
    # Clipping exactly costs time, not memory.
    assert peak(**FULL, **FUSED, training={"clip_norm": 1.0, "clip": "two_pass"}) <= 1.02 * fused
    assert peak(**FULL, training={"batch_size": 1}) < full
    assert peak(**LORA) < full


def test_banks_in_host_memory_do_not_take_the_devices(folders: dict[str, Path]) -> None:
    def recipe(away: bool) -> Recipe:
        banks = {"scales": [4, 16], "ram_offload": [away, away], "storage": "bf16"}
        return recipe_of("causal_lm", folders, **FULL, optimizer={"name": "acmsao", **banks})

    resident, away = (plan(RunConfig("x", recipe(host), {})) for host in (False, True))
    assert away.by_category["optimizer"] < resident.by_category["optimizer"]
    core = opened(recipe(True), "meta")
    held = sum(-(-piece.nbytes // BLOCK) * BLOCK for piece in core.optimizer.resident_state())
    assert away.by_category["optimizer"] == held


def test_the_state_is_the_optimizers_own_count(folders: dict[str, Path]) -> None:
    recipe = recipe_of("causal_lm", folders, **FULL)
    made = plan(RunConfig("x", recipe, {}))
    assert made.trained_parameters == sum(made.facts.parameters.values())
    assert made.by_category["optimizer"] >= 8 * made.trained_parameters


def test_planning_draws_no_random_numbers(folders: dict[str, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plan(RunConfig("x", recipe_of("sdxl", folders, **LORA), {}))
    assert torch.equal(torch.rand(3), expected)
