"""Laws of one step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from acmsao_cli.config.sections import ScheduleSection
from acmsao_cli.engine.schedule import lr_factor
from acmsao_cli.engine.step import StepResult, training_step, unguarded


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.parameters.items()}


def take_step(run: Any, factor: float = 1.0, guard: Any = unguarded) -> StepResult:
    """One step of a run, from where it is; the run goes on."""
    picks = run.next_picks()
    result = training_step(
        run.core,
        [run.batch(some) for some in picks],
        first_micro_batch=run.progress.micro_batches,
        lr_factor=factor,
        previous_norm=run.progress.gradient_norm,
        guard=guard,
    )
    norm = None if result.gradient_norm is None else float(result.gradient_norm)
    training, progress = run.config.recipe.training, run.progress
    run.progress = progress.after(training, norm, progress.noise, sum(map(len, picks)))
    return result


def take_steps(run: Any, count: int, factor: float = 1.0) -> list[float]:
    return [float(take_step(run, factor).loss) for _ in range(count)]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
def test_fused_backward_gives_the_bits_of_the_ordinary_step(
    make_run: Any, make_config: Any, accumulation: int, dtype: torch.dtype, storage: str
) -> None:
    runs = []
    for fused in (False, True):
        config = make_config(
            optimizer={"fused_backward": fused, "storage": storage, "weight_decay": 0.1},
            training={"accumulation": accumulation, "clip_norm": None},
        )
        run = make_run(config, dtype)
        losses = take_steps(run, 4)
        runs.append((losses, weights(run)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_norm_is_reported_alike_by_every_way_of_stepping(
    make_run: Any, make_config: Any, dtype: torch.dtype
) -> None:
    norms = []
    for fused, clip in ((False, None), (True, None), (False, 1e9)):
        config = make_config(optimizer={"fused_backward": fused}, training={"clip_norm": clip})
        run = make_run(config, dtype)
        result = take_step(run)
        assert result.gradient_norm.dtype == torch.float32
        norms.append(float(result.gradient_norm))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_the_guard_sees_the_norm_before_any_weight_moves(make_run: Any, make_config: Any) -> None:
    for clip in (None, 1.0):
        run = make_run(make_config(training={"clip_norm": clip}))
        before = weights(run)

        def refuse(what: str, value: torch.Tensor) -> None:
            if what == "gradient norm":
                raise ArithmeticError(what)

        with pytest.raises(ArithmeticError):
            take_step(run, guard=refuse)
        assert_same(before, weights(run))


def test_no_gradients_pile_up_when_stepping_during_backward(
    make_run: Any, make_config: Any
) -> None:
    config = make_config(optimizer={"fused_backward": True}, training={"clip_norm": None})
    run = make_run(config)
    held = []
    for parameter in run.parameters.values():
        parameter.register_hook(
            lambda gradient: held.append(sum(p.grad is not None for p in run.parameters.values()))
        )
    take_steps(run, 1)
    assert max(held) <= 1


def test_a_batch_in_portions_is_the_batch_as_a_whole(make_run: Any, make_config: Any) -> None:
    whole = make_run(make_config(training={"batch_size": 10, "clip_norm": None}))
    portions = make_run(
        make_config(training={"batch_size": 5, "accumulation": 2, "clip_norm": None})
    )
    for run in (whole, portions):
        run.core.trainee.net[1].p = 0.0  # dropout draws per portion
        run.core.trainee.collate = lambda items, draws, t=run.core.trainee: type(t).collate(
            t, items, [type(draws[0])(0, 0)] * len(items)
        )
    losses = take_steps(whole, 2), take_steps(portions, 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_learning_rate_scales_the_step(make_run: Any, make_config: Any) -> None:
    config = make_config(optimizer={"name": "lion"})
    start = weights(make_run(config))
    moved = []
    for factor in (1.0, 0.5, 0.0):
        run = make_run(config)
        take_steps(run, 1, factor)
        moved.append(sum(float((v - start[n]).abs().sum()) for n, v in weights(run).items()))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-4)
    assert moved[2] == 0


def test_gradients_are_clipped_to_the_norm(make_run: Any, make_config: Any) -> None:
    run = make_run(make_config(training={"clip_norm": 1e-3}))
    seen: list[float] = []
    original = run.core.optimizer.step

    def record(*_: Any) -> None:
        total = sum(float(p.grad.square().sum()) for p in run.parameters.values())
        seen.append(total**0.5)
        original()

    run.core.optimizer.step = record
    result = take_step(run)
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)
    assert float(result.gradient_norm) > 1e-2


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_schedule_rises_then_never_rises_again(kind: Any) -> None:
    schedule = ScheduleSection(kind=kind, warmup_steps=4)
    factors = [lr_factor(schedule, step, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a >= b for a, b in pairwise(factors[3:]))
    assert factors[-1] > 0
    if kind != "constant":
        assert lr_factor(schedule, 20, 20) == pytest.approx(0)
