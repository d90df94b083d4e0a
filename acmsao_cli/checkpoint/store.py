"""Checkpoints of which every one on disk is whole.

A checkpoint is a folder `step-00000200`: safetensors files and, written last, `manifest.json` with
each file's size and sha256. It is built under a temporary name beside its place, flushed to the
disk, and renamed: a crash leaves the old checkpoints and perhaps a temporary folder, which the next
start removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from acmsao_cli.data.files import text_of
from acmsao_cli.errors import CheckpointError
from acmsao_cli.identity import sha256
from acmsao_cli.models.safetensors_writer import write_tensors
from acmsao_cli.writing import HashedFile, flush_folder, flushed, own_folder, require_space, writing

FORMAT = 2
MANIFEST = "manifest.json"
# In the manifest: a hash of all else in it.
SEAL = "sha256"
NAME = re.compile(r"step-(\d{8})")
# Beside the place of a checkpoint that is being replaced: what was there.
FORMER = ".former.tmp"
# Before the name of a checkpoint of a course that the run has left.
ASIDE = "left-"
# In a checkpoint's header: the mean loss of the steps before it, if there were any that count.
LOSS = "loss"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, verified when it was opened."""

    path: Path
    step: int
    header: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of the file `name`.safetensors, on the CPU."""
        file = self.path / f"{name}.safetensors"
        try:
            return dict(load_file(file))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint file {file} cannot be read: {error}") from None


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run; the newest `keep` are kept.

    With `keep_best`, so is the one whose header says the lowest loss.
    """

    folder: Path
    keep: int
    keep_best: bool = False

    def save(
        self, step: int, files: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint, make it visible at once, then remove the oldest above `keep`.

        When this returns it is on the disk. Raises OutputError, and nothing has changed.
        """
        target = path_in(self.folder, step)
        temporary = self.folder / f".{target.name}.tmp"
        require_space(self.folder, num_bytes(files), "the checkpoint")
        with writing(self.folder), self._cleared(temporary):
            entries = {
                f"{name}.safetensors": write_file(temporary / f"{name}.safetensors", tensors)
                for name, tensors in files.items()
            }
            manifest = {"format": FORMAT, "step": step, "files": entries, "header": dict(header)}
            sealed = json.dumps({**manifest, SEAL: seal_of(manifest)}, indent=1)
            (temporary / MANIFEST).write_text(sealed, encoding="utf-8")
            flushed(temporary / MANIFEST)
            flush_folder(temporary)
            self._put_in_place(temporary, target)
        self.discard_after(step)
        self.forget_aside()
        self._prune()
        return target

    @contextmanager
    def _cleared(self, temporary: Path) -> Iterator[None]:
        """An empty folder to build in; nothing of it is left, whatever happens."""
        shutil.rmtree(temporary, ignore_errors=True)
        own_folder(self.folder)
        temporary.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        """Rename; where a run that went back comes to the same step again, the old one goes."""
        former = self.folder / f".{target.name}{FORMER}"
        replaces = target.exists()
        if replaces:
            os.replace(target, former)
        try:
            os.replace(temporary, target)
        except OSError:
            if replaces:
                os.replace(former, target)
            raise
        flush_folder(self.folder)
        shutil.rmtree(former, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return saved_steps(self.folder)

    def best(self) -> tuple[int, float] | None:
        """The step and the loss of the checkpoint that says the lowest; of equals, the newest."""
        found = [(step, self._loss(step)) for step in self.steps()]
        told = [(step, loss) for step, loss in found if loss is not None]
        return min(told, key=lambda one: (one[1], -one[0]), default=None)

    def _loss(self, step: int) -> float | None:
        """What a checkpoint's header says, if it can be read."""
        try:
            manifest = json.loads(text_of(path_in(self.folder, step) / MANIFEST))
            return float(manifest["header"][LOSS])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self) -> None:
        """Remove all but the newest `keep`, and the best."""
        best = self.best() if self.keep_best else None
        for step in self.steps()[: -self.keep]:
            if best is None or step != best[0]:
                self._remove(step)

    def discard_after(self, step: int) -> None:
        """Remove checkpoints newer than `step`: the run went back, and goes on from here."""
        for newer in self.steps():
            if newer > step:
                self._remove(newer)

    def forget_aside(self) -> None:
        """Remove what was set aside."""
        for path in self.folder.glob(f"{ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Make it no checkpoint at once, then take its files away."""
        path = path_in(self.folder, step)
        gone = self.folder / f".{path.name}.gone.tmp"
        with suppress(OSError):
            os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what a crash left unfinished; what was about to be replaced is put back."""
        for former in self.folder.glob(f".step-*{FORMER}"):
            target = self.folder / former.name.removeprefix(".").removesuffix(FORMER)
            if not target.exists():
                os.replace(former, target)
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def num_bytes(files: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Of all tensors."""
    return sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())


def write_file(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file of tensors, on the disk when this returns; its entry in the manifest."""
    with file.open("xb") as stream:
        hashed = HashedFile(stream)
        write_tensors(hashed, tensors)
    flushed(file)
    return {"bytes": hashed.num_bytes, "sha256": hashed.digest}


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in `folder`, ascending; whole or not."""
    if not folder.is_dir():
        return []
    found = (step_of(entry) for entry in folder.iterdir())
    return sorted(step for step in found if step is not None)


def set_aside_after(folder: Path, step: int) -> None:
    """Make checkpoints newer than `step` none, for good: the run goes on from there.

    Their files stay under another name until it has saved again. Raises OutputError.
    """
    newer = [path_in(folder, one) for one in saved_steps(folder) if one > step]
    with writing(folder):
        for path in newer:
            aside = folder / f"{ASIDE}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
        if newer:
            flush_folder(folder)


def path_in(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's name tells; None for a name that is none."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, not yet verified."""
    steps = saved_steps(folder)
    return path_in(folder, steps[-1]) if steps else None


def open_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint in `folder`, and what is wrong with those that are newer.

    None where there is no checkpoint. Raises CheckpointError where there are, and none is whole.
    """
    wrong: list[str] = []
    for step in reversed(saved_steps(folder)):
        try:
            return open_checkpoint(path_in(folder, step)), wrong
        except CheckpointError as error:
            wrong.append(error.message)
    if wrong:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used\n  " + "\n  ".join(wrong),
            hint="put one back, or start a new run: another --output, or --resume never",
        )
    return None, wrong


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the checkpoint at `path`: every file present, of its size and hash."""
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {MANIFEST}",
            hint="name a folder like RUN/checkpoints/step-00000200",
        )
    try:
        manifest = json.loads(text_of(file))
        version, seal = manifest["format"], manifest.pop(SEAL, None)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {error}", hint=OLDER) from None
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {version}; this version of acmsao reads {FORMAT}"
        )
    if seal != seal_of(manifest):
        raise CheckpointError(f"checkpoint file {file} was changed or damaged", hint=OLDER)
    for name, entry in manifest["files"].items():
        check_file(path / name, entry)
    return Checkpoint(path, manifest["step"], manifest["header"])


def seal_of(manifest: Mapping[str, Any]) -> str:
    """A hash of what a manifest says, as it comes back when it is read."""
    read_back = json.loads(json.dumps(manifest))
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def check_file(file: Path, entry: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless `file` is what the manifest says."""
    if not file.is_file():
        raise CheckpointError(f"checkpoint file {file} is missing", hint=OLDER)
    if file.stat().st_size != entry.get("bytes"):
        raise CheckpointError(
            f"checkpoint file {file} has {file.stat().st_size} bytes, not {entry.get('bytes')}",
            hint=OLDER,
        )
    if sha256(file) != entry.get("sha256"):
        raise CheckpointError(f"checkpoint file {file} was changed or damaged", hint=OLDER)


OLDER = "resume from an older one: --resume RUN/checkpoints/step-NNNNNNNN; or --resume never"
