"""What a run is changed to when memory runs out: in order, only what was left open, never back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.recipe import Origin, RunConfig
from acmsao_cli.engine.out_of_memory import ran_out, reason_of
from acmsao_cli.memory.ladder import PORTIONS, as_it_went_on, climbed, next_rung

LM, LM_FULL, SDXL_FULL = "quickstart-llm", "llm-full", "sdxl-full"
SOURCES = ("model.source=./model", "data.source=./data")
FUSED = ("optimizer.fused_backward=true", "training.clip_norm=null")


def asked(recipe: str = LM, *settings: str, preset: str | None = None) -> RunConfig:
    return resolve(Request(recipe, preset, settings))


def descent(config: RunConfig, num_blocks: int = 9, **where: bool) -> list[dict[str, Any]]:
    """Every rung down to the last."""
    start, rungs = config, []
    where = {"on_gpu": True, "continued": False} | where
    while (rung := next_rung(config, num_blocks, **where)) is not None:
        rungs.append(dict(rung))
        config = climbed(start, config, rung, "out of memory")
        assert len(rungs) < 50, "a ladder without an end"
    return rungs


def test_a_language_models_rungs_come_in_the_order_of_their_cost() -> None:
    config = asked(LM, "training.batch_size=4", "training.accumulation=2")
    assert descent(config) == [
        {"training.gradient_checkpointing": True},
        {"memory.loss_chunk": 128},
        {"memory.loss_chunk": 32},
        {"training.batch_size": 2, "training.accumulation": 4},
        {"training.batch_size": 1, "training.accumulation": 8},
        {"memory.resident_blocks": 4},
        {"memory.resident_blocks": 2},
        {"memory.resident_blocks": 0},
        {"memory.offload_activations": True},
    ]


def test_a_fused_full_run_keeps_its_batch_since_portions_would_keep_gradients() -> None:
    rungs = descent(asked(SDXL_FULL, *SOURCES, *FUSED, "training.batch_size=4"))
    assert not any(rung.keys() & PORTIONS for rung in rungs)
    assert {"memory.resident_blocks": 0} in rungs


def test_a_full_run_that_keeps_gradients_has_no_blocks_to_send_away() -> None:
    rungs = descent(asked(LM_FULL, *SOURCES, "training.batch_size=2", "training.accumulation=1"))
    assert {"training.batch_size": 1, "training.accumulation": 2} in rungs
    assert not any("memory.resident_blocks" in rung for rung in rungs)


def test_int8_weights_stay() -> None:
    rungs = descent(asked(LM, "model.quantize=int8"))
    assert not any("memory.resident_blocks" in rung for rung in rungs)


@pytest.mark.parametrize(
    "setting",
    [
        "training.gradient_checkpointing=false",
        "memory.loss_chunk=auto",
        "memory.resident_blocks=all",
        "memory.offload_activations=false",
    ],
)
def test_what_is_said_is_left_alone(setting: str) -> None:
    key = setting.partition("=")[0]
    assert any(key in rung for rung in descent(asked(LM)))
    assert not any(key in rung for rung in descent(asked(LM, setting)))


def test_what_a_preset_or_the_planner_decided_may_change() -> None:
    config = asked(LM, preset="cpu")
    assert config.origins["training.gradient_checkpointing"].layer == "preset"
    assert descent(config)[0] == {"training.gradient_checkpointing": True}


def test_in_the_hosts_memory_nothing_is_sent_to_the_host() -> None:
    keys = {key for rung in descent(asked(LM), on_gpu=False) for key in rung}
    assert not keys & {"memory.resident_blocks", "memory.offload_activations"}
    assert keys >= PORTIONS - {"training.batch_schedule", "training.adaptive_batch"}


def test_what_was_drawn_by_whole_batches_goes_on_so() -> None:
    assert not any(rung.keys() & PORTIONS for rung in descent(asked(LM), continued=True))


@pytest.mark.parametrize(("batch", "parts"), [(2, 2), (6, 2), (9, 3), (7, 7)])
def test_a_step_keeps_its_number_of_examples(batch: int, parts: int) -> None:
    config = asked(
        *(LM, f"training.batch_size={batch}", "training.accumulation=3"),
        *("training.adaptive_batch=12", "training.batch_lr=sqrt"),
    )
    rung = next(rung for rung in descent(config) if rung.keys() & PORTIONS)
    assert rung == {
        "training.batch_size": batch // parts,
        "training.accumulation": 3 * parts,
        "training.adaptive_batch": 12 * parts,
    }


def test_a_schedule_of_the_batch_grows_with_it() -> None:
    config = asked(LM, "training.batch_size=4", "training.batch_schedule=[[5, 2], [9, 6]]")
    changed = config
    while changed.recipe.training.batch_size > 1:
        rung = next_rung(changed, 0, on_gpu=False, continued=False)
        assert rung is not None
        changed = climbed(config, changed, rung, "out of memory")
    assert changed.recipe.training.batch_schedule == ((5, 8), (9, 24))


def saved(config: RunConfig) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(
        json.dumps({"recipe": config.as_dict(), "before": dict(config.before)})
    )
    return header


def went_down(start: RunConfig, rungs: int) -> RunConfig:
    config = start
    for _ in range(rungs):
        rung = next_rung(config, 9, on_gpu=True, continued=False)
        assert rung is not None
        config = climbed(start, config, rung, "out of memory")
    return config


@pytest.mark.parametrize("rungs", range(1, 10))
def test_a_run_goes_on_as_it_was_changed(rungs: int) -> None:
    start = asked(LM, "training.batch_size=4")
    config = went_down(start, rungs)
    again = as_it_went_on(start, saved(config))
    assert again.recipe == config.recipe
    assert dict(again.before) == dict(config.before)
    assert again.origins["training.gradient_checkpointing"].layer == "ladder"


def test_what_the_planner_had_decided_is_kept_too() -> None:
    start = asked(LM_FULL, *SOURCES, preset="16gb")
    assert start.recipe.optimizer.storage == "auto"
    decided = RunConfig(
        start.name,
        start.recipe.model_copy(
            update={
                "optimizer": start.recipe.optimizer.model_copy(update={"storage": "factored"}),
                "training": start.recipe.training.model_copy(
                    update={"gradient_checkpointing": False}
                ),
                "memory": start.recipe.memory.model_copy(
                    update={"resident_blocks": "all", "offload_activations": False}
                ),
            }
        ),
        start.origins | {"optimizer.storage": Origin("planned", "it fits")},
    )
    config = climbed(start, decided, {"training.gradient_checkpointing": True}, "out of memory")
    assert config.before["optimizer.storage"] == "auto"
    assert as_it_went_on(start, saved(config)).recipe == config.recipe


def test_what_is_asked_for_anew_counts() -> None:
    start = asked(LM, "training.batch_size=4")
    header = saved(went_down(start, 4))
    other = as_it_went_on(asked(LM, "training.batch_size=4", "training.accumulation=3"), header)
    assert other.recipe.training.batch_size == 4, "half of it with other portions is another step"
    assert other.recipe.training.gradient_checkpointing is True
    plain = as_it_went_on(asked(LM, "training.batch_size=4", "memory.loss_chunk=7"), header)
    assert plain.recipe.memory.loss_chunk == 7


def test_a_run_whose_memory_never_ran_out_goes_on_as_asked() -> None:
    config = asked(LM)
    assert as_it_went_on(config, saved(config)) is config
    assert as_it_went_on(config, {"recipe": config.as_dict()}) is config


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB"
            ),
            "tried to allocate 2.00 GiB",
        ),
        (MemoryError(), "the system has no more"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 1610612736 bytes. Error code 12 (Cannot allocate)"
            ),
            "tried to allocate 1.50 GiB",
        ),
        (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory"),
    ],
)
def test_memory_that_ran_out_is_known_by_what_is_said(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason

    def fails() -> None:
        raise error

    assert ran_out(fails) == reason


def test_other_faults_stay_what_they_are() -> None:
    assert reason_of(RuntimeError("shapes differ")) is None
    assert reason_of(ValueError("out of memory")) is None

    def fails() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        ran_out(fails)
    assert ran_out(lambda: None) is None
