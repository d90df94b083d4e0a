"""What lives in host memory crosses only when asked for, ahead of its step, and is never stale."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from optim.storage.banked import Banked
from optim.storage.kept import CPU, noise
from torch import Tensor, nn

from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, Pipeline, Stacking, accounting, prefetch
from acmsao_cli.optim.rules.base import Cells, Context, Rule
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Cell, Codec, Full, Pieces
from acmsao_cli.optim.storage.offloaded import Offloaded
from acmsao_cli.optim.storage.policy import Storage, build_storage

SHAPES = {"a": (3, 5), "b": (4, 6), "c": (7,), "d": (4, 6), "large": (300, 256)}


@dataclass
class Log:
    """What crossed: the shapes that were brought, and the copies that still live."""

    brought: list[tuple[int, ...]] = field(default_factory=list)
    live: list[weakref.ref[Tensor]] = field(default_factory=list)
    most: int = 0


@dataclass(frozen=True)
class Counted(Offloaded):
    log: Log = field(default_factory=Log, compare=False)

    def stage(self, pieces: Pieces, device: torch.device) -> Pieces:
        staged = super().stage(pieces, device)
        self.log.brought.append(tuple(pieces["value"].shape[1:]))
        self.log.live.append(weakref.ref(staged["value"]))
        self.log.most = max(self.log.most, sum(ref() is not None for ref in self.log.live))
        return staged


@dataclass(frozen=True)
class CountedStorage:
    """Full numbers everywhere, counted where they are offloaded."""

    log: Log

    def codec(self, slot: Slot) -> Codec:
        return Counted(Full(), self.log) if slot.host else Full()

    def names(self) -> dict[str, str]:
        return {"default": "fp32"}


def named(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    return [(n, nn.Parameter(torch.randn(s, generator=generator))) for n, s in shapes.items()]


def optimizer_of(
    rule: Rule,
    storage: Storage | None = None,
    stacking: Stacking = ONE_BY_ONE,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> ComposedOptimizer:
    pipeline = Pipeline(rule, storage or build_storage("factored_4bit", rule.slots))
    return ComposedOptimizer(named(shapes), pipeline, lr=0.01, seed=3, stacking=stacking)


def give_gradients(optimizer: ComposedOptimizer, step: int, but: tuple[str, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(step)
    for member in optimizer.members:
        gradient = torch.randn(member.parameter.shape, generator=generator)
        member.parameter.grad = None if member.name in but else gradient


def everything(optimizer: ComposedOptimizer) -> dict[str, Tensor]:
    weights = {member.name: member.parameter.detach() for member in optimizer.members}
    return {**weights, **optimizer.state_tensors()}


def assert_same(one: ComposedOptimizer, other: ComposedOptimizer) -> None:
    a, b = everything(one), everything(other)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def step(optimizer: ComposedOptimizer, number: int) -> None:
    give_gradients(optimizer, number)
    optimizer.step()


def step_backward(
    optimizer: ComposedOptimizer,
    number: int,
    order: str = "edcba",
    between: Callable[[ComposedOptimizer, str], None] = lambda optimizer, name: None,
) -> None:
    """Step parameters one by one; a letter stands for a name."""
    give_gradients(optimizer, number)
    members = {member.name[0]: member for member in optimizer.members}
    members["e"] = members.pop("l")
    for letter in order:
        between(optimizer, letter)
        optimizer.step_parameter(members[letter].parameter)
        members[letter].parameter.grad = None
    for member in members.values():
        member.parameter.grad = None
    optimizer.step()


WAYS: dict[str, tuple[Stacking, Callable[[ComposedOptimizer, int], None]]] = {
    "stacked": (Stacking(), step),
    "one by one": (ONE_BY_ONE, step),
    "in blocks": (Stacking(below=0, block=4096), step),
    "backward": (ONE_BY_ONE, step_backward),
    "backward, stacked": (Stacking(), step_backward),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kept", ["fp32", "factored_4bit", "factored"])
def test_in_host_memory_ahead_or_not_the_bits_are_the_same(
    way: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacking, advance = WAYS[way]
    storage = build_storage(kept, ())
    resident, ahead, as_asked = (
        optimizer_of(Banked(host=host), storage, stacking) for host in (False, True, True)
    )
    for number in range(5):
        advance(resident, number)
        advance(ahead, number)
        with monkeypatch.context() as patch:
            patch.setattr(prefetch, "LIMIT", 0)
            advance(as_asked, number)
    assert_same(resident, ahead)
    assert_same(resident, as_asked)


@pytest.mark.parametrize("advance", [step, step_backward])
def test_nothing_crosses_at_steps_without_a_visit(advance: Any) -> None:
    log = Log()
    optimizer = optimizer_of(Banked(visits=3), CountedStorage(log))
    crossed = []
    for number in range(7):
        advance(optimizer, number)
        crossed.append(len(log.brought))
        log.brought.clear()
    assert crossed == [0, 0, 5, 0, 0, 5, 0]  # once for each parameter, at steps 3 and 6


@pytest.mark.parametrize("advance", [step, step_backward])
def test_never_more_than_two_turns_are_on_the_device(advance: Any) -> None:
    log = Log()
    optimizer = optimizer_of(Banked(visits=1), CountedStorage(log))
    for number in range(3):
        advance(optimizer, number)
    assert log.most == 2
    assert not any(ref() is not None for ref in log.live)  # and none after the step


def test_the_next_turn_is_fetched_before_this_one_is_stepped() -> None:
    log = Log()
    seen: list[list[tuple[int, ...]]] = []

    @dataclass(frozen=True)
    class Watched(Banked):
        def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
            seen.append(list(log.brought))
            return super().update(grad, cells, ctx)

    shapes = {"a": (3, 5), "b": (4, 6), "c": (2, 2)}
    optimizer = optimizer_of(Watched(visits=1), CountedStorage(log), shapes=shapes)
    step(optimizer, 0)
    a, b, c = shapes.values()
    assert seen == [[a, b], [a, b, c], [a, b, c]]
    log.brought.clear()
    seen.clear()
    give_gradients(optimizer, 1)
    for member in reversed(optimizer.members):
        optimizer.step_parameter(member.parameter)
    optimizer.step()
    assert seen == [[c, b], [c, b, a], [c, b, a]]


def test_what_was_only_read_stays_away() -> None:
    optimizer = optimizer_of(Banked(visits=1, writes=False))
    step(optimizer, 0)
    banks = [tensor for key, tensor in optimizer.state_tensors().items() if "/bank/" in key]
    before = [bank._version for bank in banks]
    step(optimizer, 1)
    assert [bank._version for bank in banks] == before


@pytest.mark.parametrize("stacking", [ONE_BY_ONE, Stacking()], ids=["one by one", "stacked"])
def test_a_cell_that_someone_writes_to_is_not_used_stale(stacking: Stacking) -> None:
    storage = build_storage("fp32", ())

    def interfere(optimizer: ComposedOptimizer, letter: str) -> None:
        if letter == "b":  # which is on its way already
            parameter = next(m.parameter for m in optimizer.members if m.name == "b")
            optimizer.state[parameter]["bank/value"].fill_(0.5)

    optimizers = [
        optimizer_of(Banked(host=host, visits=1), storage, stacking) for host in (True, False)
    ]
    for optimizer in optimizers:
        step_backward(optimizer, 0)
        step_backward(optimizer, 1, between=interfere)
    assert_same(*optimizers)


def test_a_state_loaded_in_the_midst_of_a_step_is_what_is_stepped() -> None:
    storage = build_storage("bf16", ())
    source = optimizer_of(Banked(visits=1), storage)
    for number in range(3):
        step(source, number)
    saved = (
        {key: value.clone() for key, value in source.state_tensors().items()},
        (source.state_header()),
    )

    def load(optimizer: ComposedOptimizer, letter: str) -> None:
        if letter == "c":
            optimizer.load_state(*saved)

    optimizers = [optimizer_of(Banked(host=host, visits=1), storage) for host in (True, False)]
    for optimizer in optimizers:
        step_backward(optimizer, 7)
        step_backward(optimizer, 8, between=load)
    assert_same(*optimizers)


def test_another_order_or_no_gradient_does_no_harm() -> None:
    storage = build_storage("factored_4bit", ())
    optimizers = [optimizer_of(Banked(host=host, visits=2), storage) for host in (True, False)]
    for optimizer in optimizers:
        for number, order in enumerate(("edcba", "abcde", "ed", "cba", "bade", "edcba", "c", "")):
            step_backward(optimizer, number, order)
        for number, but in enumerate(((), ("b",), ("a", "large"), tuple(SHAPES), ()), start=10):
            give_gradients(optimizer, number, but)
            optimizer.step()
    assert_same(*optimizers)


def test_too_many_bytes_to_bring_at_once_cross_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    shapes = {"small": (300, 256), "large": (600, 256)}
    monkeypatch.setattr(prefetch, "LIMIT", 4 * 300 * 256)
    optimizer = optimizer_of(
        Banked(visits=1), CountedStorage(log), Stacking(below=0, block=1 << 14), shapes
    )
    step(optimizer, 0)
    assert log.brought[0] == (300, 256)
    assert all(rows <= 64 for rows, _ in log.brought[1:])


def test_a_cell_crosses_when_it_is_first_asked_for() -> None:
    log = Log()
    codec = Counted(Full(), log)
    pieces = codec.allocate((1, 2, 3), CPU)
    cell = Cell(codec, pieces, noise(1))
    cell.close()
    assert not log.brought
    cell.read()
    cell.read()
    cell.write(cell.read() + 1)
    assert len(log.brought) == 1
    assert (pieces["value"] == 1).all()


def test_bytes_are_counted_where_they_are() -> None:
    rule = Banked()
    pipeline = Pipeline(rule, build_storage("factored_4bit", rule.slots))
    shapes = [(64, 64), (256,)]
    placed = accounting.placed_bytes(pipeline, shapes)
    at_home = Pipeline(replace(rule, host=False), pipeline.storage)
    assert placed.total == accounting.state_bytes(at_home, shapes)
    assert placed.total == accounting.state_bytes(pipeline, shapes)
    count = 64 * 64 + 256
    assert placed.host == count / 2 + 4 * (count / 256)  # codes and scales of the bank
    assert placed.device == placed.host
    optimizer = optimizer_of(rule, pipeline.storage, shapes={"a": (64, 64), "b": (256,)})
    assert sum(piece.nbytes for piece in optimizer.resident_state()) == placed.device
    assert optimizer.state_bytes() == placed.total


def test_workspace_is_that_of_a_real_step_that_visits() -> None:
    rule = Banked(visits=4)
    storage = build_storage("bf16", rule.slots)
    for stacking in (ONE_BY_ONE, Stacking(), Stacking(below=0, block=1 << 14)):
        optimizer = optimizer_of(rule, storage, stacking)
        for number in range(3):
            step(optimizer, number)
        give_gradients(optimizer, 3)
        found = accounting.step_workspace(optimizer)
        pipeline = optimizer.pipeline
        assert found == accounting.workspace_bytes(
            pipeline, SHAPES.values(), torch.float32, stacking
        )
        give_gradients(optimizer, 4)
        assert accounting.step_workspace(optimizer) < found  # no visit
