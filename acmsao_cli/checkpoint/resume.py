"""What a run's state is made of, and whether a recipe may continue it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.checkpoint.store import Checkpoint
from acmsao_cli.config.parts import spoken
from acmsao_cli.errors import CheckpointError

WEIGHTS = "weights"
OPTIMIZER = "optimizer"

# These may differ between the run that saved and the run that continues: it is the same training,
# longer, or with its numbers kept elsewhere. Everything else would silently make it another run.
# Model and data are compared by content (`engine.continuation`), wherever they lie.
FREE_TO_CHANGE = (
    "about",
    "model.source",
    "model.revision",
    "model.config",
    "data.source",
    "data.on_bad",
    "data.max_bad",
    "data.workers",
    "training.steps",
    "training.epochs",
    "training.device",
    "training.gradient_checkpointing",
    "training.noise_scale",
    "training.nonfinite_steps",
    "optimizer.storage",
    "optimizer.fused_backward",
    "memory",
    "checkpoint",
    "samples",
    "output",
)

# Of those the later bits may follow from these: the course of the rate, what the state can hold,
# and the order of the loss head's sums. So it is recorded that they changed.
ALTERING = (
    "training.steps",
    "training.epochs",
    "optimizer.storage",
    "memory.loss_chunk",
    "memory.slice_head",
)

# These values of a setting may take each other's place, to the bit: exact clipping is exact
# clipping, in one pass or in two.
ALIKE = {"training.clip": ("global", "two_pass")}


def trained_tensors(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights to save, by name."""
    return {name: parameter.detach() for name, parameter in parameters.items()}


def restore_weights(checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy saved weights into `parameters`; names, shapes and dtypes must be the same."""
    saved = checkpoint.tensors(WEIGHTS)
    if missing := sorted(parameters.keys() ^ saved.keys()):
        raise CheckpointError(
            f"checkpoint {checkpoint.path} holds other weights: {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            hint="the model or the method differs from the run's; --resume never starts afresh",
        )
    for name, parameter in parameters.items():
        value = saved[name]
        if value.shape != parameter.shape or value.dtype != parameter.dtype:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: `{name}` is {describe(value)}, "
                f"the model has {describe(parameter)}",
                hint="the model or its dtype differs from the run's; --resume never starts afresh",
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def describe(tensor: Tensor) -> str:
    """Dtype and shape in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


@dataclass(frozen=True)
class Changed:
    """A setting, by its dotted path, that is not what it was."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """In a recipe's words."""
        return f"{self.key}: {spoken(self.before)} -> {spoken(self.now)}"


def recipe_changes(
    saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[list[Changed], list[Changed]]:
    """The settings that differ: those that may, and those that make it another run."""
    before, now = flatten(saved), flatten(wanted)
    changed = [
        Changed(key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    free = [one for one in changed if may_differ(one.key, one.before, one.now)]
    return free, [one for one in changed if one not in free]


def require_same_recipe(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The settings that differ and may; raises CheckpointError naming those that may not."""
    free, refused = recipe_changes(saved, wanted)
    if refused:
        lines = [
            f"  {one.key}: {spoken(one.before)} in the run, {spoken(one.now)} now"
            for one in refused
        ]
        raise CheckpointError(
            "the recipe differs from the run that would be continued\n" + "\n".join(lines),
            hint="put the values back, go on with the new ones by --allow-changed recipe, or start "
            "a new run: another --output, or --resume never without one",
        )
    return [str(one) for one in free]


def may_differ(key: str, before: Any, now: Any) -> bool:
    """Whether the setting at dotted path `key` may change so in mid-run."""
    return is_below(key, FREE_TO_CHANGE) or (key in ALIKE and {before, now} <= set(ALIKE[key]))


def is_below(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted path is one of these, or within one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; lists and the optimizer's parts stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and prefix != f"{OPTIMIZER}.":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
