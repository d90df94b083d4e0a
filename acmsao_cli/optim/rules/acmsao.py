"""ACMSAO."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import multi_scale
from acmsao_cli.optim.agreement import LEAST_LAGGED, keep, no_contradiction
from acmsao_cli.optim.multi_scale import AUTO, MemoryOptions, MultiScale
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.adam import AdamW, SimplifiedAdEMAMix
from acmsao_cli.optim.rules.adopt import Adopt
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.rules.lion import Lion
from acmsao_cli.optim.rules.muon import Muon
from acmsao_cli.optim.rules.wrapping import LearningRateFree, Wrapper
from acmsao_cli.optim.slots import Role, Slot

if TYPE_CHECKING:
    from acmsao_cli.optim.pipeline import Pipeline

AnyAttention: TypeAlias = Literal[
    "element", "element_per_scale", "tensor", "scale", "softmax", "none"
]
_ALPHA: Final = MemoryOptions.alpha
_ALPHA_OF_MUON: Final = 1.0  # more is too much for matrices, and so is the mask


@rule("acmsao")
@dataclass(frozen=True)
class Acmsao(MemoryOptions, Wrapper):
    """Adaptive cyclic multi-scale attention: the past on several time scales, beside the present.

    d = m + alpha l mean_S(H_S)
    u = what `inner` makes of d as its momentum, without the elements that contradict g

    m is Nesterov's momentum; H_S is a mean over `horizon` visits, S steps apart; l is the share of
    the run that is done. The rate goes up and down with the phase of a cycle. The mask is after
    arXiv:2411.16085; multi_scale says how banks are filled.

    `inner` is any rule with a momentum: adamw, adopt, lion, muon. Around muon alpha is 1 and there
    is no attention, unless they are given. Every part can be turned off: alpha=0, attention=none,
    admission=always, cycle=0, nesterov=false. docs/acmsao.md says what each was worth.
    """

    alpha: float | tuple[float, ...] | None = None  # type: ignore[assignment]
    attention: AnyAttention | None = None
    inner: Rule = field(default_factory=AdamW)

    def __post_init__(self) -> None:
        self._check_inner()
        if self.attention is not None:
            multi_scale.check_choice("attention", self.attention, AnyAttention)
        object.__setattr__(self, "phases", self._memory.phases)
        # Made now, for torch.compile cannot trace how Python 3.11 makes them.
        _ = self.slots, self._masks

    @cached_property
    def wrapped(self) -> Rule:
        """The inner rule with the memory as its momentum."""
        return cast(Rule, replace(cast(Any, self.inner), momentum=self._memory))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's with the memory, and what attention kept the step before."""
        kept = Slot("kept_share", Role.SCALAR, summed=True)
        return (*self.wrapped.slots, kept) if self._masks and self.lagged else self.wrapped.slots

    @property
    def meaning(self) -> str:
        """The inner rule with the memory."""
        said = ", ".join(part for part in (self.wrapped.meaning, self._memory.meaning) if part)
        return f"{part_name(self.inner)}({said})"

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Let the inner rule remember, then keep what agrees."""
        update = self.wrapped.update(grad, cells, ctx)
        if not self._masks:
            return update
        agree = no_contradiction(update, grad)
        if not self.lagged:
            return keep(update, agree, ctx.mean(agree))
        share = cells["kept_share"].read() / max(ctx.rows * ctx.cols, 1)
        share = torch.where(share > 0, share, 1.0)  # none yet, or nothing was kept
        cells["kept_share"].write(ctx.part(agree))
        return keep(update, agree, share, LEAST_LAGGED)

    def rejects(self, pipeline: Pipeline) -> str | None:
        """Refuse the mask twice, and what the inner rule refuses."""
        edits = [part_name(edit) for edit in pipeline.direction]
        if self._masks and "cautious" in edits:
            return "keeps the agreeing elements already: drop `cautious`, or set attention=none"
        return super().rejects(pipeline)

    @cached_property
    def _masks(self) -> bool:
        return self._attention == "element"

    @property
    def _attention(self) -> AnyAttention:
        return self.attention or ("none" if isinstance(self.inner, Muon) else "element")

    @cached_property
    def _memory(self) -> MultiScale:
        options = {option.name: getattr(self, option.name) for option in fields(MemoryOptions)}
        if self.alpha is None:
            muon = isinstance(self.inner, Muon) and self.ramp is None
            options["alpha"] = _ALPHA_OF_MUON if muon else _ALPHA
        attention: Any = self._attention
        if self._masks:  # which is this rule's, with its own lag; the memory has sums only for auto
            attention = "none"
            options["lagged"] = self.lagged or self.scales != AUTO
        return MultiScale(**{**options, "attention": attention})

    def _check_inner(self) -> None:
        if isinstance(self.inner, LearningRateFree):
            name = part_name(self.inner)
            raise OptimizerError(
                f"acmsao cannot be put around {name}",
                hint=f"the other way round: {{name: {name}, inner: acmsao}}",
            )
        momentum = {option.name: option for option in fields(cast(Any, self.inner))}.get("momentum")
        if momentum is None:
            raise OptimizerError(
                f"acmsao cannot be put around {part_name(self.inner)}, which takes no momentum",
                hint="inner may be adamw, adopt, lion or muon, for example",
            )
        if cast(Any, self.inner).momentum != cast(Any, momentum.default_factory)():
            raise OptimizerError(
                f"acmsao replaces the momentum that its inner {part_name(self.inner)} was given",
                hint="drop that momentum, or use the rule alone",
            )
        if isinstance(self.inner, SimplifiedAdEMAMix):
            raise OptimizerError(
                "acmsao replaces the sum that makes simplified_ademamix what it is",
                hint="inner=adamw is what would remain",
            )
        if isinstance(self.inner, Lion) and not self.nesterov:
            raise OptimizerError(
                "nesterov=False would change nothing around lion",
                hint="lion looks at its momentum before the gradient and at the gradient beside it",
            )
        if isinstance(self.inner, Adopt) and self.scales == AUTO:
            raise OptimizerError(
                "scales=auto cannot measure the noise around adopt, whose gradients are normalised",
                hint="name the scales, as (1, 4, 16)",
            )
