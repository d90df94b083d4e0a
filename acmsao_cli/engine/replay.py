"""Steps that a run has taken, taken again from a checkpoint: are they the same to the bit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from acmsao_cli.checkpoint.store import Checkpoint, open_checkpoint, saved_steps
from acmsao_cli.engine.assemble import Run
from acmsao_cli.engine.events import Listener, Replayed
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import PoisonedStepError, advance
from acmsao_cli.engine.step import NotFiniteError
from acmsao_cli.errors import CheckpointError

Row = Mapping[str, Any]

# What a line of metrics.jsonl says of a step's result; the rest is about time and memory. Numbers
# are written there with all their digits.
FIGURES: Final = (
    *("loss", "lr", "gradient_norm", "units", "accumulation", "left_out"),
    *("noise_scale", "gradient_variance", "signal"),
)


@dataclass(frozen=True)
class Passage:
    """Steps to take again: those of `rows`, from behind `checkpoint`; None is the beginning."""

    checkpoint: Checkpoint | None
    rows: Sequence[Row]


def passage(folder: RunFolder, rows: Sequence[Row], num_steps: int) -> Passage:
    """At most so many steps behind the newest checkpoint that has any behind it.

    Raises CheckpointError where no step was taken, or a checkpoint is damaged.
    """
    if not rows:
        raise CheckpointError(
            f"{folder.path} has no step to take again", hint="let the run take some first"
        )
    last = rows[-1]["step"]
    steps = [step for step in saved_steps(folder.checkpoints) if step < last]
    checkpoint = open_checkpoint(folder.checkpoint(steps[-1])) if steps else None
    first = checkpoint.step if checkpoint else 0
    return Passage(checkpoint, [row for row in rows if row["step"] > first][:num_steps])


def replay(run: Run, folder: RunFolder, rows: Sequence[Row], listener: Listener) -> Iterator[str]:
    """Take the steps of `rows` with `run`, which stands right before them.

    Yields what is not as it was, in words; nothing is written. Where there is a checkpoint of a
    step, all its weights and state are compared too.
    """
    run.poisoned = {row["step"]: row["left_out"] for row in rows if row.get("left_out")}
    kept = saved_steps(folder.checkpoints)
    for row in rows:
        try:
            now = advance(run, lambda event: None)
        except (NotFiniteError, PoisonedStepError) as error:
            listener(Replayed(row["step"], row["loss"], same=False, weights_compared=False))
            yield f"step {row['step']}: its {error.what} is not finite now"
            return
        wrong = [
            f"step {run.step}: {name} was {row[name]}, and is {now[name]}"
            for name in FIGURES
            if name in row and row[name] != now[name]
        ]
        if run.step in kept:
            wrong += differences(run, open_checkpoint(folder.checkpoint(run.step)))
        listener(Replayed(run.step, row["loss"], not wrong, run.step in kept))
        yield from wrong


def differences(run: Run, checkpoint: Checkpoint) -> Iterator[str]:
    """The weights and parts of the state whose bits are not those of the checkpoint."""
    files, _ = run.state()
    for file, tensors in files.items():
        saved = checkpoint.tensors(file)
        other = [
            name
            for name in sorted(saved.keys() | tensors.keys())
            if name not in saved
            or name not in tensors
            or not same_bits(saved[name], tensors[name].cpu())
        ]
        if other:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            yield f"step {run.step}: `{other[0]}`{more} of the {file} is not as it was"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit, NaNs included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*raw)
