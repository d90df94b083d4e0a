"""Checkpoints written beside the training, one at a time, from a copy of what is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.checkpoint.store import num_bytes
from acmsao_cli.host_memory import host_memory

Files: TypeAlias = Mapping[str, Mapping[str, Tensor]]
Save: TypeAlias = Callable[[int, Files, Mapping[str, Any]], Path]

# A copy takes at most this share of the memory that is free to this process; what is larger is
# written from where it is, while the training waits.
SHARE_OF_FREE_MEMORY: Final = 0.4


class Writer:
    """Hands checkpoints to `save`: in a thread of its own while `aside()` and while there is memory
    for a copy, else at once. The bytes are the same. No copy has more than `at_most` bytes.

    A save that failed is told by the next call of `written` or `wait`, once.
    """

    def __init__(
        self, save: Save, *, aside: Callable[[], bool], at_most: int | None = None
    ) -> None:
        self._save = save
        self._aside, self._at_most = aside, at_most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._underway: Future[Path] | None = None

    def begin(self, step: int, files: Files, header: Mapping[str, Any]) -> None:
        """Save, now or beside what follows; `files` may change as soon as this returns.

        Nothing may be underway.
        """
        assert self._underway is None
        copy = self._copy_of(files)
        if copy is not None:
            self._underway = self._thread.submit(self._save, step, copy, header)
        else:
            self._underway = Future()
            try:
                self._underway.set_result(self._save(step, files, header))
            except Exception as error:
                self._underway.set_exception(error)

    def _copy_of(self, files: Files) -> Files | None:
        """What can be written beside the training; None where there shall be no copy."""
        size = num_bytes(files)
        if not self._aside() or (self._at_most is not None and size > self._at_most):
            return None
        if not has_room_for(size):
            return None
        try:
            return copied(files)
        except (MemoryError, RuntimeError):
            # There was less than it seemed. Whatever else is wrong, writing in place meets it too.
            return None

    def written(self) -> Path | None:
        """The checkpoint that was begun, once it is on the disk; told once.

        Raises what its saving raised.
        """
        return self.wait() if self._underway is not None and self._underway.done() else None

    def wait(self) -> Path | None:
        """The checkpoint that is underway, when it is on the disk; None where none is.

        Raises what its saving raised.
        """
        underway, self._underway = self._underway, None
        return underway.result() if underway is not None else None


def has_room_for(wanted: int) -> bool:
    """Whether a copy of so many bytes leaves this process enough."""
    return wanted <= SHARE_OF_FREE_MEMORY * host_memory().free


@torch.no_grad()
def copied(files: Files) -> dict[str, dict[str, Tensor]]:
    """The same values on the CPU, in memory of their own."""
    return {
        file: {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        for file, tensors in files.items()
    }
