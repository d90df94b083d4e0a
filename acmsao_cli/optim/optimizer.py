"""A pipeline as a torch optimizer: groups, ways of stepping, and state on disk."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, cast, overload

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import kernels, saving
from acmsao_cli.optim.batches import Batch, Member, Stacking, plan_batches, row_of
from acmsao_cli.optim.in_rows import GradientInRows
from acmsao_cli.optim.layers import LayerRule, check_layers, layer_of
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.prefetch import Ferry, Turn
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.slots import Role
from acmsao_cli.optim.storage.codec import State
from acmsao_cli.optim.totals import Totals
from acmsao_cli.optim.tracing import WORKSPACE, counted_as

Named: TypeAlias = tuple[str, Tensor]
_DTYPES = (torch.float32, torch.bfloat16, torch.complex64)
_OURS: Final = (  # what torch's optimizer does not have
    *("pipelines", "seed", "global_step", "use_kernels", "_layers", "_stacking", "members"),
    *("_member_of", "_batches", "_place", "_states", "steps", "_stepped", "_norms"),
    *("_contributions", "_gradient_norm", "shared", "_kernels", "total_steps"),
    *("_order", "_successors"),
)


@dataclass(frozen=True)
class BackwardHandle:
    """Hooks that step during backward; `remove` ends it."""

    hooks: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Go back to ordinary stepping."""
        for hook in self.hooks:
            hook.remove()


class ComposedOptimizer(torch.optim.Optimizer):
    """Steps fp32, bf16 or complex64 parameters through a pipeline, to the same bits in every way.

    Parameters come with names, (name, parameter), or are called by their number. `layers` give some
    of them other pipelines: their groups are split, and `group["layer"]` is the pattern's number, 0
    for none. State appears at a parameter's first step, or by `allocate`. `self.state[p]` holds
    views of it: copy into them, never replace them. Each parameter counts its own steps, so one
    without a gradient is left alone. With `use_kernels` hand-written twins step what they can.
    `total_steps` is the run's length, for what depends on how much of it is done.
    """

    def __init__(
        self,
        named_parameters: Iterable[Named] | Iterable[Tensor] | Iterable[dict[str, Any]],
        pipeline: Pipeline,
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int = 0,
        stacking: Stacking | None = None,
        layers: Sequence[LayerRule] = (),
        use_kernels: bool = False,
        total_steps: int | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.pipelines = (pipeline, *(rule.pipeline for rule in layers))  # by layer
        self.seed, self.global_step, self.use_kernels = seed, 0, use_kernels
        self._layers, self._stacking = tuple(layers), stacking or Stacking()
        self.members: list[Member] = []
        self._member_of: dict[Tensor, Member] = {}
        self._batches: list[Batch] = []
        self._place: dict[int, tuple[Batch, int]] = {}
        self._states: dict[int, State] = {}  # by the number of a batch's first member
        self.steps: list[int] = []  # by parameter number
        self._stepped: set[int] = set()  # parameter numbers advanced since the last finish
        self._order: list[int] = []  # of the parameters stepped alone since the last finish
        self._successors: dict[int, int] = {}  # by number: who was stepped after it last time
        self._ferry = Ferry(self.pipelines)
        self._norms, self._contributions = Totals(), _contributions(self.pipelines)
        self._kernels: dict[tuple[int, torch.device, torch.dtype], kernels.Kernel | None] = {}
        self._gradient_norm: Tensor | None = None
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(cast(Any, _as_groups(named_parameters)), defaults)
        self._remember(range(len(self.members))[::-1])  # backward's usual order
        check_layers(layers, self.members)
        if use_kernels:
            self._check_kernels()
        self.shared = [self._initial_numbers(pipeline) for pipeline in self.pipelines]

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of what no layer pattern fits."""
        return self.pipelines[0]

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
        self._follow_parameters_at_first()
        turns = [turn for batch in self._batches for turn in self._turns(batch)]
        for turn, following in itertools.zip_longest(turns, turns[1:]):
            self._advance(turn, following)
        self._finish()
        return loss

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor, gradient: GradientInRows | None = None) -> None:
        """Advance one parameter now; the later `step` leaves it alone and finishes.

        With a `gradient`, by that instead of the parameter's own; kernels do not take it.
        """
        self._follow_parameters_at_first()
        member = self._member_of.get(parameter)
        if member is None:
            raise OptimizerError("step_parameter got a parameter this optimizer does not have")
        if member.number in self._stepped:
            raise OptimizerError(
                f"`{member.name}` would be advanced twice in one step",
                hint="call step() after each backward that steps",
            )
        if gradient is not None and (gradient.rows, gradient.cols) != tuple(parameter.shape):
            raise OptimizerError(f"the gradient of `{member.name}` has another shape")
        if gradient is not None or parameter.grad is not None:
            if gradient is None:  # one in rows comes after backward, in nobody's usual order
                self._order.append(member.number)
            turn = replace(self._turn_of(member), gradient=gradient)
            self._advance(turn, self._expected_after(member))

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

    def _turns(self, batch: Batch) -> Iterator[Turn]:
        """What waits in a batch, together where that can be."""
        waiting = [
            member
            for member in batch.members
            if member.parameter.grad is not None and member.number not in self._stepped
        ]
        if waiting and len(waiting) == len(batch.members) and self._is_uniform(batch):
            step = self.steps[waiting[0].number] + 1
            yield Turn(batch.members, batch, batch.numbers, self._state_of(batch), step)
        else:
            yield from map(self._turn_of, waiting)

    def _turn_of(self, member: Member) -> Turn:
        batch, index = self._place[member.number]
        numbers = batch.numbers[index : index + 1]
        step = self.steps[member.number] + 1
        return Turn([member], batch, numbers, self.state_of(member), step)

    def _remember(self, order: Sequence[int]) -> None:
        if order:
            self._successors = dict(itertools.pairwise(order))

    def _expected_after(self, member: Member) -> Turn | None:
        """The turn that came after this member's the last time, if it can come again."""
        number = self._successors.get(member.number)
        if number is None or number in self._stepped:
            return None
        following = self.members[number]
        carried = self._ferry.carries(following.layer) and self.is_allocated(following)
        return self._turn_of(following) if carried else None

    def _advance(self, turn: Turn, following: Turn | None) -> None:
        """Advance members with gradients of one dtype and equally many steps behind them."""
        if turn.members[0].values.numel():
            carrying = self._ferry.carrying(turn, following)
            with counted_as(WORKSPACE), carrying as (pipeline, state):
                self._step(turn, pipeline, state)
        for member in turn.members:
            self.steps[member.number] = turn.step
            self._stepped.add(member.number)

    def _step(self, turn: Turn, pipeline: Pipeline, state: State) -> None:
        batch, numbers = turn.batch, turn.numbers
        values = [member.values for member in turn.members]
        noise = Noise(numbers.to(torch.int32).view(-1, 1, 1), hash_numbers(self.seed, turn.step))
        ctx = replace(self._context(batch, values[0], numbers, turn.step), noise=noise)
        composed = kernels.Composed(pipeline, self._stacking.block)
        if turn.gradient is not None:
            norms = composed.step_by(values, turn.gradient, state, ctx, noise)
            turn.gradient.let_go()
        else:
            grads = [member.gradient for member in turn.members]
            kernel = self._kernel(batch.layer, values[0]) if self.use_kernels else None
            norms = (kernel or composed).step(values, grads, state, ctx, noise)
        self._norms.put(numbers, norms)

    def _context(self, batch: Batch, weights: Tensor, numbers: Tensor, step: int) -> Context:
        group = self.param_groups[batch.members[0].group]
        contributions = self._contributions[batch.layer]
        return Context(
            step=step,
            first=step == 1,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            weights=weights,
            rows=batch.rows,
            cols=batch.cols,
            shared=self._shared_on(batch.device, batch.layer),
            contribute=lambda name, value: contributions[name].add(numbers, value),
            maximize=group["maximize"],
            total_steps=self.total_steps,
        )

    def _kernel(self, layer: int, weights: Tensor) -> kernels.Kernel | None:
        """The kernel for such weights, if there is one."""
        key = layer, weights.device, weights.dtype
        if key not in self._kernels:
            self._kernels[key] = kernels.find(self.pipelines[layer], *key[1:])
        return self._kernels[key]

    def _check_kernels(self) -> None:
        """Refuse if nothing could be stepped by a kernel; the pipeline steps what has none."""
        if not any(self._kernel(member.layer, member.values) for member in self.members):
            first = self.members[0]
            kernels.require(self.pipelines[first.layer], first.values.device, first.values.dtype)

    def _is_uniform(self, batch: Batch) -> bool:
        dtypes = {member.gradient.dtype for member in batch.members}
        return len(dtypes) == 1 and len({self.steps[m.number] for m in batch.members}) == 1

    def _finish(self) -> None:
        self._gradient_norm = self._norms.norm() if self._stepped else None
        if self._stepped:
            for layer in {self.members[number].layer for number in self._stepped}:
                sums = {name: given.sum() for name, given in self._contributions[layer].items()}
                self.pipelines[layer].rule.finish(self.shared[layer], sums)
        for totals in self._every_total():
            totals.clear()
        self._remember(self._order)
        self._ferry.settle()
        self._order.clear()
        self._stepped.clear()
        self.global_step += 1

    def _shared_on(self, device: torch.device, layer: int) -> dict[str, Tensor]:
        """A layer's shared numbers where its parameters are; they live beside the first one."""
        shared = self.shared[layer]
        if all(number.device == device for number in shared.values()):
            return shared
        return {name: number.to(device, non_blocking=True) for name, number in shared.items()}

    def _every_total(self) -> Iterator[Totals]:
        yield self._norms
        for given in self._contributions:
            yield from given.values()

    # State

    def allocate(self) -> None:
        """Allocate the state of every parameter now instead of at its first step."""
        self._follow_parameters_at_first()
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

    def skip_to_full_step(self) -> None:
        """Count as if the next step asked for every slot: none needs more memory."""
        before = [math.lcm(*(slot.visits for slot in p.slots)) - 1 for p in self.pipelines]
        self.steps = [before[member.layer] for member in self.members]

    def state_bytes(self) -> int:
        """Bytes of the state allocated so far."""
        return sum(tensor.nbytes for tensor in self.state_tensors().values())

    def state_tensors(self) -> dict[str, Tensor]:
        """Return `<parameter name>/<slot>/<piece>` -> view; save it before the next step."""
        self._ferry.settle()
        return saving.tensors(self)

    def resident_state(self) -> Iterator[Tensor]:
        """The state that takes the device's memory: all but what is offloaded."""
        return self._placed(offloaded=False)

    def offloaded_state(self) -> Iterator[Tensor]:
        """The state that takes the host's memory, as it is allocated there."""
        return self._placed(offloaded=True)

    def _placed(self, *, offloaded: bool) -> Iterator[Tensor]:
        for batch in self._batches:
            pipeline, state = self.pipelines[batch.layer], self._state_of(batch)
            for cell, slot in pipeline.cells():
                if pipeline.storage.codec(slot).offloaded == offloaded:
                    yield from state[cell].values()

    def state_header(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON: pipeline, groups, steps, seed and so on."""
        return saving.header(self)

    def load_state(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> list[str]:
        """Continue from a saved state; return notices of what differs, refuse another rule's."""
        self._ferry.settle()
        return saving.load(self, tensors, header)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's form, `state` by number and `param_groups`, with the header beside them.

        As in torch, its tensors are the state itself.
        """
        self._ferry.settle()
        return {**super().state_dict(), saving.HEADER: self.state_header()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, also before the first step.

        Groups take over their saved options, as in torch; of other differences it warns. Torch's
        own loader would cast packed state. Parameters may have moved to another device before.
        """
        for prepare in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = prepare(self, state_dict) or state_dict
        self._follow_parameters()
        self._ferry.settle()
        for notice in saving.load_torch_form(self, state_dict):
            warnings.warn(notice, stacklevel=2)
        for finish in self._optimizer_load_state_dict_post_hooks.values():
            finish(self)

    def __getstate__(self) -> dict[str, Any]:
        """Everything of ours, for copy and pickle; hooks stay behind, as in torch."""
        ours = {key: value for key, value in vars(self).items() if key in _OURS}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take everything over; a pickled view is a copy, so views are taken anew."""
        super().__setstate__(state)
        self._ferry = Ferry(self.pipelines)
        for batch in self._batches:
            if batch.members[0].number in self._states:
                self._show(batch)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, split by the layers' patterns; its parameters have no state yet."""
        named = self._named(param_group["params"])
        for layer in range(len(self.pipelines)):
            chosen = [(n, p) for n, p in named if layer_of(self._layers, n, p) == layer]
            if chosen or (layer == 0 and not named):
                self._enlist({**param_group, "params": chosen}, layer)

    def _named(self, parameters: Any) -> list[Named]:
        items = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        first = len(self.members)
        return [
            (str(number), item) if isinstance(item, Tensor) else item
            for number, item in enumerate(items, first)
        ]

    def _enlist(self, group: dict[str, Any], layer: int) -> None:
        """Give the parameters numbers and places in batches."""
        if layer:
            rule = self._layers[layer - 1]
            own = {"lr": rule.lr, "weight_decay": rule.weight_decay}
            group |= {key: value for key, value in own.items() if value is not None}
        super().add_param_group({**group, "layer": layer})
        group = self.param_groups[-1]
        group.setdefault("param_names", [])  # torch gives none to an empty group
        members = [
            Member(name, number, len(self.param_groups) - 1, layer, parameter)
            for number, (name, parameter) in enumerate(
                zip(group["param_names"], group["params"], strict=True), len(self.members)
            )
        ]
        _check_members(members, self.members, self.pipelines[layer])
        self.members += members
        self.steps += [0] * len(members)
        self._member_of |= {member.parameter: member for member in members}
        self._plan(members)

    def _plan(self, members: list[Member]) -> None:
        """Give members of one group their places in batches."""
        batches = plan_batches(members, self._stacking)
        self._batches += batches
        for batch in batches:
            self._place |= {m.number: (batch, index) for index, m in enumerate(batch.members)}
            for totals in self._every_total():
                totals.reserve(batch.device, len(self.members))

    def _follow_parameters_at_first(self) -> None:
        """As long as there is no state, parameters may move without notice."""
        if not self._states:
            self._follow_parameters()

    def _follow_parameters(self) -> None:
        """Plan anew if parameters moved to another device; their state is forgotten."""
        if all(batch.numbers.device == batch.device for batch in self._batches):
            return
        self._batches, self._place, self._states = [], {}, {}
        self._norms, self._contributions = Totals(), _contributions(self.pipelines)
        self.state.clear()
        for group in range(len(self.param_groups)):
            self._plan([member for member in self.members if member.group == group])
        device = self.members[0].parameter.device
        self.shared = [
            {name: number.to(device) for name, number in shared.items()} for shared in self.shared
        ]

    def _initial_numbers(self, pipeline: Pipeline) -> dict[str, Tensor]:
        device = self.members[0].parameter.device
        return {
            name: torch.full((), value, dtype=torch.float32, device=device)
            for name, value in pipeline.rule.shared().items()
        }

    def _state_of(self, batch: Batch) -> State:
        key = batch.members[0].number
        if key not in self._states:
            pipeline = self.pipelines[batch.layer]
            state = pipeline.allocate(len(batch.members), batch.rows, batch.cols, batch.device)
            self._states[key] = state
            self._show(batch)
        return self._states[key]

    def _show(self, batch: Batch) -> None:
        """Let `self.state` hold views of a batch's state."""
        state = self._states[batch.members[0].number]
        for index, member in enumerate(batch.members):
            self.state[member.parameter] = {
                f"{cell}/{name}": piece[index]
                for cell, pieces in state.items()
                for name, piece in pieces.items()
            }


def _contributions(pipelines: Iterable[Pipeline]) -> list[dict[str, Totals]]:
    """By layer and name."""
    return [{name: Totals() for name in pipeline.rule.contributions} for pipeline in pipelines]


def _as_groups(given: Any) -> list[dict[str, Any]]:
    items = _listed(given)
    given_groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    groups = [{**group, "params": _listed(group["params"])} for group in given_groups]
    if not any(group["params"] for group in groups):
        raise OptimizerError("the optimizer got no parameters", hint="is anything trainable?")
    return groups


def _listed(parameters: Any) -> list[Any]:
    if isinstance(parameters, set):
        raise OptimizerError(
            "parameters in a set have no order, and their noise follows it", hint="give a list"
        )
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _check_members(new: list[Member], known: list[Member], pipeline: Pipeline) -> None:
    seen = {member.name for member in known}
    keeps_words = any(slot.role is Role.WORD for slot in pipeline.slots)
    for member in new:
        dtype = member.parameter.dtype
        if member.name in seen:
            raise OptimizerError(f"two parameters are called `{member.name}`")
        if dtype not in _DTYPES:
            raise OptimizerError(
                f"`{member.name}` is {dtype}", hint="weights must be fp32, bf16 or complex64"
            )
        if member.parameter.is_conj():
            raise OptimizerError(
                f"`{member.name}` is a conjugate view",
                hint="train the tensor itself: .resolve_conj()",
            )
        if keeps_words and dtype != torch.bfloat16:
            raise OptimizerError(
                f"rounding `kahan` is for bf16 weights, `{member.name}` is {dtype}",
                hint="choose another rounding, or give these parameters a layer pattern",
            )
        seen.add(member.name)
