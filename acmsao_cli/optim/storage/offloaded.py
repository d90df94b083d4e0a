"""State in host memory, brought to the device for its step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.codec import Codec, Pieces
from acmsao_cli.optim.tracing import FROM_DEVICE, TO_DEVICE, tell_crossed


@dataclass(frozen=True)
class Offloaded(Codec):
    """Another codec's pieces, in pinned host memory where the device is a GPU.

    On a CPU it is the same memory as ever, and copied all the same: one way of stepping. On the
    meta device pieces stay there, to be counted.
    """

    inner: Codec

    @property
    def offloaded(self) -> bool:
        """It is its point."""
        return True

    @property
    def packed(self) -> Mapping[str, int]:
        """The inner codec's."""
        return self.inner.packed

    @property
    def measured(self) -> bool:
        """The inner codec's."""
        return self.inner.measured

    @property
    def whole(self) -> bool:
        """The inner codec's."""
        return self.inner.whole

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return the inner pieces in host memory."""
        if device.type in ("cpu", "meta"):
            return self.inner.allocate(shape, device)
        pieces = self.inner.allocate(shape, torch.device("cpu"))
        return {name: _pinned(piece, device) for name, piece in pieces.items()}

    def stage(self, pieces: Pieces, device: torch.device) -> Pieces:
        """Copy to the device, without waiting."""
        tell_crossed(sum(piece.nbytes for piece in pieces.values()), TO_DEVICE)
        return {
            name: piece.to(device, non_blocking=True, copy=True) for name, piece in pieces.items()
        }

    def unstage(self, pieces: Pieces, staged: Pieces) -> None:
        """Copy back and wait, once for each cell: the host may put blocks together next."""
        tell_crossed(sum(piece.nbytes for piece in pieces.values()), FROM_DEVICE)
        devices = {tensor.device for tensor in staged.values() if tensor.device.type == "cuda"}
        for name, piece in pieces.items():
            piece.copy_(staged[name], non_blocking=bool(devices))
        for device in devices:
            torch.cuda.current_stream(device).synchronize()

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return what the inner codec reads from staged pieces."""
        return self.inner.read(pieces, unit)

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Write into staged pieces."""
        self.inner.write(pieces, value, noise, unit)

    def join(self, pieces: Pieces, blocks: Sequence[Pieces]) -> None:
        """As the inner codec."""
        self.inner.join(pieces, blocks)


def _pinned(piece: Tensor, device: torch.device) -> Tensor:
    return piece.pin_memory() if device.type == "cuda" and piece.numel() else piece
