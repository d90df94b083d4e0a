"""Which parts go with a rule, found by composing them: no list exists that could drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.catalog import build_pipeline
from acmsao_cli.optim.decay import decay
from acmsao_cli.optim.edits.base import direction_edit, gradient_edit
from acmsao_cli.optim.kernels.parts import recognise
from acmsao_cli.optim.momentum import momentum
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.ratio import ratio
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.rules.base import rule as rules
from acmsao_cli.optim.storage.policy import storage
from acmsao_cli.optim.write import rounding

KERNELS, BLOCKS, BACKWARD = (
    "kernel for storage",
    "stepped in blocks of rows",
    "stepped during backward",
)


@dataclass(frozen=True)
class Feature:
    """One part beside a rule: why they do not go together, or None where they do."""

    kind: str
    name: str
    refused: str | None = None


def features(rule: str) -> list[Feature]:
    """Return every part of every other kind, with whether it goes with the rule's defaults."""
    return [
        *_composed(rule, "storage", storage, "storage", str),
        *_sockets(rule),
        *_composed(rule, "gradient edit", gradient_edit, "gradient_edits", _alone),
        *_composed(rule, "direction edit", direction_edit, "direction_edits", _alone),
        *_composed(rule, "decay", decay, "decay", str),
        *_composed(rule, "rounding", rounding, "rounding", str),
        *_kernels(rule),
        _blocks(rule),
        _backward(rule),
    ]


def _alone(name: str) -> list[str]:
    return [name]


def _composed(
    rule: str, kind: str, registry: Registry[Any], key: str, value: Callable[[str], Any]
) -> Iterator[Feature]:
    for name in registry.parts:
        found = _build(rule, **{key: value(name)})
        yield Feature(kind, name, found if isinstance(found, str) else None)


def _sockets(rule: str) -> Iterator[Feature]:
    """Momenta and ratios, where the rule takes any."""
    taken = {field.name for field in dataclasses.fields(cast(Any, rules.parts[rule]))}
    sockets: tuple[tuple[str, Registry[Any]], ...] = (("momentum", momentum), ("ratio", ratio))
    for kind, registry in sockets:
        if kind in taken:
            yield from _composed(rule, kind, registry, kind, str)
        else:
            yield from (Feature(kind, name, f"{rule} takes no {kind}") for name in registry.parts)


def _kernels(rule: str) -> Iterator[Feature]:
    """Whether a whole step with bf16 weights has a kernel, by storage."""
    for name in storage.parts:
        found = _build(rule, storage=name)
        if isinstance(found, str):
            yield Feature(KERNELS, name, found)
            continue
        try:
            recognise(found, torch.bfloat16)
            yield Feature(KERNELS, name)
        except OptimizerError as error:
            yield Feature(KERNELS, name, error.message)


def _blocks(rule: str) -> Feature:
    found = _build(rule)
    whole = isinstance(found, str) or found.whole
    return Feature(BLOCKS, "fp32", "it needs the whole matrix at once" if whole else None)


def _backward(rule: str) -> Feature:
    """Found by stepping one parameter before the others."""
    found = _build(rule)
    if isinstance(found, str):
        return Feature(BACKWARD, "fp32", found)
    weights = torch.nn.Parameter(torch.ones(2, 2))
    weights.grad = torch.ones(2, 2)
    try:
        ComposedOptimizer([("weights", weights)], found, lr=1e-3).step_parameter(weights)
    except OptimizerError as error:
        return Feature(BACKWARD, "fp32", error.message)
    return Feature(BACKWARD, "fp32")


def _build(rule: str, **keys: Any) -> Pipeline | str:
    """Return the pipeline, or why there is none."""
    try:
        return build_pipeline(rule, **keys)
    except OptimizerError as error:
        return error.message
