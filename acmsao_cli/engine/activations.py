"""What autograd keeps for backward, kept in the host's memory.

With gradient checkpointing that is the input of each block, else every activation. Backward asks
for them in the reverse order, so while one is used the one before it is on its way.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from acmsao_cli.engine.host import SideStream, host_like
from acmsao_cli.optim.tracing import FROM_DEVICE, TO_DEVICE, tell_crossed

# Smaller tensors stay: crossing costs more time than they take room.
SMALLEST: Final = 1 << 20

_Key = tuple[int, int, tuple[int, ...], tuple[int, ...], int]


@dataclass(eq=False)
class _Kept:
    """A tensor at home, and on the device once it was asked for or is about to be.

    It comes back with the strides that it had: products of other strides have other last bits.
    """

    home: Tensor
    before: weakref.ref[_Kept] | None
    stride: tuple[int, ...]
    here: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class ActivationsAtHome:
    """Sends what is kept for backward to the host, and back when backward asks for it."""

    def __init__(self, weights: Iterable[Tensor], device: torch.device) -> None:
        """`weights` stay where they are."""
        self._weights = {_storage(weight) for weight in weights}
        self._device, self._side = device, SideStream(device)
        self._last: weakref.ref[_Kept] | None = None
        self._known: dict[_Key, tuple[weakref.ref[Any], weakref.ref[_Kept]]] = {}

    def keeping(self) -> Any:
        """Within, autograd keeps large tensors in the host's memory."""
        self._last = None
        self._known.clear()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        if (
            tensor.nbytes < SMALLEST
            or tensor.device != self._device
            or _storage(tensor) in self._weights
            or 0 in tensor.stride()  # repeated: small for all that it counts
        ):
            return tensor
        # Several operations keep the same tensor: it goes once.
        key = _key(tensor)
        storage, known = self._known.get(key, (None, None))
        found = None if known is None or storage is None or storage() is None else known()
        if found is None:
            found = self._send(tensor)
            self._known[key] = weakref.ref(tensor.untyped_storage()), weakref.ref(found)
        return found

    def _send(self, tensor: Tensor) -> _Kept:
        home = host_like(tensor)
        tell_crossed(tensor.nbytes, FROM_DEVICE)
        with self._side.copying(), torch.no_grad():
            home.copy_(tensor, non_blocking=True)
        if self._side.stream is not None:  # its memory is not used again before it was copied
            tensor.record_stream(self._side.stream)
        kept = _Kept(home, self._last, tensor.stride())
        self._last = weakref.ref(kept)
        return kept

    def _unpack(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._fetch(kept)
        before = kept.before() if kept.before is not None else None
        if before is not None:
            self._fetch(before)
        here, kept.here = kept.here, None
        assert here is not None
        self._side.wait(kept.arrived)
        if self._side.stream is not None:
            here.record_stream(torch.cuda.current_stream(self._device))
        return here

    def _fetch(self, kept: _Kept) -> None:
        if kept.here is None:
            tell_crossed(kept.home.nbytes, TO_DEVICE)
            with self._side.fetching(), torch.no_grad():
                kept.here = torch.empty_strided(
                    kept.home.shape, kept.stride, dtype=kept.home.dtype, device=self._device
                )
                kept.here.copy_(kept.home, non_blocking=True)
            kept.arrived = self._side.arrival()


def _key(tensor: Tensor) -> _Key:
    return (
        _storage(tensor),
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor._version,
    )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
