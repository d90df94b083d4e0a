"""Laws of clipping the global norm where gradients never exist together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from acmsao_cli.engine.backward import BackwardHook, gradient_norm, norm_of_backward
from acmsao_cli.engine.events import Event
from acmsao_cli.engine.loop import advance

BOUND = 0.2  # below the toy's gradient norms


def ignore(event: Event) -> None:
    """A listener that does not listen."""


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.parameters.items()}


def steps(run: Any, count: int) -> list[dict[str, Any]]:
    rows = [advance(run, ignore) for _ in range(count)]
    return [{key: row[key] for key in ("loss", "gradient_norm", "noise_scale")} for row in rows]


def config_of(make_config: Any, clip: str, **training: Any) -> Any:
    return make_config(
        optimizer={"fused_backward": clip != "global", "weight_decay": 0.1},
        training={"clip": clip, "clip_norm": BOUND} | training,
    )


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_passes_give_the_bits_of_the_ordinary_clipped_step(
    make_run: Any, make_config: Any, accumulation: int, dtype: torch.dtype
) -> None:
    rows, ends = [], []
    for clip in ("global", "two_pass"):
        training = {"accumulation": accumulation, "noise_scale": accumulation > 1}
        run = make_run(config_of(make_config, clip, **training), dtype)
        rows.append(steps(run, 5))
        ends.append(weights(run))
    assert rows[0] == rows[1]
    assert all(row["gradient_norm"] > BOUND for row in rows[0])
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name])


def test_delayed_clipping_goes_by_the_norm_of_the_step_before(
    make_run: Any, make_config: Any
) -> None:
    run = make_run(config_of(make_config, "delayed"))
    told = steps(run, 5)
    plain = make_run(make_config(optimizer={"weight_decay": 0.1}, training={"clip_norm": None}))
    norms: list[float] = []
    step = plain.core.optimizer.step

    def clipped_by_hand() -> None:
        gradients = [p.grad for p in plain.parameters.values()]
        norms.append(float(torch.cat([grad.flatten() for grad in gradients]).norm()))
        for grad in gradients if norms[1:] else ():
            grad.mul_(min(1.0, BOUND / (norms[-2] + 1e-6)))
        step()

    plain.core.optimizer.step = clipped_by_hand
    expected = steps(plain, 5)
    assert [row["loss"] for row in told] == pytest.approx([row["loss"] for row in expected])
    assert [row["gradient_norm"] for row in told] == pytest.approx(norms)
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(run)[name])


@pytest.mark.parametrize("clip", ["global", "two_pass", "delayed"])
def test_what_the_last_micro_batch_leaves_out_is_clipped_with_the_rest(
    make_run: Any, make_config: Any, clip: str
) -> None:
    run = make_run(config_of(make_config, clip, accumulation=2))
    run.progress = type(run.progress)(accumulation=2, gradient_norm=1.0)
    run.core.trainee.net[1].p = 0.0
    layer, loss, optimizer = run.core.trainee.net[0], run.core.trainee.loss, run.core.optimizer
    first, seen = run.batch(run.next_picks()[0]), []

    def only_the_first_trains_the_layer(batch: Any) -> Any:
        layer.requires_grad_(torch.equal(batch.inputs["x"], first.inputs["x"]))
        return loss(batch)

    def record(step: Any = optimizer.step) -> None:
        seen.append(layer.weight.grad.clone())
        step()

    (loss(first) / 8).backward()
    unclipped = layer.weight.grad.clone()
    optimizer.zero_grad()
    run.core.trainee.loss, optimizer.step = only_the_first_trains_the_layer, record
    (told,) = steps(run, 1)
    norm = 1.0 if clip == "delayed" else told["gradient_norm"]
    assert norm > BOUND
    torch.testing.assert_close(seen[0], unclipped * (BOUND / norm))


def test_the_measuring_backward_leaves_gradients_as_they_were() -> None:
    touched, untouched = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    parameters, hook = [touched, untouched], BackwardHook()
    hook.attach(parameters)
    ((touched * torch.tensor([1.0, 2.0, 3.0])).sum() + untouched.sum()).backward()
    before = [parameter.grad for parameter in parameters]
    kept = [grad.clone() for grad in before if grad is not None]
    measured = norm_of_backward(hook, parameters, (touched**2).sum().backward)
    assert all(p.grad is grad for p, grad in zip(parameters, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True) if a is not None)
    (touched**2).sum().backward()
    expected = gradient_norm(parameters)
    assert measured is not None
    assert expected is not None
    assert torch.equal(measured, expected)
    assert float(expected) == pytest.approx((9 + 16 + 25 + 2) ** 0.5)


@pytest.mark.parametrize("clip", ["two_pass", "delayed"])
def test_no_gradients_pile_up_whichever_norm_clips(
    make_run: Any, make_config: Any, clip: str
) -> None:
    run = make_run(config_of(make_config, clip))
    held = []
    for parameter in run.parameters.values():
        parameter.register_hook(
            lambda gradient: held.append(sum(p.grad is not None for p in run.parameters.values()))
        )
    steps(run, 2)
    assert max(held) <= 1


def test_two_passes_know_a_norm_that_is_not_finite_before_any_weight_moves(
    make_run: Any, make_config: Any
) -> None:
    run = make_run(config_of(make_config, "two_pass"))
    before = weights(run)
    first = next(iter(run.parameters.values()))
    first.register_hook(lambda gradient: gradient * float("inf"))
    steps(run, 1)
    assert run.progress.left_out == 1
    for name, value in weights(run).items():
        assert torch.equal(value, before[name])
