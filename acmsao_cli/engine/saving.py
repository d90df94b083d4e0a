"""The checkpoints of a run that goes on: when one is missed, and what is never kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.checkpoint.background import Files, Writer
from acmsao_cli.checkpoint.resume import WEIGHTS
from acmsao_cli.checkpoint.store import LOSS, CheckpointStore
from acmsao_cli.engine.assemble import Run
from acmsao_cli.engine.events import Listener, Notice, Saved
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.report import MetricsFile, losses_of
from acmsao_cli.errors import OutputError

Save: TypeAlias = Callable[[int, Files, Mapping[str, Any]], Path | None]

# Checkpoints in a row that could not be written before the run gives up.
SAVES_MISSED: Final = 3


class DamagedStateError(Exception):
    """Weights or state that are not finite: `what`. No checkpoint is made of them."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Checkpoints:
    """Saves where a run is, beside its steps while `aside()`, from copies of `at_most` bytes.

    A checkpoint that cannot be written is tried again at the next one's time, since space may be
    made; SAVES_MISSED in a row raise OutputError.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        metrics: MetricsFile,
        listener: Listener,
        aside: Callable[[], bool],
        at_most: int | None = None,
    ) -> None:
        section = run.config.recipe.checkpoint
        self.run, self.metrics, self.listener = run, metrics, listener
        self.store = CheckpointStore(folder.checkpoints, section.keep, section.keep_best)
        self.writer = Writer(
            self.store.save, aside=lambda: section.background and aside(), at_most=at_most
        )
        self.missed, self.begun_at = 0, run.step

    @property
    def is_due(self) -> bool:
        """Whether a multiple of `checkpoint.every` has been passed since the last one."""
        every = self.run.config.recipe.checkpoint.every
        return self.run.step // every > self.begun_at // every

    def save(self) -> None:
        """Begin a checkpoint of where the run is, once the one before it is on the disk.

        Raises DamagedStateError.
        """
        self._tried(self.writer.wait)
        self._tried(lambda: self._saved_by(self.writer.begin))
        self.look()

    def save_now(self) -> None:
        """The same, and wait for it: nothing comes after it that could be tried instead.

        Raises OutputError if it cannot be written.
        """
        self._tried(self.writer.wait)
        self._tell(self._saved_by(self.store.save))

    def look(self) -> None:
        """Tell of a checkpoint that has come to the disk since."""
        self._tried(self.writer.written)

    def settle(self) -> None:
        """Wait for what is underway, whatever becomes of it."""
        with suppress(OutputError):
            self._tell(self.writer.wait())

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on the disk, ascending."""
        self.settle()
        return self.store.steps()

    def _saved_by(self, save: Save) -> Path | None:
        """What `save` makes of where the run is."""
        self.begun_at = self.run.step
        files, header = self.run.state()
        require_finite_state(files)
        self.metrics.flush()
        losses = losses_of(self.metrics.rows[-self.run.config.recipe.checkpoint.every :])
        lost = {LOSS: sum(losses) / len(losses)} if losses else {}
        return save(self.run.step, files, {**header, **lost})

    def _tried(self, work: Callable[[], Path | None]) -> None:
        try:
            self._tell(work())
        except OutputError as error:
            self.missed += 1
            if self.missed == SAVES_MISSED:
                raise
            text = f"no checkpoint at step {self.begun_at}: {error.message}; going on"
            self.listener(Notice(text))

    def _tell(self, path: Path | None) -> None:
        if path is not None:
            self.missed = 0
            self.listener(Saved("checkpoint", path, self.begun_at))


@torch.no_grad()
def require_finite_state(files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise DamagedStateError unless weights are finite, and the state holds no NaN.

    A rule may mark with infinity what it has not seen yet.
    """
    for file, tensors in files.items():
        floats = {name: one for name, one in tensors.items() if one.is_floating_point()}
        for name in suspicious(floats):
            wrong = ~floats[name].isfinite() if file == WEIGHTS else floats[name].isnan()
            if bool(wrong.any()):
                raise DamagedStateError(f"`{name}` of the {file}")


def suspicious(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those whose sum is not finite: all that hold such a number, and few others.

    Each device is waited for once.
    """
    sums = {name: total(one) for name, one in tensors.items()}
    found = []
    for device in {one.device for one in sums.values()}:
        names = [name for name, one in sums.items() if one.device == device]
        finite = torch.stack([sums[name] for name in names]).isfinite().tolist()
        found += [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
    return sorted(found)


def total(tensor: Tensor) -> Tensor:
    """The sum in fp32, 0-d; without a copy of what is large, but torch sums no 8-bit floats."""
    short = tensor.float() if tensor.itemsize == 1 else tensor
    return short.sum(dtype=torch.float32)
