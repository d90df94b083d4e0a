"""A tiny problem, and every way of stepping through it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, Pipeline, Stacking, build_pipeline
from acmsao_cli.optim.decay import decay
from acmsao_cli.optim.edits.base import direction_edit, gradient_edit
from acmsao_cli.optim.momentum import momentum
from acmsao_cli.optim.ratio import ratio
from acmsao_cli.optim.rules.base import rule
from acmsao_cli.optim.storage.policy import storage
from acmsao_cli.optim.write import rounding

SEED = 7
NUM_STEPS = 5
DTYPES = (torch.float32, torch.bfloat16)
# Parts that sum over a parameter: the order of the sum may differ between stacked and single.
MATRIX_RULES = {"muon", "adadiag", "soap"}  # products of matrices are sums too
WRAPPERS = {"prodigy", "dadaptation"}
SUMMING = frozenset(
    {
        "factored",
        "adafactor",
        *MATRIX_RULES,
        *WRAPPERS,
        "acmsao",
        "multi_scale",
        *gradient_edit.parts,
        *direction_edit.parts,
    }
)


@dataclass(frozen=True)
class Case:
    """A pipeline and the dtype of the weights it steps."""

    pipeline: Pipeline
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.pipeline} on {str(self.dtype).removeprefix('torch.')}"


STORAGES = (*storage.parts, "offloaded(factored)", {"default": "factored", "momentum": "bf16"})
# What is combined with every rule and every storage; a rule without such an option has its own.
STATIONS: dict[str, tuple[Any, ...]] = {
    "momentum": tuple(momentum.parts),
    "ratio": tuple(ratio.parts),
    "gradient_edits": ((), *((edit,) for edit in gradient_edit.parts), tuple(gradient_edit.parts)),
    "direction_edits": (
        (),
        *((edit,) for edit in direction_edit.parts),
        tuple(direction_edit.parts),
    ),
    "decay": tuple(decay.parts),
    "rounding": tuple(rounding.parts),
    "dtype": DTYPES,
}


def combinations() -> Iterator[dict[str, Any]]:
    """Every rule with every storage; the other stations are chosen so that all pairs occur."""
    met: set[tuple[str, str, str, str]] = set()
    for name, kept in itertools.product(rule.parts, STORAGES):
        row: dict[str, Any] = {"name": name, "storage": kept}
        for station, choices in STATIONS.items():
            row[station] = max(choices, key=lambda c: len(pairs(row | {station: c}) - met))
        if row["rounding"] == "kahan":
            row["dtype"] = torch.bfloat16
        met |= pairs(row)
        yield row


def pairs(row: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    """The pairs of choices in a row."""
    every = itertools.combinations(row.items(), 2)
    return {(one, str(a), other, str(b)) for (one, a), (other, b) in every}


def every_case() -> list[Case]:
    """Every combination that its parts do not refuse, and each rule plain."""
    plain = [Case(build_pipeline(name), torch.float32) for name in rule.parts]
    return list(dict.fromkeys([*plain, *(case for _, case in _composed())]))


def cases_with_every_choice(times: int) -> list[Case]:
    """Few combinations, among which each choice of each station occurs so often, if it can."""
    found: list[Case] = []
    rows = [(set(row.items()), case) for row, case in _composed()]
    for _ in range(times):
        missing = set().union(*(row for row, case in rows if case not in found))
        while missing:
            left = ((row, case) for row, case in rows if case not in found)
            row, case = max(left, key=lambda one: len(one[0] & missing))
            missing -= row
            found.append(case)
    return found


def _composed() -> Iterator[tuple[dict[str, str], Case]]:
    """The combinations that no part refuses, with what was chosen for each."""
    for row in combinations():
        options = dict(row)
        dtype = options.pop("dtype")
        known = {field.name for field in dataclasses.fields(rule.parts[options["name"]])}
        for socket in ("momentum", "ratio"):
            if socket not in known:
                del options[socket]
        with contextlib.suppress(OptimizerError):
            case = Case(build_pipeline(**options), dtype)
            yield {station: str(choice) for station, choice in row.items()}, case


def sums(pipeline: Pipeline) -> bool:
    """Whether some part of the pipeline adds up a parameter's entries."""
    return any(part in pipeline.signature() for part in SUMMING)


class Model(nn.Module):
    """Matrices (two alike), vectors, a convolution, a scalar; `spare` never gets a gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.first, self.second = parameter(6, 6), parameter(6, 6)
        self.bias, self.other_bias = parameter(6), parameter(6)
        self.conv = parameter(3, 6, 1, 1)
        self.scale = parameter()
        self.spare = parameter(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.first + self.bias)
        x = torch.tanh(x @ self.second + self.other_bias) * self.scale
        return nn.functional.conv2d(x[:, :, None, None], self.conv).flatten(1)


def batches(start: int = 0, stop: int = NUM_STEPS) -> Iterator[Tensor]:
    for index in range(start, stop):
        yield torch.randn(8, 6, generator=torch.Generator().manual_seed(index))


def make(
    of: Case | Pipeline,
    dtype: torch.dtype = torch.float32,
    stacking: Stacking | None = None,
    lr: float = 0.01,
) -> tuple[Model, ComposedOptimizer]:
    case = of if isinstance(of, Case) else Case(of, dtype)
    model = Model(case.dtype)
    optimizer = ComposedOptimizer(
        model.named_parameters(),
        case.pipeline,
        lr=lr,
        weight_decay=0.1,
        seed=SEED,
        stacking=stacking or ONE_BY_ONE,
    )
    return model, optimizer


def backward(model: Model, x: Tensor) -> Tensor:
    loss = (model(x.to(model.first.dtype)).float() - 0.5).square().mean()
    loss.backward()
    return loss.detach()


def run(model: Model, optimizer: ComposedOptimizer, start: int = 0, stop: int = NUM_STEPS) -> None:
    for x in batches(start, stop):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()


@dataclass(frozen=True)
class Moment:
    """What a run held behind a step, for another run to be compared with or begun from."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    header: dict[str, Any]
    everything: dict[str, Tensor]


@functools.cache
def moments(case: Case) -> tuple[Moment, ...]:
    """Behind each step of a plain run, from the first on; no one may change them."""
    model, optimizer = make(case)
    found = []
    for step in range(NUM_STEPS + 1):
        run(model, optimizer, step, step + 1)
        found.append(
            Moment(
                copied(model.state_dict()),
                copied(optimizer.state_tensors()),
                copy.deepcopy(optimizer.state_header()),
                copied(everything(model, optimizer)),
            )
        )
    return tuple(found)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def everything(model: Model, optimizer: ComposedOptimizer) -> dict[str, Tensor]:
    """Weights, state and the last gradient norm."""
    norm = optimizer.gradient_norm()
    assert norm is not None
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return weights | optimizer.state_tensors() | {"gradient norm": norm}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name
