# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The pipeline's twin in Triton, one pass over the tensor; importing this needs triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from acmsao_cli.optim.batches import gather, row_by_row_norm, scatter
from acmsao_cli.optim.execution import BLOCK
from acmsao_cli.optim.kernels.composed import Composed
from acmsao_cli.optim.kernels.parts import MOMENTUM, SQUARE, Kept, Parts
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import Pieces, State

BLOCK_ROWS: Final = 64  # of one program: its columns' sums are kept until all are done
TILE_ROWS: Final = 8
TILE_COLS: Final = 256
_TINY: Final = torch.finfo(torch.float32).tiny

NOT_SPECIALISED: Final = ("salt", "momentum_salt", "square_salt", "numel")


@triton.jit
def _halves(key, element):
    """16 bits for each element as noise.py draws them, from 0 to 65535."""
    word = ((element >> 1).to(tl.uint32) * 0x9E3779B9) ^ key
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    word = word ^ (word >> 16) ^ 0x80008000
    return (word >> ((element & 1).to(tl.uint32) * 16)) & 0xFFFF


@triton.jit
def _round(value, noise):
    bits = (value.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
    return tl.where(value == value, bits.to(tl.float32, bitcast=True), value).to(tl.bfloat16)


@triton.jit
def _to_nearest(value):
    """What rounds to the nearest instead of by chance, ties to even."""
    return 0x7FFF + ((value.to(tl.uint32, bitcast=True) >> 16) & 1)


@triton.jit
def _lerp(start, end, weight):
    difference = end - start
    return tl.where(weight < 0.5, start + weight * difference, end - (1 - weight) * difference)


@triton.jit
def _outer(row, col, tiny):
    """Rank1.read; NaN stays NaN."""
    product = row * col
    least = tl.where((row > 0) & (col > 0), tiny, 0.0)
    return tl.where(product < least, least, product)


@triton.jit
def _atan2(y, x):
    """For x >= 0; the polynomial is that of SLEEF's atan2f."""
    size = tl.abs(y)
    small, large = tl.where(size < x, size, x), tl.where(size < x, x, size)
    equal = size == x  # both may be zero or infinite
    s = tl.where(equal, tl.where(x > 0, 1.0, 0.0), small / tl.where(equal, 1.0, large))
    t = s * s
    u = 0.00282363896 * t - 0.0159569029
    u = u * t + 0.0425049886
    u = u * t - 0.0748900920
    u = u * t + 0.106347933
    u = u * t - 0.142027363
    u = u * t + 0.199926957
    u = u * t - 0.333331019
    s = s + s * (t * u)
    s = tl.where(size > x, 1.57079633 - s, s)
    return tl.where(y < 0, -s, s)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def advance(
    weights,
    grad,
    momentum,  # dense values, or packed signs
    momentum_row,
    momentum_col,
    square,
    square_row,
    square_col,
    row_sums,  # (2, batch, rows, column tiles): of |m|, of v
    col_sums,  # (2, batch, row blocks, cols)
    numbers,
    salt,
    momentum_salt,
    square_salt,
    batch,
    rows,
    cols,
    numel,  # of one parameter
    side,
    look,
    pull,
    keep_square,
    pull_square,
    eps,
    shrink,
    lr,
    tiny,
    RULE: tl.constexpr,
    RATIO: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SQUARE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ROUNDING: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """Advance BLOCK_ROWS x TILE_COLS of one parameter, whose rows are whole bytes of signs."""
    blocks, tiles = tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(cols, TILE_COLS)
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles % blocks
    member = (tl.program_id(0) // tiles // blocks).to(tl.int64)
    seed = tl.load(numbers + member).to(tl.uint32, bitcast=True) * 0x2545F491
    key = seed + salt.to(tl.uint32, bitcast=True)
    momentum_key = seed + momentum_salt.to(tl.uint32, bitcast=True)
    square_key = seed + square_salt.to(tl.uint32, bitcast=True)
    base = member * numel
    col = tile * TILE_COLS + tl.arange(0, TILE_COLS)
    if MOMENTUM == "RANK1":
        m_col = tl.load(momentum_col + member * cols + col, mask=col < cols, other=0.0)
        m_col_sum = tl.zeros((TILE_COLS,), tl.float32)
        num_bytes = (numel + 7) // 8
    if SQUARE == "RANK1":
        v_col = tl.load(square_col + member * cols + col, mask=col < cols, other=0.0)
        v_col_sum = tl.zeros((TILE_COLS,), tl.float32)
    for start in range(0, BLOCK_ROWS, TILE_ROWS):
        row = block * BLOCK_ROWS + start + tl.arange(0, TILE_ROWS)
        element = row.to(tl.int64)[:, None] * cols + col[None, :]
        inside = (row < rows)[:, None] & (col < cols)[None, :] & (element < numel)
        place = base + element
        g = side * tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
        m = g
        if MOMENTUM == "RANK1":
            m_row = tl.load(momentum_row + member * rows + row, mask=row < rows, other=0.0)
            sign = momentum + member * num_bytes + (element >> 3)
            octet = tl.load(sign, mask=inside, other=0).to(tl.int32)
            bit = (octet >> (element & 7).to(tl.int32)) & 1
            m = _outer(m_row[:, None], m_col[None, :], tiny) * (bit * 2 - 1).to(tl.float32)
        elif MOMENTUM != "NONE":
            m = tl.load(momentum + place, mask=inside, other=0.0).to(tl.float32)

        if RULE == "LION":
            c = _lerp(g, m, look)
            u = tl.where(c > 0, 1.0, tl.where(c < 0, -1.0, 0.0))
            m = _lerp(m, g, pull)
        else:
            if MOMENTUM != "NONE":
                m = _lerp(m, g, pull)
            if SQUARE == "RANK1":
                v_row = tl.load(square_row + member * rows + row, mask=row < rows, other=0.0)
                v = _outer(v_row[:, None], v_col[None, :], tiny)
            else:
                v = tl.load(square + place, mask=inside, other=0.0).to(tl.float32)
            v = v * keep_square + pull_square * g * g
            root = tl.sqrt(v)
            u = _atan2(m, root) * 1.27323954 if RATIO == "ATAN2" else m / (root + eps)
            if SQUARE == "RANK1":
                v = tl.where(inside, v, 0.0)
                v_col_sum += tl.sum(v, 0)
                place_of_row = (batch + member) * rows + row
                tl.store(row_sums + place_of_row * tiles + tile, tl.sum(v, 1), mask=row < rows)
            elif SQUARE == "HALF":
                tl.store(square + place, _round(v, _halves(square_key, element)), mask=inside)
            else:
                tl.store(square + place, v, mask=inside)

        if MOMENTUM == "RANK1":
            size = tl.where(inside, tl.abs(m), 0.0)
            m_col_sum += tl.sum(size, 0)
            place_of_row = member * rows + row
            tl.store(row_sums + place_of_row * tiles + tile, tl.sum(size, 1), mask=row < rows)
            bits = tl.reshape((inside & (m >= 0)).to(tl.int32), (TILE_ROWS, TILE_COLS // 8, 8))
            octets = tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
            byte = tile * (TILE_COLS // 8) + tl.arange(0, TILE_COLS // 8)
            packed = row.to(tl.int64)[:, None] * (cols // 8) + byte[None, :]
            known = (row < rows)[:, None] & (byte * 8 < cols)[None, :]
            tl.store(momentum + member * num_bytes + packed, octets, mask=known)
        elif MOMENTUM == "HALF":
            tl.store(momentum + place, _round(m, _halves(momentum_key, element)), mask=inside)
        elif MOMENTUM == "FULL":
            tl.store(momentum + place, m, mask=inside)

        w = w * shrink - lr * u
        if WEIGHTS == "FULL":
            tl.store(weights + place, w, mask=inside)
        elif ROUNDING == "STOCHASTIC":
            tl.store(weights + place, _round(w, _halves(key, element)), mask=inside)
        else:
            tl.store(weights + place, _round(w, _to_nearest(w)), mask=inside)
    if MOMENTUM == "RANK1":
        tl.store(col_sums + (member * blocks + block) * cols + col, m_col_sum, mask=col < cols)
    if SQUARE == "RANK1":
        place_of_col = ((batch + member) * blocks + block) * cols + col
        tl.store(col_sums + place_of_col, v_col_sum, mask=col < cols)


@dataclass(frozen=True)
class CudaKernel:
    """`Pipeline.step` for one composition, on a CUDA device."""

    parts: Parts

    def step(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: State,
        ctx: Context,
        noise: Noise,
    ) -> Tensor:
        """See `Kernel.step`; the host waits for nothing."""
        assert noise.offset == 0, "a kernel steps whole parameters"
        rows, cols = self.parts.matrix(ctx)
        if self.parts.momentum is Kept.RANK1 and rows > 1 and cols % 8:  # bytes straddle rows
            return Composed(self.parts.pipeline).step(weights, grads, state, ctx, noise)
        dense, grad = (gather(them, ctx.rows, ctx.cols).contiguous() for them in (weights, grads))
        norms = row_by_row_norm(grad, BLOCK)
        if dense.numel():
            self._advance(dense, grad, state, ctx, noise)
            scatter(dense, weights)
        return norms

    def _advance(
        self, weights: Tensor, grad: Tensor, state: State, ctx: Context, noise: Noise
    ) -> None:
        """Advance contiguous (batch, ctx.rows, ctx.cols)."""
        batch, (rows, cols) = len(weights), self.parts.matrix(ctx)
        numel = rows * cols
        if not self.parts.sums:
            rows, cols = -(-numel // TILE_COLS), TILE_COLS
        blocks, tiles = triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(cols, TILE_COLS)
        kept = batch if self.parts.sums else 0
        row_sums = weights.new_empty((2, kept, rows, tiles), dtype=torch.float32)
        col_sums = weights.new_empty((2, kept, blocks, cols), dtype=torch.float32)
        pieces = {slot: state.get(slot, {}) for slot in (MOMENTUM, SQUARE)}
        with torch.cuda.device_of(weights):
            advance[(batch * blocks * tiles,)](  # one axis: CUDA's others end at 65,535
                weights,
                grad,
                *_pointers(pieces[MOMENTUM], weights),
                *_pointers(pieces[SQUARE], weights),
                row_sums,
                col_sums,
                noise.numbers.to(torch.int32).contiguous(),
                *self.parts.salts(noise),
                batch,
                rows,
                cols,
                numel,
                **asdict(self.parts.numbers(ctx)),
                tiny=_TINY,
                **self.options,
            )
            for slot, row, col in zip(pieces.values(), row_sums, col_sums, strict=True):
                if "row" in slot:
                    _store_sums(slot, row.sum(2), col.sum(1))

    @property
    def options(self) -> dict[str, Any]:
        """What the code is compiled for."""
        return {
            **self.parts.names(),
            "BLOCK_ROWS": BLOCK_ROWS,
            "TILE_ROWS": TILE_ROWS,
            "TILE_COLS": TILE_COLS,
        }


def kernel(parts: Parts) -> CudaKernel:
    """Return the kernel for these parts; triton compiles it at its first step."""
    return CudaKernel(parts)


def _pointers(pieces: Pieces, stand_in: Tensor) -> list[Tensor]:
    """The slot's value or signs, its row and its column; what it has not is never touched."""
    assert all(piece.is_contiguous() for piece in pieces.values())
    value = pieces.get("value", pieces.get("sign", stand_in))
    return [value, pieces.get("row", stand_in), pieces.get("col", stand_in)]


def _store_sums(pieces: Pieces, row: Tensor, col: Tensor) -> None:
    """Rank1.write, from sums of (batch, rows) and (batch, cols)."""
    total = row.sum(1, keepdim=True)
    share = row / torch.where(total > 0, total, 1.0)
    pieces["row"].copy_(share.clamp_(min=_TINY).mul_(row > 0).view_as(pieces["row"]))
    pieces["col"].copy_(col.view_as(pieces["col"]))
