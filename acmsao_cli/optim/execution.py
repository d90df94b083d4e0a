"""How one step of a pipeline runs over a batch: at once, or a block of rows at a time.

In blocks the temporaries stay small whatever the parameter's size. What sums over a whole parameter
needs all blocks first, so the blocks are rehearsed once for each such sum: a pipeline is a function
of gradient, state and weights, and may be run again as far as the next unknown sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor

from acmsao_cli.optim.in_rows import Gradient, GradientInRows
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import UNCUT, Cell, Codec, Pieces, State

# Elements at a time: enough to keep a GPU busy, and temporaries of at most 64 MiB.
BLOCK: Final = 1 << 19
_PROBE: Final = 256  # elements of the tiny parameter: no packed piece has more in one entry
_AT_ONCE: Final = 8  # blocks whose column sums are kept before they are put together


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` (axis 1), or the columns (axis 2) of parameters with a single row."""

    axis: int
    start: int
    stop: int
    length: int  # of the whole axis
    width: int  # elements to each of its entries

    @property
    def offset(self) -> int:
        """Number of the first element, in the order of memory."""
        return self.start * self.width

    def cut(self, tensor: Tensor) -> Tensor:
        """View this part of (batch, rows, cols)."""
        return tensor.narrow(self.axis, self.start, self.stop - self.start)

    def cut_gradient(self, gradient: Gradient) -> Tensor:
        """View or compute this part of it."""
        if isinstance(gradient, GradientInRows):
            return gradient.cut(self.start, self.stop)
        return self.cut(gradient)

    def cut_pieces(self, pieces: Pieces, packed: Mapping[str, int]) -> Pieces:
        """Views of what belongs to these rows alone, copies of what all rows share."""
        return {name: self._cut_piece(piece, packed.get(name)) for name, piece in pieces.items()}

    def shares(self, pieces: Pieces, packed: Mapping[str, int]) -> bool:
        """Whether some piece belongs to all rows."""
        return any(
            name not in packed and piece.shape[self.axis] != self.length
            for name, piece in pieces.items()
        )

    def _cut_piece(self, piece: Tensor, elements: int | None) -> Tensor:
        if elements is not None:
            stop = -(-self.stop * self.width // elements)
            return piece[:, self.offset // elements : stop]
        if piece.shape[self.axis] == self.length:
            return self.cut(piece)
        if _is_folded(piece) and piece.shape[2] > 1:  # its rows' sums, each of `width` elements
            width = self.length // piece.shape[2]
            return piece[:, :, self.start // width : self.stop // width]
        return piece.clone()


def _is_folded(piece: Tensor) -> bool:
    """Whether it is a sum of a vector that is folded into a matrix: (batch, 1, rows, cols)."""
    return piece.ndim == 4 and piece.shape[3] > 0


def alignment(pipeline: Pipeline, state: State) -> int:
    """Elements at whose multiples packed entries and rows of folded vectors begin.

    Noise comes in twos.
    """
    codecs = [pipeline.storage.codec(slot) for slot in pipeline.slots]
    packed = [elements for codec in codecs for elements in codec.packed.values()]
    pieces = [piece for pieces in state.values() for piece in pieces.values()]
    return math.lcm(2, *packed, *(piece.shape[3] for piece in pieces if _is_folded(piece)))


def spans_of(shape: torch.Size, block: int, aligned: int) -> list[Span]:
    """Cut (batch, rows, cols) into spans of about `block` elements, each aligned."""
    batch, rows, cols = shape
    axis, length, width = (1, rows, cols) if rows > 1 else (2, cols, 1)
    wanted = block // max(batch, 1)
    step = aligned // math.gcd(aligned, max(width, 1))
    step *= max(wanted // max(width * step, 1), 1)
    return [
        Span(axis, start, min(start + step, length), length, width)
        for start in range(0, length, step)
    ]


def advance(
    pipeline: Pipeline,
    weights: Tensor,
    grad: Gradient,
    state: State,
    ctx: Context,
    noise: Noise,
    block: int = BLOCK,
) -> None:
    """As `Pipeline.step`, with temporaries for about `block` elements."""
    if weights.numel() <= max(block, UNCUT) or pipeline.whole:
        pipeline.step(weights, _whole(grad), state, ctx, noise)
        return
    spans = spans_of(weights.shape, block, alignment(pipeline, state))
    if weights.is_meta:  # nothing is computed, and all blocks but the last need the same memory
        spans = spans[: _AT_ONCE + 2] + spans[_AT_ONCE + 2 :][-1:]
    if len(spans) == 1:
        pipeline.step(weights, _whole(grad), state, ctx, noise)
    else:
        _Blocks(pipeline, weights, grad, state, ctx, noise, spans).run()


def _whole(grad: Gradient) -> Tensor:
    return grad.whole() if isinstance(grad, GradientInRows) else grad


class _UnknownSum(Exception):
    """A rehearsal came to a sum that is not known yet."""


class _Sums:
    """The sums over whole parameters in the order a pipeline asks for them, found one by one."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._known: list[Tensor] = []
        self._partial: Tensor | None = None
        self._asked = 0

    def start_block(self) -> None:
        """Begin with the first sum again."""
        self._asked = 0

    def __call__(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return a known sum, or add this block's part to the next one and stop the rehearsal."""
        if self._axis not in axes:
            return x.sum(axes, keepdim=True)
        index, self._asked = self._asked, self._asked + 1
        if index < len(self._known):
            return self._known[index].clone()  # it may be changed in place
        part = x.sum(axes, keepdim=True)
        self._partial = part if self._partial is None else self._partial + part
        raise _UnknownSum

    def settle(self) -> None:
        """Take the sum that all blocks contributed to as known."""
        assert self._partial is not None
        self._known.append(self._partial)
        self._partial = None


class _Copies(Mapping[str, Tensor]):
    """Pieces copied when they are asked for, so that a rehearsal changes nothing."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._copied: Pieces = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._copied:
            self._copied[name] = self._pieces[name].clone()
        return self._copied[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


class _Written:
    """What was written block by block into one cell's pieces."""

    def __init__(self, codec: Codec, pieces: Pieces) -> None:
        self._codec, self._pieces = codec, pieces
        self._blocks: list[Pieces] = []
        self._span: Span | None = None  # of all blocks so far

    def add(self, span: Span, block: Pieces) -> None:
        """Take the next block; now and then several become one, for each keeps what all share."""
        self._span = span if self._span is None else replace(self._span, stop=span.stop)
        self._blocks.append(block)
        if len(self._blocks) == _AT_ONCE:
            together = self._span.cut_pieces(self._pieces, self._codec.packed)
            self._codec.join(together, self._blocks)
            self._blocks = [together]

    def close(self) -> None:
        """Put everything together."""
        self._codec.join(self._pieces, self._blocks)


class _Blocks:
    """One step in blocks."""

    def __init__(
        self,
        pipeline: Pipeline,
        weights: Tensor,
        grad: Gradient,
        state: State,
        ctx: Context,
        noise: Noise,
        spans: list[Span],
    ) -> None:
        self.pipeline, self.weights, self.grad, self.state = pipeline, weights, grad, state
        self.noise, self.spans = noise, spans
        self.slots: dict[str, Slot] = dict(pipeline.cells())
        self.sums = _Sums(spans[0].axis)
        self.ctx = replace(ctx, sum=self.sums, known={})

    def run(self) -> None:
        """Rehearse until every sum is known, then step every block."""
        for _ in range(count_sums(self.pipeline, self.ctx, self.spans[0].axis, self.weights)):
            for span in self.spans:
                self._rehearse(span)
            self.sums.settle()
        rulers = self._advanced_rulers()
        written = {
            name: _Written(self._codec(slot), self.state[name])
            for name, slot in self.slots.items()
            if name not in rulers
        }
        for span in self.spans:
            for name, pieces in self._step(span, rulers).items():
                if name in written:
                    written[name].add(span, pieces)
        for blocks in written.values():
            blocks.close()
        for name, advanced in rulers.items():
            for piece, tensor in advanced.items():
                self.state[name][piece].copy_(tensor)

    def _rehearse(self, span: Span) -> None:
        copies = {name: _as_pieces(_Copies(p)) for name, p in self._cut(span).items()}
        ctx = replace(self.ctx, contribute=_contribute_nothing)
        try:
            self._direct(span, self._open(span, copies), ctx)
        except _UnknownSum:
            return
        raise AssertionError("fewer sums than were counted")

    def _advanced_rulers(self) -> State:
        """What the slots that measure others will hold, where it takes all rows to know it.

        What they measure is stored in the new unit, so it has to be known first.
        """
        measuring = {
            slot.unit
            for slot in self.slots.values()
            if slot.unit is not None and self._codec(slot).measured
        }
        rulers = {
            name: {piece: tensor.clone() for piece, tensor in self.state[name].items()}
            for name in measuring
            if self.spans[0].shares(self.state[name], self._codec(self.slots[name]).packed)
        }
        if not rulers:
            return {}
        written = {n: _Written(self._codec(self.slots[n]), p) for n, p in rulers.items()}
        ctx = replace(self.ctx, contribute=_contribute_nothing)
        for span in self.spans:
            state: State = {n: _as_pieces(_Copies(p)) for n, p in self._cut(span).items()}
            for name, pieces in rulers.items():
                state[name] = span.cut_pieces(pieces, self._codec(self.slots[name]).packed)
            self._direct(span, self._open(span, state), ctx)
            for name, blocks in written.items():
                blocks.add(span, state[name])
        for blocks in written.values():
            blocks.close()
        return rulers

    def _step(self, span: Span, rulers: State) -> State:
        """Step one block; return its pieces as they were written."""
        state = self._cut(span)
        for name in rulers:
            state[name] = _as_pieces(_Copies(state[name]))
        cells = self._open(span, state)
        dense, ctx, update = self._direct(span, cells, self.ctx)
        for name, pieces in rulers.items():
            cells[name].settle(span.cut_pieces(pieces, self._codec(self.slots[name]).packed))
        noise = self.noise.starting_at(span.offset)
        self.pipeline.complete(span.cut(self.weights), dense, update, cells, ctx, noise)
        return state

    def _direct(
        self, span: Span, cells: dict[str, Cell], ctx: Context
    ) -> tuple[Tensor, Context, Tensor]:
        self.sums.start_block()
        return self.pipeline.direct(
            span.cut(self.weights), span.cut_gradient(self.grad), cells, ctx
        )

    def _open(self, span: Span, state: State) -> dict[str, Cell]:
        return self.pipeline.open(state, self.noise.starting_at(span.offset))

    def _cut(self, span: Span) -> State:
        return {
            name: span.cut_pieces(self.state[name], self._codec(slot).packed)
            for name, slot in self.slots.items()
        }

    def _codec(self, slot: Slot) -> Codec:
        return self.pipeline.storage.codec(slot)


def count_sums(pipeline: Pipeline, ctx: Context, axis: int, like: Tensor) -> int:
    """How many sums over a whole parameter this step asks for: asked of a tiny parameter."""
    count = 0

    def count_and_sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        nonlocal count
        count += axis in axes
        return x.sum(axes, keepdim=True)

    shape = (1, 2, _PROBE) if axis == 1 else (1, 1, _PROBE)
    weights = torch.zeros(shape, dtype=like.dtype, device=like.device)
    state = pipeline.allocate(*shape, like.device)
    noise = Noise(torch.zeros((1, 1, 1), dtype=torch.int32, device=like.device), 0)
    ctx = replace(
        ctx,
        weights=weights,
        sum=count_and_sum,
        contribute=_contribute_nothing,
        noise=noise,
        known=None,
    )
    pipeline.direct(weights, weights, pipeline.open(state, noise), ctx)
    return count


def _as_pieces(copies: Mapping[str, Tensor]) -> Pieces:
    return cast(Pieces, copies)  # read by name only


def _contribute_nothing(name: str, value: Tensor) -> None:
    return None
