"""What a pipeline is made of, as far as kernels know the parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import torch

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import registry
from acmsao_cli.optim.momentum import decay_of_corrected
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.pipeline import WEIGHT_STREAM, Pipeline
from acmsao_cli.optim.ratio import Ratio, atan2, divide
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Context, Rule, bias_correction
from acmsao_cli.optim.rules.lion import Lion
from acmsao_cli.optim.schedules import value_at
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.codec import Codec, Full
from acmsao_cli.optim.storage.dense import Half
from acmsao_cli.optim.storage.policy import Storage
from acmsao_cli.optim.storage.rank1 import Rank1, SignedRank1, folded_shape
from acmsao_cli.optim.write import Nearest, Rounding, Stochastic, Write

MOMENTUM: Final = "momentum"
SQUARE: Final = "mean_square"
_HALF_RANGE: Final = 1 << 31


class Kept(Enum):
    """How numbers are kept."""

    FULL = auto()  # fp32
    HALF = auto()  # bf16
    RANK1 = auto()  # row and column sums, and signs where there are any


_CODECS: Final[dict[tuple[Role, Codec], Kept]] = {
    (Role.SIGNED, Full()): Kept.FULL,
    (Role.SIGNED, Half()): Kept.HALF,
    (Role.SIGNED, SignedRank1()): Kept.RANK1,
    (Role.POSITIVE, Full()): Kept.FULL,
    (Role.POSITIVE, Half()): Kept.HALF,
    (Role.POSITIVE, Rank1()): Kept.RANK1,
}
_WEIGHTS: Final = {torch.float32: Kept.FULL, torch.bfloat16: Kept.HALF}
_ROUNDINGS: Final[tuple[Rounding, ...]] = (Nearest(), Stochastic())
_RATIOS: Final[tuple[Ratio, ...]] = (divide, atan2)


@dataclass(frozen=True)
class Numbers:
    """What a step's arithmetic is given, as host numbers; 0 where the rule has no such thing."""

    side: float  # -1 where the sign of the gradient is turned
    look: float  # weight of the past in Lion's direction
    pull: float  # of the gradient in the momentum
    keep_square: float
    pull_square: float
    eps: float
    shrink: float  # of the weights, by decay
    lr: float


@dataclass(frozen=True)
class Parts:
    """A pipeline that kernels know: how its weights and slots are kept, None for no such slot."""

    pipeline: Pipeline
    rule: AdamW | Lion
    momentum: Kept | None
    square: Kept | None
    weights: Kept
    rounding: Rounding

    @property
    def sums(self) -> bool:
        """Whether rows and columns are added up."""
        return Kept.RANK1 in (self.momentum, self.square)

    def matrix(self, ctx: Context) -> tuple[int, int]:
        """The rows and columns that are added up, or the parameter's own."""
        return folded_shape(ctx.rows, ctx.cols) if self.sums else (ctx.rows, ctx.cols)

    def names(self) -> dict[str, str]:
        """What the code is compiled for."""
        ratio = getattr(self.rule, "ratio", None)
        return {
            "RULE": registry.part_name(self.rule).upper(),
            "RATIO": "NONE" if ratio is None else registry.part_name(ratio).upper(),
            "MOMENTUM": "NONE" if self.momentum is None else self.momentum.name,
            "SQUARE": "NONE" if self.square is None else self.square.name,
            "WEIGHTS": self.weights.name,
            "ROUNDING": registry.part_name(self.rounding).upper(),
        }

    def salts(self, noise: Noise) -> list[int]:
        """Signed 32-bit salts of the weights', the momentum's and the mean square's noise."""
        cells = [name for name, _ in self.pipeline.cells()]
        streams = {name: stream for stream, name in enumerate(cells, WEIGHT_STREAM + 1)}
        drawn = (WEIGHT_STREAM, *(streams.get(slot, WEIGHT_STREAM) for slot in (MOMENTUM, SQUARE)))
        sums = [int(noise.salt) + hash_numbers(stream) for stream in drawn]
        return [(total + _HALF_RANGE) % (2 * _HALF_RANGE) - _HALF_RANGE for total in sums]

    def numbers(self, ctx: Context) -> Numbers:
        """Evaluate what depends on the step."""
        lr, step = float(ctx.lr), int(ctx.step)
        side, shrink = -1.0 if ctx.maximize else 1.0, 1.0 - lr * ctx.weight_decay
        beta1, beta2 = self.rule.betas
        if isinstance(self.rule, Lion):
            return Numbers(side, float(beta1), 1.0 - beta2, 0.0, 0.0, 0.0, shrink, lr)
        decay1, decay2 = (
            float(decay_of_corrected(beta, bias_correction(beta, step))) for beta in (beta1, beta2)
        )
        return Numbers(
            side=side,
            look=0.0,
            pull=1.0 - decay1,
            keep_square=decay2,
            pull_square=1.0 - decay2,
            eps=float(value_at(self.rule.eps, step) * ctx.grad_scale),
            shrink=shrink,
            lr=lr,
        )


def recognise(pipeline: Pipeline, weight_dtype: torch.dtype) -> Parts:
    """Return the pipeline's parts, or raise OptimizerError naming the one that has no kernel."""
    if pipeline.gradient or pipeline.direction:
        edits = (*pipeline.gradient, *pipeline.direction)
        raise _unknown(f"edit {', '.join(registry.part_name(edit) for edit in edits)}")
    rule = _rule(pipeline.rule)
    if weight_dtype not in _WEIGHTS:
        raise _unknown(f"{weight_dtype} weights")
    rounding = pipeline.write.rounding
    if rounding not in _ROUNDINGS or pipeline.write != Write(rounding=rounding):
        raise _unknown(registry.signature(pipeline.write))
    kept = {slot.name: _kept(slot, pipeline.storage) for slot in rule.slots}
    return Parts(
        pipeline, rule, kept.get(MOMENTUM), kept.get(SQUARE), _WEIGHTS[weight_dtype], rounding
    )


def _rule(rule: Rule) -> AdamW | Lion:
    """The rule, if it is its plain form: an option the kernels do not know has its default."""
    if type(rule) is AdamW:
        known = rule.ratio in _RATIOS and _are_numbers(*rule.betas)
        if known and rule == AdamW(betas=rule.betas, eps=rule.eps, ratio=rule.ratio):
            return rule
    if type(rule) is Lion and _are_numbers(*rule.betas) and rule == Lion(betas=rule.betas):
        return rule
    raise _unknown(registry.signature(rule))


def _are_numbers(*options: object) -> bool:
    return all(isinstance(option, float | int) for option in options)


def _kept(slot: Slot, storage: Storage) -> Kept:
    codec = storage.codec(slot)
    if (slot.role, codec) not in _CODECS:
        raise _unknown(f"{registry.signature(codec)} for slot `{slot.name}`")
    return _CODECS[slot.role, codec]


def _unknown(what: str) -> OptimizerError:
    return OptimizerError(
        f"no kernel knows {what}", hint="with kernels=false the pipeline itself runs"
    )
