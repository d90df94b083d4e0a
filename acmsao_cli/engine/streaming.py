"""Weights that live in the host's memory and come to the device block by block.

Of a model's blocks some stay on the device. Each of the others is there while it computes, and the
one that will be needed next is on its way meanwhile: never more than `WINDOW` of them exist on the
device. A block that backward stepped goes home before its memory is used again. Its tensors are the
same all the time: only their memory comes and goes, so that what autograd kept of a weight in
forward finds it again in backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acmsao_cli.engine.host import SideStream, host_like
from acmsao_cli.optim.tracing import (
    FROM_DEVICE,
    HOST,
    TO_DEVICE,
    WEIGHTS,
    counted_as,
    tell_claimed,
    tell_crossed,
    tell_resized,
)

# Streamed blocks on the device: the one that computes and the one that is on its way.
WINDOW: Final = 2

# Smaller weights stay on the device: crossing would take longer than computing with them.
SMALLEST: Final = 1 << 12


@dataclass(eq=False)
class Block:
    """Weights that come and go together: on the device (maybe without memory), and at home."""

    module: nn.Module
    weights: list[Tensor]
    home: list[Tensor]
    arrived: torch.cuda.Event | None = None
    here: bool = False
    stepped: bool = False

    @property
    def nbytes(self) -> int:
        """Of the host's memory, and of the device's while it is there."""
        return sum(tensor.nbytes for tensor in self.home)


class BlockStream:
    """Brings blocks to the device when they compute, and takes stepped ones home.

    `most_here` is the largest number of them that were on the device at once.
    """

    def __init__(self, blocks: Sequence[Block], device: torch.device) -> None:
        """Take the blocks, in the order in which forward computes them; they are at home."""
        self.blocks, self.most_here = list(blocks), 0
        self._side = SideStream(device)
        self._backward = False
        self._block_of = {weight: block for block in blocks for weight in block.weights}
        for number, block in enumerate(blocks):
            block.module.register_forward_pre_hook(self._before(number))
            block.module.register_forward_hook(self._behind(number))

    @property
    def nbytes(self) -> int:
        """Of all blocks, in the host's memory."""
        return sum(block.nbytes for block in self.blocks)

    def home(self) -> Iterator[Tensor]:
        """The weights in the host's memory."""
        for block in self.blocks:
            yield from block.home

    @contextmanager
    def going_back(self) -> Iterator[None]:
        """Within, blocks are needed in the order of backward; after it all are at home."""
        self._backward = True
        try:
            yield
        finally:
            self._backward = False
            self.settle()

    def note_step(self, parameter: Tensor) -> None:
        """The optimizer changed this weight: its block is to be taken home."""
        block = self._block_of.get(parameter)
        if block is not None:
            block.stepped = True

    @contextmanager
    def present(self, weight: Tensor) -> Iterator[None]:
        """Within, this weight is on the device, whether its block computed or not."""
        block = self._block_of.get(weight)
        if block is None:
            yield
            return
        self._fetch(block)
        self._side.wait(block.arrived)
        yield
        self._release(block)

    def settle(self) -> None:
        """Take every block home, and wait until it is there."""
        for block in self.blocks:
            self._release(block)
        self._side.settle()

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Within, the weights are the host's tensors: to be saved, loaded or exported."""
        self.settle()
        away = [weight.data for block in self.blocks for weight in block.weights]
        for weight, home in zip(self._weights(), self.home(), strict=True):
            weight.data = home
        try:
            yield
        finally:
            for weight, there in zip(self._weights(), away, strict=True):
                weight.data = there

    def _weights(self) -> Iterator[Tensor]:
        for block in self.blocks:
            yield from block.weights

    def _before(self, number: int) -> Any:
        def need(module: nn.Module, arguments: Any) -> None:
            self._need(number)

        return need

    def _behind(self, number: int) -> Any:
        def await_backward(module: nn.Module, arguments: Any, output: Any) -> None:
            if self._backward:  # computed again: it is there already
                return
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.grad_fn is not None:
                    leaf.register_hook(lambda _: self._need(number))

        return await_backward

    def _need(self, number: int) -> None:
        """Have this block on the device, fetch the one that comes after it, let the others go."""
        following = number - 1 if self._backward else number + 1
        wanted = [self.blocks[number]]
        if 0 <= following < len(self.blocks):
            wanted.append(self.blocks[following])
        for block in self.blocks:
            if block.here and block not in wanted:
                self._release(block)
        for block in wanted:
            self._fetch(block)
        self._side.wait(wanted[0].arrived)

    def _fetch(self, block: Block) -> None:
        if block.here:
            return
        # No wait for what is computed: the memory is of this stream, which waited at the release.
        with self._side.fetching(), counted_as(WEIGHTS), torch.no_grad():
            for weight, home in zip(block.weights, block.home, strict=True):
                _resize(weight, home.nbytes)
                tell_crossed(home.nbytes, TO_DEVICE)
                weight.data.copy_(home, non_blocking=True)
        block.arrived, block.here = self._side.arrival(), True
        self.most_here = max(self.most_here, sum(one.here for one in self.blocks))

    def _release(self, block: Block) -> None:
        if not block.here:
            return
        with self._side.copying(), torch.no_grad():
            for weight, home in zip(block.weights, block.home, strict=True):
                if block.stepped:
                    tell_crossed(home.nbytes, FROM_DEVICE)
                    home.copy_(weight.data, non_blocking=True)
                _resize(weight, 0)
        block.here = block.stepped = False
        block.arrived = None


def _resize(weight: Tensor, size: int) -> None:
    weight.untyped_storage().resize_(size)
    tell_resized(weight)


def stream_blocks(
    modules: Iterable[nn.Module],
    blocks: Sequence[nn.Module],
    resident: int,
    device: torch.device,
    *,
    frozen_only: bool,
) -> BlockStream:
    """Put the modules on `device`, but for the weights of all blocks except `resident` of them.

    Those that stay are spread evenly, so that copies have time behind each. `frozen_only`: what is
    trained stays too.
    """
    streamed = spread(blocks, len(blocks) - resident)
    shared = _shared_storages(modules)
    made = []
    for module in streamed:
        module.to(device)
        weights = [
            parameter
            for parameter in dict.fromkeys(module.parameters())
            if parameter.nbytes >= SMALLEST
            and not (frozen_only and parameter.requires_grad)
            and _storage(parameter) not in shared
            and parameter.untyped_storage().nbytes() == parameter.nbytes
        ]
        made.append(Block(module, list(weights), [_sent_home(weight) for weight in weights]))
    for module in modules:
        module.to(device)
    return BlockStream(made, device)


def spread(blocks: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """So many of the blocks, evenly spread."""
    chosen = {number * len(blocks) // count for number in range(count)} if count > 0 else set()
    return [block for number, block in enumerate(blocks) if number in chosen]


@torch.no_grad()
def _sent_home(weight: Tensor) -> Tensor:
    home = host_like(weight)
    home.copy_(weight)
    tell_claimed([home], HOST)
    if not weight.untyped_storage().resizable():  # the mapped file itself
        weight.data = weight.data.clone()
    _resize(weight, 0)
    return home


def _shared_storages(modules: Iterable[nn.Module]) -> set[int]:
    """Those that several weights of the modules use."""
    counts = Counter(
        _storage(parameter)
        for module in modules
        for owner in module.modules()
        for parameter in owner.parameters(recurse=False)
    )
    return {storage for storage, count in counts.items() if count > 1}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
