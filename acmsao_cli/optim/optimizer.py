"""A pipeline as a torch optimizer: groups, ways of stepping, and state on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, overload

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import saving
from acmsao_cli.optim.batches import (
    Batch,
    Member,
    Stacking,
    gather,
    plan_batches,
    row_of,
    scatter,
)
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import State

Named: TypeAlias = tuple[str, Tensor]
_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class BackwardHandle:
    """Hooks that step during backward; `remove` ends it."""

    hooks: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Go back to ordinary stepping."""
        for hook in self.hooks:
            hook.remove()


class ComposedOptimizer(torch.optim.Optimizer):
    """Steps named fp32 or bf16 parameters through a pipeline, to the same bits in every way.

    State appears at a parameter's first step, or by `allocate`. `self.state[p]` holds views of it:
    copy into them, never replace them. Each parameter counts its own steps, so one without a
    gradient is left alone.
    """

    def __init__(
        self,
        named_parameters: Iterable[Named] | Iterable[dict[str, Any]],
        pipeline: Pipeline,
        *,
        lr: float,
        weight_decay: float = 0.0,
        seed: int = 0,
        stacking: Stacking | None = None,
    ) -> None:
        self.pipeline, self.seed, self.global_step = pipeline, seed, 0
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(cast(Any, _as_groups(named_parameters)), defaults)
        self.members = _members(self.param_groups)
        self._member_of = {member.parameter: member for member in self.members}
        self._batches = plan_batches(self.members, stacking or Stacking())
        self._place = {
            member.number: (batch, index)
            for batch in self._batches
            for index, member in enumerate(batch.members)
        }
        self._states: dict[int, State] = {}  # by the number of a batch's first member
        self.steps = [0] * len(self.members)  # by parameter number
        self._stepped: set[int] = set()  # parameter numbers advanced since the last finish
        device = self.members[0].parameter.device
        self.shared = {
            name: torch.full((), value, dtype=torch.float32, device=device)
            for name, value in pipeline.rule.shared().items()
        }
        self._norms = {  # gradient norms by parameter number
            device: torch.zeros(len(self.members), dtype=torch.float32, device=device)
            for device in dict.fromkeys(batch.device for batch in self._batches)
        }
        self._contributions = {  # by device and name, by parameter number: whoever came first
            device: {name: torch.zeros_like(norms) for name in pipeline.rule.contributions}
            for device, norms in self._norms.items()
        }
        self._gradient_norm: Tensor | None = None

    # Stepping

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Advance every parameter with a gradient that was not advanced yet; finish the step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in self._batches:
            self._advance_batch(batch)
        self._finish()
        return loss

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor) -> None:
        """Advance one parameter now; the later `step` leaves it alone and finishes."""
        member = self._member_of.get(parameter)
        if member is None:
            raise OptimizerError("step_parameter got a parameter this optimizer does not have")
        if member.number in self._stepped:
            raise OptimizerError(
                f"`{member.name}` would be advanced twice in one step",
                hint="call step() after each backward that steps",
            )
        if parameter.grad is not None:
            self._advance_single(member)

    def attach_to_backward(self, should_step: Callable[[], bool]) -> BackwardHandle:
        """Step each parameter as soon as its gradient is complete, and free the gradient.

        Where `should_step()` says no, gradients stay and accumulate.
        """
        for member in self.members:
            if getattr(member.parameter, "_post_accumulate_grad_hooks", None):
                raise OptimizerError(
                    f"`{member.name}` already has a hook that acts on its gradient",
                    hint="remove it before stepping during backward",
                )

        def advance_and_free(parameter: Tensor) -> None:
            if should_step():
                self.step_parameter(parameter)
                parameter.grad = None

        trainable: list[Any] = [m.parameter for m in self.members if m.parameter.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(advance_and_free) for p in trainable]
        return BackwardHandle(tuple(hooks))

    def gradient_norm(self) -> Tensor | None:
        """Return the norm of all gradients of the last step, before edits; 0-d fp32, no wait."""
        return self._gradient_norm

    def _advance_batch(self, batch: Batch) -> None:
        waiting = [
            index
            for index, member in enumerate(batch.members)
            if member.parameter.grad is not None and member.number not in self._stepped
        ]
        if len(waiting) == len(batch.members) and self._is_uniform(batch):
            self._advance(batch.members, batch, batch.numbers, self._state_of(batch))
        else:
            for index in waiting:
                self._advance_single(batch.members[index])

    def _advance_single(self, member: Member) -> None:
        batch, index = self._place[member.number]
        numbers = batch.numbers[index : index + 1]
        self._advance([member], batch, numbers, self.state_of(member))

    def _advance(
        self, members: Sequence[Member], batch: Batch, numbers: Tensor, state: State
    ) -> None:
        """Advance members with gradients of one dtype and equally many steps behind them."""
        parameters = [member.parameter for member in members]
        weights = gather(parameters, batch.rows, batch.cols)
        grad = gather([_gradient(member) for member in members], batch.rows, batch.cols)
        self._note_norms(numbers, grad)
        step = self.steps[members[0].number] + 1
        group = self.param_groups[members[0].group]
        lr, decay = group["lr"], group["weight_decay"]
        contributions = self._contributions[batch.device]

        def contribute(name: str, value: Tensor) -> None:
            contributions[name].index_copy_(0, numbers, value.flatten())

        ctx = Context(
            step=step,
            first=step == 1,
            lr=lr,
            weight_decay=decay,
            weights=weights,
            rows=batch.rows,
            cols=batch.cols,
            shared=self.shared,
            contribute=contribute,
        )
        noise = Noise(numbers.to(torch.int32).view(-1, 1, 1), hash_numbers(self.seed, step))
        self.pipeline.step(weights, grad, state, ctx, noise)
        scatter(weights, parameters)
        for member in members:
            self.steps[member.number] = step
            self._stepped.add(member.number)

    def _is_uniform(self, batch: Batch) -> bool:
        dtypes = {_gradient(member).dtype for member in batch.members}
        return len(dtypes) == 1 and len({self.steps[m.number] for m in batch.members}) == 1

    def _note_norms(self, numbers: Tensor, grad: Tensor) -> None:
        """Write norms to their parameters' places: the total ignores who came first."""
        # Row by row first: one fp32 sum over millions of entries loses digits on some devices.
        rows = torch.linalg.vector_norm(grad, dim=2, dtype=torch.float32)
        norms = torch.linalg.vector_norm(rows, dim=1)
        self._norms[grad.device].index_copy_(0, numbers, norms)

    def _finish(self) -> None:
        if self._stepped:
            parts = [torch.linalg.vector_norm(norms) for norms in self._norms.values()]
            first = parts[0]
            rest = [part.to(first.device, non_blocking=True) for part in parts[1:]]
            self._gradient_norm = torch.linalg.vector_norm(torch.stack([first, *rest]))
            self.pipeline.rule.finish(self.shared, self._totals())
        else:
            self._gradient_norm = None
        for device, norms in self._norms.items():
            norms.zero_()
            for numbers in self._contributions[device].values():
                numbers.zero_()
        self._stepped.clear()
        self.global_step += 1

    def _totals(self) -> dict[str, Tensor]:
        first, *others = self._contributions.values()
        return {
            name: sum((other[name].sum().to(numbers.device) for other in others), numbers.sum())
            for name, numbers in first.items()
        }

    # State

    def allocate(self) -> None:
        """Allocate the state of every parameter now instead of at its first step."""
        for batch in self._batches:
            self._state_of(batch)

    def is_allocated(self, member: Member) -> bool:
        """Whether the parameter's state exists already."""
        batch, _ = self._place[member.number]
        return batch.members[0].number in self._states

    def state_of(self, member: Member) -> State:
        """Views of one parameter's state as a batch of one; allocated if need be."""
        batch, index = self._place[member.number]
        return row_of(self._state_of(batch), index)

    def state_bytes(self) -> int:
        """Bytes of the state allocated so far."""
        return sum(tensor.nbytes for tensor in self.state_tensors().values())

    def state_tensors(self) -> dict[str, Tensor]:
        """Return `<parameter name>/<slot>/<piece>` -> view; save it before the next step."""
        return saving.tensors(self)

    def state_header(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON: pipeline, groups, steps, seed and so on."""
        return saving.header(self)

    def load_state(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> list[str]:
        """Continue from a saved state; return notices of what differs, refuse another rule's."""
        return saving.load(self, tensors, header)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and header, for tools that expect torch's name."""
        return {"tensors": self.state_tensors(), "header": self.state_header()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; torch's own loader would cast packed state."""
        self.load_state(state_dict["tensors"], state_dict["header"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group while constructing; afterwards numbers and batches are fixed."""
        if hasattr(self, "_batches"):
            raise OptimizerError("groups cannot be added to an optimizer that is in use")
        super().add_param_group(param_group)

    def _state_of(self, batch: Batch) -> State:
        key = batch.members[0].number
        if key not in self._states:
            state = self.pipeline.allocate(len(batch.members), batch.rows, batch.cols, batch.device)
            self._states[key] = state
            for index, member in enumerate(batch.members):
                self.state[member.parameter] = {
                    f"{cell}/{name}": piece[index]
                    for cell, pieces in state.items()
                    for name, piece in pieces.items()
                }
        return self._states[key]


def _as_groups(named: Iterable[Named] | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    items: list[Any] = list(named)
    groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    if not any(group["params"] for group in groups):
        raise OptimizerError("the optimizer got no parameters", hint="is anything trainable?")
    return groups


def _members(groups: list[dict[str, Any]]) -> list[Member]:
    members: list[Member] = []
    for index, group in enumerate(groups):
        names = group.get("param_names")
        if names is None:
            raise OptimizerError("parameters must come with names", hint="pass (name, parameter)")
        for name, parameter in zip(names, group["params"], strict=True):
            members.append(Member(name, len(members), index, parameter))
    _check_members(members)
    return members


def _check_members(members: list[Member]) -> None:
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            raise OptimizerError(f"two parameters are called `{member.name}`")
        if member.parameter.dtype not in _DTYPES:
            raise OptimizerError(
                f"`{member.name}` is {member.parameter.dtype}; weights must be fp32 or bf16"
            )
        seen.add(member.name)


def _gradient(member: Member) -> Tensor:
    grad = member.parameter.grad
    assert grad is not None
    if grad.layout is not torch.strided:
        raise OptimizerError(
            f"`{member.name}` has a sparse gradient", hint="build the embedding with sparse=False"
        )
    return grad
