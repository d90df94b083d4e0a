"""What a new rule may rely on: banks, scalars, shared numbers, tensors nobody else changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from optim.harness import assert_same_bits, everything, make, run, sums
from torch import Tensor

from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.rules.base import Cells, Context, Rule
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.policy import build_storage, storage


@dataclass(frozen=True)
class HeavyBall(Rule):
    """Returns its own state as the update."""

    slots = (Slot("velocity"),)

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        velocity = cells["velocity"].read().mul_(0.5).add_(grad)
        cells["velocity"].write(velocity)
        return velocity


@dataclass(frozen=True)
class Everything(Rule):
    """A bank, an exact anchor, a number for each parameter and one for all."""

    slots = (
        Slot("past", depth=2),
        Slot("anchor", Role.EXACT),
        Slot("travel", Role.SCALAR),
    )

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        if ctx.first:
            cells["anchor"].write(ctx.weights)
        cells["past.1"].write(cells["past.0"].read())
        cells["past.0"].write(grad)
        distance = ctx.norm(ctx.weights - cells["anchor"].read())
        cells["travel"].write(distance)
        return cells["past.1"].read() + grad * ctx.shared["scale"]

    def shared(self) -> dict[str, float]:
        return {"scale": 1.0}

    def finish(self, shared: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        shared["scale"].mul_(0.5)


def test_the_writer_does_not_modify_an_update_that_is_the_state():
    pipeline = Pipeline(HeavyBall(), direction=(lambda update, grad, ctx: update,))
    model, optimizer = make(pipeline, lr=0.1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert torch.equal(optimizer.state_tensors()["bias/velocity/value"], torch.full((1, 6), 1.5))


@dataclass
class Watched:
    """A part that remembers the tensors it saw and checks that nobody changed them."""

    part: Callable[..., Tensor]
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Tensor:
        result = self.part(*arguments)
        tensors = [t for t in (*arguments, result) if isinstance(t, Tensor)]
        self.seen += [(tensor, tensor.clone()) for tensor in tensors]
        return result


@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_later_stations_do_not_modify_updates_and_gradients(rule):
    watched = Watched(lambda update, grad, ctx: update * 2)
    whole = build_pipeline(rule, direction_edits=["cautious"], gradient_edits=["orthograd"])
    pipeline = Pipeline(whole.rule, whole.storage, whole.gradient, (watched, *whole.direction))
    model, optimizer = make(pipeline)
    run(model, optimizer, stop=2)
    assert watched.seen
    for tensor, before in watched.seen:
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("kept", storage.parts)
def test_banks_scalars_and_shared_numbers_survive_a_resume(kept):
    pipeline = Pipeline(Everything(), build_storage(kept, Everything.slots))
    whole, first, second = make(pipeline), make(pipeline), make(pipeline)
    run(*whole)
    run(*first, stop=2)
    second[0].load_state_dict(first[0].state_dict())
    saved = {key: tensor.clone() for key, tensor in first[1].state_tensors().items()}
    assert second[1].load_state(saved, first[1].state_header()) == []
    run(*second, start=2)
    assert_same_bits(everything(*whole), everything(*second))
    assert whole[1].state_header()["layers"][0]["shared"] == {"scale": 0.5**5}
    assert whole[1].state_tensors()["first/travel/value"].shape == (1, 1)
    assert sums(pipeline) == ("factored" in str(kept))
