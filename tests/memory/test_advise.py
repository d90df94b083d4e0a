"""What is said to fit, fits; and what is planned for a change is the plan of that change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from micro.causal_lm import build_model, build_recipe, build_tokenizer

from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.errors import DoesNotFitError
from acmsao_cli.memory.advise import advice, changes, planned, require_fit, with_change
from acmsao_cli.memory.planner import plan
from acmsao_cli.models.quiet import quiet_libraries

FULL = {"method": {"kind": "full"}}
LORA = {"method": {"kind": "lora", "rank": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    with quiet_libraries():
        build_model("llama").save_pretrained(place)
        build_tokenizer().save_pretrained(place)
    return place


def config(folder: Path, **sections: Any) -> RunConfig:
    sections["training"] = {"steps": 2, "batch_size": 4} | sections.get("training", {})
    return RunConfig("x", build_recipe(folder, **sections), {})


def hint(run: RunConfig, bound: float) -> str:
    """What is advised where so many bytes are allowed."""
    memory = run.recipe.memory.model_copy(update={"budget_gib": bound / 2**30})
    recipe = run.recipe.model_copy(update={"memory": memory})
    bounded = RunConfig("x", recipe, {})
    with pytest.raises(DoesNotFitError, match=r"needs .*memory\.budget_gib allows") as error:
        require_fit(plan(bounded), bounded)
    assert error.value.hint is not None
    return error.value.hint


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_run_that_fits_is_let_through(folder: Path, method: dict[str, Any]) -> None:
    run = config(folder, **method, memory={"budget_gib": 1.0})
    require_fit(plan(run), run)


def test_single_changes_are_named_that_fit_and_no_others(folder: Path) -> None:
    run = config(folder, **FULL)
    peak = plan(run).needed_bytes
    known = [planned(run, change) for change in changes(run.recipe, on_gpu=False)]
    smallest = min(known, key=lambda one: one.needed_bytes)
    assert smallest.needed_bytes < peak
    said = hint(run, smallest.needed_bytes)
    assert said.startswith("any one of these fits:")
    for one in known:
        assert (str(one.change) in said) == (one.needed_bytes <= smallest.needed_bytes)


def test_what_one_change_cannot_do_several_do_together(folder: Path) -> None:
    run = config(folder, **FULL)
    known = [planned(run, change) for change in changes(run.recipe, on_gpu=False)]
    smallest = min(one.needed_bytes for one in known)
    said = hint(run, smallest - 1024)
    assert said.startswith("no single change is enough; these together fit:")
    assert said.count("--set ") >= 2
    assert hint(run, 1).startswith("even this is not enough")


def test_every_change_is_a_recipe_of_its_own(folder: Path) -> None:
    run = config(folder, **FULL, training={"accumulation": 1, "clip_norm": 1.0})
    names = [str(change) for change in changes(run.recipe, on_gpu=True)]
    assert names == [
        "--set optimizer.fused_backward=true --set training.clip=two_pass",
        "--set optimizer.storage=factored",
        "--set training.gradient_checkpointing=true",
        "--set training.batch_size=1 --set training.accumulation=4",
        "--set memory.offload_activations=true",
        "--set memory.resident_blocks=0 --set training.gradient_checkpointing=true "
        "--set optimizer.fused_backward=true --set training.clip=two_pass",
    ]
    for change in changes(run.recipe, on_gpu=True):
        changed: Recipe = with_change(run.recipe, change)
        assert changed != run.recipe
        assert str(change) not in map(str, changes(changed, on_gpu=True))


def test_a_cpu_is_not_told_to_use_the_hosts_memory(folder: Path) -> None:
    run = config(folder, **FULL)
    words = " ".join(str(change) for change in changes(run.recipe, on_gpu=False))
    assert words
    assert "resident_blocks" not in words
    assert "offload_activations" not in words
    assert "resident_blocks" not in hint(run, 1.0)


def test_a_fused_run_is_not_told_to_keep_gradients(folder: Path) -> None:
    fused = {"fused_backward": True, "storage": "factored"}
    run = config(folder, **FULL, optimizer=fused, training={"clip_norm": None})
    assert "--set training.batch_size=1" in [
        str(change) for change in changes(run.recipe, on_gpu=True)
    ]


def test_portions_of_a_fused_run_keep_gradients_and_one_portion_does_not(folder: Path) -> None:
    fused = {"fused_backward": True, "storage": "factored"}
    training = {"batch_size": 1, "accumulation": 2, "clip_norm": None}
    run = config(folder, **FULL, optimizer=fused, training=training)
    first = changes(run.recipe, on_gpu=True)[0]
    assert str(first) == "--set training.accumulation=1"
    assert planned(run, first).needed_bytes < plan(run).needed_bytes


def test_a_change_that_the_model_refuses_is_not_advised(tmp_path: Path) -> None:
    """The head of this one is its embedding."""
    with quiet_libraries():
        build_model("llama-tied").save_pretrained(tmp_path)
        build_tokenizer().save_pretrained(tmp_path)
    fused = {"optimizer": {"fused_backward": True}, "training": {"clip_norm": None}}
    run = config(tmp_path, **FULL, **fused)
    refused = [one for one in changes(run.recipe, on_gpu=True) if planned(run, one) is None]
    assert [str(one) for one in refused] == ["--set memory.slice_head=true"]
    assert "slice_head" not in hint(run, 1.0)
    assert "slice_head" not in advice(run.recipe)


def test_no_change_is_refused_by_a_model_with_a_head_of_its_own(folder: Path) -> None:
    fused = {"optimizer": {"fused_backward": True}, "training": {"clip_norm": None}}
    run = config(folder, **FULL, **fused)
    known = {str(one): planned(run, one) for one in changes(run.recipe, on_gpu=True)}
    assert "--set memory.slice_head=true" in known
    assert None not in known.values()
