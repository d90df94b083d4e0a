"""State on disk: `<parameter name>/<slot>/<piece>` tensors, and a small JSON header.

Loading is ours: allocate, compare names, shapes and dtypes exactly, copy.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import registry
from acmsao_cli.optim.batches import Member, matrix_shape
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Rule
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Pieces
from acmsao_cli.optim.storage.policy import DEFAULT, Storage, build_storage

if TYPE_CHECKING:
    from acmsao_cli.optim.optimizer import ComposedOptimizer

FORMAT: Final = 3  # 2 did not say what momenta mean, 1 had a single layer
HEADER: Final = "acmsao"  # its key in torch's form
_AFRESH: Final = "start the optimizer afresh, or go back to the rule the run began with"


def tensors(optimizer: ComposedOptimizer) -> dict[str, Tensor]:
    """Return the allocated state by key, as views without a batch axis."""
    return {
        f"{member.name}/{key}": piece
        for member in optimizer.members
        for key, piece in optimizer.state.get(member.parameter, {}).items()
    }


def header(optimizer: ComposedOptimizer) -> dict[str, Any]:
    """Return everything else needed to continue; waits for the device if numbers are shared."""
    return {
        "format": FORMAT,
        "layers": [
            {
                "pipeline": pipeline.signature(),
                "rule": memory_kind(pipeline),
                "storage": dict(pipeline.storage.names()),
                "shared": {name: number.item() for name, number in shared.items()},
            }
            for pipeline, shared in zip(optimizer.pipelines, optimizer.shared, strict=True)
        ],
        "groups": _groups(optimizer),
        "step": optimizer.global_step,
        "seed": optimizer.seed,
        "late_parameters": {  # parameters that missed steps, with their own count
            member.name: optimizer.steps[member.number]
            for member in optimizer.members
            if optimizer.steps[member.number] != optimizer.global_step
        },
    }


def memory_kind(pipeline: Pipeline) -> str:
    """The rule and what it remembers: equal for pipelines whose state means the same."""
    slots = ", ".join(f"{name}:{slot.role.value}" for name, slot in pipeline.cells())
    return f"{_rule_name(pipeline.rule)}[{slots}]"


def _rule_name(rule: Rule) -> str:
    """The rule's name, with what its momentum, the rule it wraps and its own options mean."""
    momentum, inner = getattr(rule, "momentum", None), getattr(rule, "inner", None)
    parts = [
        rule.meaning,
        getattr(momentum, "meaning", ""),
        "" if inner is None else _rule_name(inner),
    ]
    said = ", ".join(part for part in parts if part)
    return registry.part_name(rule) + (f"({said})" if said else "")


def load(optimizer: ComposedOptimizer, saved: dict[str, Tensor], head: dict[str, Any]) -> list[str]:
    """Copy a saved state in; return notices of what differs from the run that saved it."""
    storages = _check(optimizer, saved, head)
    notices = [*_differences(optimizer, head), *_group_differences(optimizer, head)]
    _take_over(optimizer, saved, head, storages)
    return notices


def load_torch_form(optimizer: ComposedOptimizer, saved: dict[str, Any]) -> list[str]:
    """As `load`, from torch's form of a state: groups have to be the same and get their options."""
    if not {"state", "param_groups", HEADER} <= saved.keys():
        raise OptimizerError(
            "the saved state is not of an optimizer of this library: "
            f"it has {', '.join(f'`{key}`' for key in saved) or 'nothing'}",
            hint="start the optimizer afresh",
        )
    head, groups = saved[HEADER], saved["param_groups"]
    keys = {n: name for g in groups for n, name in zip(g["params"], g["param_names"], strict=True)}
    pieces = {
        f"{keys[number]}/{key}": piece
        for number, state in saved["state"].items()
        for key, piece in state.items()
    }
    storages = _check(optimizer, pieces, head)
    if [g["param_names"] for g in groups] != [g["param_names"] for g in optimizer.param_groups]:
        raise OptimizerError(
            "saved optimizer state has its parameters in other groups or in another order",
            hint="make the groups as they were, in the same order",
        )
    notices = _differences(optimizer, head)
    _take_over(optimizer, pieces, head, storages)
    for group, saved_group in zip(optimizer.param_groups, groups, strict=True):
        group.update(deepcopy({k: v for k, v in saved_group.items() if k != "params"}))
    return notices


def _check(
    optimizer: ComposedOptimizer, saved: dict[str, Tensor], head: dict[str, Any]
) -> list[Storage]:
    """Refuse what does not fit; return the storages, by layer, in which it was saved."""
    _check_header(optimizer, head)
    storages = [
        build_storage(layer["storage"], pipeline.slots)
        for pipeline, layer in zip(optimizer.pipelines, head["layers"], strict=True)
    ]
    _check_tensors(optimizer, saved, head, storages)
    return storages


def _take_over(
    optimizer: ComposedOptimizer,
    saved: dict[str, Tensor],
    head: dict[str, Any],
    storages: list[Storage],
) -> None:
    """Copy what was checked."""
    _restore_numbers(optimizer, head)
    pieces = _by_cell(saved)
    stepped = {key.rsplit("/", 2)[0] for key in saved}
    for member in optimizer.members:
        if member.name in stepped:
            _fill(optimizer, member, storages[member.layer], pieces)
        else:
            _clear(optimizer, member)


def _groups(optimizer: ComposedOptimizer) -> list[dict[str, Any]]:
    return [
        {
            **{
                key: float(group[key])
                for key in ("lr", "initial_lr", "weight_decay")
                if key in group
            },
            "layer": group["layer"],
            "parameters": list(group["param_names"]),
        }
        for group in optimizer.param_groups
    ]


def _check_header(optimizer: ComposedOptimizer, head: dict[str, Any]) -> None:
    missing = [key for key in header(optimizer) if key not in head]
    if head.get("format") != FORMAT or missing:
        raise OptimizerError(
            f"saved optimizer state has format {head.get('format')}, this version reads {FORMAT}"
            + (f"; its header lacks {', '.join(missing)}" if missing else ""),
            hint="continue with the version that wrote it, or start the optimizer afresh",
        )
    kinds = [memory_kind(pipeline) for pipeline in optimizer.pipelines]
    for ours, theirs in zip_longest(kinds, [layer["rule"] for layer in head["layers"]]):
        if ours != theirs:
            raise OptimizerError(
                f"saved optimizer state belongs to {theirs or 'fewer layer patterns'}, "
                f"this run uses {ours or 'fewer layer patterns'}",
                hint=_AFRESH,
            )
    mine = {member.name: member.layer for member in optimizer.members}
    saved = {name: group["layer"] for group in head["groups"] for name in group["parameters"]}
    if mine.keys() != saved.keys():
        name = min(mine.keys() ^ saved.keys())
        where = "the saved state" if name in mine else "this run"
        raise OptimizerError(
            f"`{name}` is not in {where}", hint="train the same parameters, or start afresh"
        )
    moved = [name for name, layer in mine.items() if saved[name] != layer]
    if moved:
        raise OptimizerError(
            f"`{moved[0]}` fitted layer pattern {saved[moved[0]]}, now {mine[moved[0]]}",
            hint="keep the patterns, or start the optimizer afresh",
        )


def _layout(optimizer: ComposedOptimizer, storage: Storage, member: Member) -> dict[str, Tensor]:
    """Return what a saved parameter must look like, as meta tensors by key."""
    rows, cols = matrix_shape(member.values.shape)
    pipeline = replace(optimizer.pipelines[member.layer], storage=storage)
    state = pipeline.allocate(1, rows, cols, torch.device("meta"))
    return {
        f"{member.name}/{cell}/{name}": piece[0]
        for cell, pieces in state.items()
        for name, piece in pieces.items()
    }


def _check_tensors(
    optimizer: ComposedOptimizer,
    saved: dict[str, Tensor],
    head: dict[str, Any],
    storages: list[Storage],
) -> None:
    """Refuse missing, unknown or misshapen tensors; a parameter never stepped may have none."""
    planned = {
        member.number: _layout(optimizer, storages[member.layer], member)
        for member in optimizer.members
    }
    known = {key for layout in planned.values() for key in layout}
    unknown = saved.keys() - known
    if unknown:
        raise OptimizerError(
            f"saved optimizer state has an unknown tensor `{min(unknown)}`",
            hint="the file is damaged or belongs to another model",
        )
    for member in optimizer.members:
        layout = planned[member.number]
        never_stepped = head["late_parameters"].get(member.name, head["step"]) == 0
        if never_stepped and not any(key in saved for key in layout):
            continue
        for key, expected in layout.items():
            found = _looks(saved[key]) if key in saved else "nothing"
            if found != _looks(expected):
                raise OptimizerError(
                    f"saved optimizer state `{key}` should be {_looks(expected)}, found {found}",
                    hint="; ".join(_differences(optimizer, head))
                    or "the file is damaged or belongs to another model",
                )


def _looks(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _differences(optimizer: ComposedOptimizer, head: dict[str, Any]) -> list[str]:
    notices = []
    for pipeline, layer in zip(optimizer.pipelines, head["layers"], strict=True):
        before, now = layer["storage"], dict(pipeline.storage.names())
        if before != now:
            notices.append(f"optimizer state converted from {_written(before)} to {_written(now)}")
        if not layer["pipeline"].startswith(pipeline.stations() + " | "):
            notices.append(f"optimizer was {layer['pipeline']}, is {pipeline.signature()}")
    if head["seed"] != optimizer.seed:
        notices.append(f"rounding continues with the saved seed {head['seed']}")
    return notices


def _group_differences(optimizer: ComposedOptimizer, head: dict[str, Any]) -> list[str]:
    ours = _groups(optimizer)
    if [g["parameters"] for g in ours] != [g["parameters"] for g in head["groups"]]:
        return ["parameter groups or their order changed; learning rates were not restored"]
    notices = []
    for index, (group, saved_group) in enumerate(zip(ours, head["groups"], strict=True)):
        if group["weight_decay"] != saved_group["weight_decay"]:
            was, is_now = saved_group["weight_decay"], group["weight_decay"]
            notices.append(f"weight decay of group {index} was {was}, is {is_now}")
    return notices


def _written(storage: dict[str, str]) -> str:
    exceptions = ", ".join(f"{slot}: {name}" for slot, name in storage.items() if slot != DEFAULT)
    return f"{storage[DEFAULT]} ({exceptions})" if exceptions else storage[DEFAULT]


def _restore_numbers(optimizer: ComposedOptimizer, head: dict[str, Any]) -> None:
    """Take over counts, seed, shared numbers and, where the groups are the same, learning rates."""
    optimizer.seed, optimizer.global_step = head["seed"], head["step"]
    for member in optimizer.members:
        optimizer.steps[member.number] = head["late_parameters"].get(member.name, head["step"])
    for shared, layer in zip(optimizer.shared, head["layers"], strict=True):
        for name, number in shared.items():
            number.fill_(layer["shared"][name])
    for group, saved_group in zip(optimizer.param_groups, head["groups"], strict=False):
        if list(group["param_names"]) == saved_group["parameters"]:
            group.update({k: saved_group[k] for k in ("lr", "initial_lr") if k in saved_group})


def _by_cell(saved: dict[str, Tensor]) -> dict[str, Pieces]:
    """Group tensors by `<parameter name>/<cell>`."""
    grouped: dict[str, Pieces] = defaultdict(dict)
    for key, tensor in saved.items():
        cell, _, piece = key.rpartition("/")
        grouped[cell][piece] = tensor
    return grouped


def _fill(
    optimizer: ComposedOptimizer, member: Member, storage: Storage, saved: dict[str, Pieces]
) -> None:
    """Copy one parameter's state; if its codec changed, read with the old and write with ours."""
    state, pipeline = optimizer.state_of(member), optimizer.pipelines[member.layer]
    device = member.parameter.device
    number = torch.full((1, 1, 1), member.number, dtype=torch.int32, device=device)
    noise = Noise(number, hash_numbers(optimizer.seed, optimizer.steps[member.number]))
    theirs = {
        cell: {n: p.unsqueeze(0).to(device) for n, p in saved[f"{member.name}/{cell}"].items()}
        for cell in state
    }
    before = replace(pipeline, storage=storage)
    slots = {slot.name: slot for slot in pipeline.slots}
    as_it_was = {
        slot.name for slot in slots.values() if _same_codecs(before, pipeline, slot, slots)
    }
    for cell, slot in pipeline.cells():
        if slot.name in as_it_was:
            for name, piece in state[cell].items():
                piece.copy_(theirs[cell][name])
    old, new = before.open(theirs, noise), pipeline.open(state, noise)
    for cell, slot in pipeline.cells():
        if slot.name not in as_it_was:
            new[cell].write(old[cell].read())
    for converted in new.values():
        converted.close()


def _same_codecs(before: Pipeline, now: Pipeline, slot: Slot, slots: dict[str, Slot]) -> bool:
    """Whether a slot's pieces mean what they meant: its codec's, and that of its unit."""
    kept = [slot] if slot.unit is None else [slot, slots[slot.unit]]
    return all(before.storage.codec(one) == now.storage.codec(one) for one in kept)


def _clear(optimizer: ComposedOptimizer, member: Member) -> None:
    """Forget what this optimizer had for a parameter that the saved run never stepped."""
    for pieces in optimizer.state_of(member).values() if optimizer.is_allocated(member) else ():
        for piece in pieces.values():
            piece.zero_()
