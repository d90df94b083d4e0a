"""Optimizers with torch's arguments, for training loops of others.

Each class names a rule and its options; `DropIn` composes the pipeline. What the options mean, and
the papers, stands with the rule.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias, TypedDict, Unpack, get_type_hints

from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import typed
from acmsao_cli.optim.batches import Batch, Stacking
from acmsao_cli.optim.catalog import Spec, build_pipeline, with_options
from acmsao_cli.optim.layers import LayerRule
from acmsao_cli.optim.momentum import Momentum
from acmsao_cli.optim.optimizer import ComposedOptimizer, Named
from acmsao_cli.optim.ratio import Ratio
from acmsao_cli.optim.registry import suggestion
from acmsao_cli.optim.rules import prodigy
from acmsao_cli.optim.rules.a2grad import Variant
from acmsao_cli.optim.rules.adadiag import Sides
from acmsao_cli.optim.rules.adam import Correction
from acmsao_cli.optim.rules.base import Context, Rule
from acmsao_cli.optim.rules.muon import Precision, Scale
from acmsao_cli.optim.schedules import Course, Power

Parameters: TypeAlias = Iterable[Tensor] | Iterable[Named] | Iterable[dict[str, Any]]
Rate: TypeAlias = float | Tensor
Betas: TypeAlias = tuple[float, float]
_OF_A_GROUP: Final = {"lr": Rate, "weight_decay": float, "maximize": bool}
MomentumSpec: TypeAlias = Spec | Momentum
RatioSpec: TypeAlias = Spec | Ratio
RuleSpec: TypeAlias = Spec | Rule

# What a group may say: the last ones are left there by torch's schedulers.
_OWN: Final = ("params", "param_names", "lr", "weight_decay", "maximize")
_SCHEDULED: Final = ("initial_lr", "max_lr", "min_lr", "swa_lr")
_GIVEN: Final = frozenset((*_OWN, *_SCHEDULED))
_KEPT: Final = _GIVEN | {"layer"}
# How torch runs its own steps; here nothing has to be said about that.
_TORCHS: Final = ("foreach", "fused", "capturable", "differentiable")


class Options(TypedDict, total=False):
    """What every class takes beside its rule's options; `DropIn` says what is the default."""

    maximize: bool
    storage: str | Mapping[str, str]
    gradient_edits: Iterable[Spec]
    direction_edits: Iterable[Spec]
    rounding: str
    decay: Spec | None
    layers: Sequence[LayerRule]
    stacking: Stacking | None
    seed: int
    kernels: bool


class DropIn(ComposedOptimizer):
    """A rule by its name, composed with what is common to all.

    `decay` None is as torch has it: `l2` for SGD and Adam, else `decoupled`. A group may have its
    own lr, weight_decay and maximize; other options differ by `layers`.
    """

    usual_decay: ClassVar[str] = "decoupled"

    def __init__(
        self,
        params: Parameters,
        rule: str,
        lr: Rate,
        weight_decay: float,
        rule_options: Mapping[str, Any],
        *,
        maximize: bool = False,
        storage: str | Mapping[str, str] = "fp32",
        gradient_edits: Iterable[Spec] = (),
        direction_edits: Iterable[Spec] = (),
        rounding: str = "stochastic",
        decay: Spec | None = None,
        layers: Sequence[LayerRule] = (),
        stacking: Stacking | None = None,
        seed: int = 0,
        kernels: bool = False,
        **unknown: Any,
    ) -> None:
        self._refuse_unknown(unknown)
        apart = {"maximize": maximize, "layers": layers, "stacking": stacking}
        running = {"seed": seed, "kernels": kernels}
        typed.check(type(self).__name__, get_type_hints(Options), {**apart, **running}, _defaults())
        pipeline = build_pipeline(
            rule,
            storage=storage,
            gradient_edits=gradient_edits,
            direction_edits=direction_edits,
            rounding=rounding,
            decay=self.usual_decay if decay is None else decay,
            **rule_options,
        )
        super().__init__(
            params,
            pipeline,
            lr=lr,
            weight_decay=weight_decay,
            maximize=maximize,
            seed=seed,
            stacking=stacking,
            layers=layers,
            use_kernels=kernels,
        )

    def __init_subclass__(cls) -> None:
        """Spell out what `**options` stands for, for help() and inspect.signature."""
        super().__init_subclass__()
        declared = inspect.signature(cls.__init__)
        own = list(declared.parameters.values())[1:]
        if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
            shared = inspect.signature(DropIn.__init__).parameters
            common = [shared[name] for name in Options.__annotations__]
            cls.__signature__ = declared.replace(parameters=[*own[:-1], *common])  # type: ignore[attr-defined]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; an option that could not be honoured is refused."""
        _check_keys(param_group, _GIVEN)
        group = {**self.defaults, **param_group}
        numbers = {key: group[key] for key in ("lr", "weight_decay", "maximize")}
        typed.check(type(self).__name__, _OF_A_GROUP, numbers, {"lr": "1e-3 in most classes"})
        for key in ("lr", "weight_decay"):
            if not 0 <= float(group[key]) < math.inf:
                raise OptimizerError(
                    f"{key} cannot be {float(group[key])}", hint="a finite number from 0 on"
                )
        super().add_param_group(_with_names(param_group))

    def _context(self, batch: Batch, weights: Tensor, numbers: Tensor, step: int) -> Context:
        """As every optimizer's; an option that came into a group since is refused."""
        group = self.param_groups[batch.members[0].group]
        if not group.keys() <= _KEPT:
            _check_keys(group, _KEPT)
        return super()._context(batch, weights, numbers, step)

    def _refuse_unknown(self, unknown: Iterable[str]) -> None:
        """Name the class that was called, and what it takes."""
        for name in unknown:
            cls = type(self)
            taken = [key for key in inspect.signature(cls).parameters if key != "unknown"]
            remedy = (
                "it says how torch runs its own step: leave it out (`kernels=True` asks for ours)"
                if name in _TORCHS
                else suggestion(name, taken)
            )
            raise TypeError(f"{cls.__name__} has no argument `{name}`: {remedy}")


def _check_keys(group: Mapping[str, Any], known: frozenset[str]) -> None:
    for key in group:
        if key not in known:
            raise OptimizerError(
                f"a parameter group cannot have its own `{key}`",
                hint=f"{suggestion(key, list(_OWN))}; other options differ by "
                "layers=[LayerRule(match=..., pipeline=build_pipeline(...))]",
            )


def _defaults() -> dict[str, str]:
    """Of what is common to all."""
    common = inspect.signature(DropIn.__init__).parameters
    return {name: repr(common[name].default) for name in Options.__annotations__}


def _with_names(group: dict[str, Any]) -> dict[str, Any]:
    """Pair parameters with the names that stand beside them."""
    if "param_names" not in group:
        return group
    rest = {key: value for key, value in group.items() if key != "param_names"}
    names, parameters = list(group["param_names"]), list(group["params"])
    if len(names) != len(parameters):
        raise OptimizerError(
            f"a parameter group has {len(names)} names for {len(parameters)} parameters",
            hint="give (name, parameter) pairs as `params`, e.g. model.named_parameters()",
        )
    return {**rest, "params": list(zip(names, parameters, strict=True))}


class AdamW(DropIn):
    """`adamw` with torch's arguments and defaults."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Course = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "divide",
        correction: Correction = "momentum",
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "eps": eps, "amsgrad": amsgrad, "correction": correction}
        parts = {"momentum": momentum, "ratio": ratio}
        super().__init__(params, "adamw", lr, weight_decay, {**own, **parts}, **options)


class Adam(AdamW):
    """`adamw` with torch.optim.Adam's defaults: no decay, and if any, in the gradient."""

    usual_decay = "l2"

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Course = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "divide",
        correction: Correction = "momentum",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            momentum=momentum,
            ratio=ratio,
            correction=correction,
            **options,
        )


class AdEMAMix(DropIn):
    """`adamw` with the momentum `ademamix`: the third beta is the slow average's."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: Course = 1e-8,
        weight_decay: float = 0.0,
        alpha: Course = 5.0,
        warmup: int = 0,
        *,
        ratio: RatioSpec = "divide",
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(betas, Sequence) or len(betas) != 3:
            raise OptimizerError(
                f"AdEMAMix has three betas, got {betas}", hint="typical: (0.9, 0.999, 0.9999)"
            )
        *fast, slow = betas
        mixed = {"name": "ademamix", "slow_beta": slow, "alpha": alpha, "warmup": warmup}
        own = {"betas": tuple(fast), "eps": eps, "momentum": mixed, "ratio": ratio}
        super().__init__(params, "adamw", lr, weight_decay, own, **options)


class SimplifiedAdEMAMix(DropIn):
    """`simplified_ademamix`; `alpha` and `warmup` are those of its momentum, the accumulator."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-5,
        betas: Betas = (0.99, 0.95),
        eps: Course = 1e-8,
        weight_decay: float = 0.0,
        alpha: Course = 0.0,
        warmup: int = 0,
        *,
        corrected: bool = False,
        ratio: RatioSpec = "divide",
        **options: Unpack[Options],
    ) -> None:
        total = {"alpha": alpha, "warmup": warmup, "corrected": corrected}
        own = {"betas": betas, "eps": eps, "ratio": ratio}
        own["momentum"] = {"name": "accumulator", **total}
        super().__init__(params, "simplified_ademamix", lr, weight_decay, own, **options)


class Adopt(DropIn):
    """`adopt`, with the paper's defaults."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.9999),
        eps: Course = 1e-6,
        weight_decay: float = 0.0,
        clip: Course = Power(),  # noqa: B008  a frozen value: t^0.25
        *,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "floored",
        skip_first: bool = True,
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "eps": eps, "clip": clip, "skip_first": skip_first}
        parts = {"momentum": momentum, "ratio": ratio}
        super().__init__(params, "adopt", lr, weight_decay, {**own, **parts}, **options)


class NestedAdam(DropIn):
    """`nested_adam`: gradients are normalised before they are averaged."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Course = 1e-16,
        weight_decay: float = 0.0,
        *,
        eps_inside: bool = True,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "divide",
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "eps": eps, "eps_inside": eps_inside}
        parts = {"momentum": momentum, "ratio": ratio}
        super().__init__(params, "nested_adam", lr, weight_decay, {**own, **parts}, **options)


class Lion(DropIn):
    """`lion`, with the paper's defaults."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        momentum: MomentumSpec = "ema",
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "momentum": momentum}
        super().__init__(params, "lion", lr, weight_decay, own, **options)


class SGD(DropIn):
    """`sgd` with torch's arguments, defaults and decay; without momentum it remembers nothing."""

    usual_decay = "l2"

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if momentum == 0 and (nesterov or dampening):
            raise OptimizerError(
                "SGD without momentum has neither dampening nor nesterov",
                hint="typical: momentum=0.9",
            )
        ball = {"name": "heavy_ball", "dampening": dampening, "nesterov": nesterov}
        own = {"beta": momentum, "momentum": ball if momentum else "ema"}  # no average, no slot
        super().__init__(params, "sgd", lr, weight_decay, own, **options)


class A2Grad(DropIn):
    """`a2grad`; lr = 1 is the paper, which has no learning rate."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1.0,
        beta: float = 10.0,
        lips: float = 10.0,
        rho: float = 0.5,
        variant: Variant = "uni",
        weight_decay: float = 0.0,
        *,
        scalar: bool = False,
        **options: Unpack[Options],
    ) -> None:
        own = {"beta": beta, "lips": lips, "rho": rho, "variant": variant, "scalar": scalar}
        super().__init__(params, "a2grad", lr, weight_decay, own, **options)


class Adafactor(DropIn):
    """`adafactor` at the given learning rate; the paper's own rate is relative_step with lr = 1."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        weight_decay: float = 0.0,
        *,
        decay_rate: float = 0.8,
        eps1: Course = 1e-30,
        eps2: float = 1e-3,
        clip: float = 1.0,
        relative_step: bool = False,
        scale_parameter: bool = False,
        beta1: float = 0.0,
        momentum: MomentumSpec = "ema",
        **options: Unpack[Options],
    ) -> None:
        own = {"decay_rate": decay_rate, "eps1": eps1, "eps2": eps2, "clip": clip}
        rate = {"relative_step": relative_step, "scale_parameter": scale_parameter}
        average = {"beta1": beta1, "momentum": momentum}
        every = {**own, **rate, **average}
        super().__init__(params, "adafactor", lr, weight_decay, every, **options)


class Muon(DropIn):
    """`muon`, for matrices: give the other parameters a LayerRule.

    With scale="match_rms_adamw" take the learning rate of AdamW.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 2e-2,
        weight_decay: float = 0.0,
        *,
        beta: float = 0.95,
        scale: Scale = "original",
        iterations: int = 5,
        precision: Precision = "fp32",
        eps: float = 1e-7,
        momentum: MomentumSpec = "nesterov",
        **options: Unpack[Options],
    ) -> None:
        own = {"beta": beta, "scale": scale, "eps": eps, "momentum": momentum}
        iteration = {"iterations": iterations, "precision": precision}
        super().__init__(params, "muon", lr, weight_decay, {**own, **iteration}, **options)


class AdaDiag(DropIn):
    """`adadiag`: AdamW in the singular vectors of a gradient."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Course = 1e-8,
        weight_decay: float = 0.0,
        *,
        every: int = 200,
        sides: Sides = "left",
        limit: int = 4096,
        reproject: bool = False,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "divide",
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "eps": eps, "momentum": momentum, "ratio": ratio}
        bases = {"every": every, "sides": sides, "limit": limit, "reproject": reproject}
        super().__init__(params, "adadiag", lr, weight_decay, {**own, **bases}, **options)


class Soap(DropIn):
    """`soap`, with the paper's defaults."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 3e-3,
        betas: Betas = (0.95, 0.95),
        eps: Course = 1e-8,
        weight_decay: float = 1e-2,
        *,
        every: int = 10,
        limit: int = 4096,
        shampoo_beta: float | None = None,
        momentum: MomentumSpec = "ema",
        ratio: RatioSpec = "divide",
        **options: Unpack[Options],
    ) -> None:
        own = {"betas": betas, "eps": eps, "momentum": momentum, "ratio": ratio}
        bases = {"every": every, "limit": limit, "shampoo_beta": shampoo_beta}
        super().__init__(params, "soap", lr, weight_decay, {**own, **bases}, **options)


class WarmStart(DropIn):
    """`warm_start`: plain gradient descent first, then the inner rule."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        weight_decay: float = 0.0,
        *,
        inner: RuleSpec = "adamw",
        steps: int = 100,
        scale: Course = 1.0,
        **options: Unpack[Options],
    ) -> None:
        own = {"inner": inner, "steps": steps, "scale": scale}
        super().__init__(params, "warm_start", lr, weight_decay, own, **options)


class Prodigy(DropIn):
    """`prodigy` at lr = 1; `betas` and `eps` are the inner rule's, None what it has."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1.0,
        betas: Betas | None = None,
        beta3: float | None = None,
        eps: Course | None = None,
        weight_decay: float = 0.0,
        *,
        inner: RuleSpec | None = None,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        **options: Unpack[Options],
    ) -> None:
        own = {"inner": _inner(inner, betas, eps), "d0": d0, "beta3": beta3}
        growth = {"d_coef": d_coef, "growth_rate": growth_rate}
        measure = {"safeguard_warmup": safeguard_warmup, "slice_p": slice_p}
        every = {**own, **growth, **measure}
        super().__init__(params, "prodigy", lr, weight_decay, every, **options)


class DAdaptation(DropIn):
    """`dadaptation` at lr = 1; `betas` and `eps` are the inner rule's, None what it has."""

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1.0,
        betas: Betas | None = None,
        beta3: float | None = None,
        eps: Course | None = None,
        weight_decay: float = 0.0,
        *,
        inner: RuleSpec | None = None,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **options: Unpack[Options],
    ) -> None:
        own = {"inner": _inner(inner, betas, eps), "d0": d0, "beta3": beta3}
        every = {**own, "growth_rate": growth_rate}
        super().__init__(params, "dadaptation", lr, weight_decay, every, **options)


def _inner(inner: RuleSpec | None, betas: Betas | None, eps: Course | None) -> RuleSpec | None:
    """The inner rule with the options that were given; None where it is to be the default."""
    given = {key: value for key, value in (("betas", betas), ("eps", eps)) if value is not None}
    if not given or isinstance(inner, str):
        return {"name": inner, **given} if isinstance(inner, str) else inner
    if isinstance(inner, Mapping):
        for key in given:
            if key in inner:
                raise OptimizerError(
                    f"`{key}` is given twice: as an argument and in `inner`", hint="give it once"
                )
        return {**inner, **given}
    # dadaptation has the same inner rule
    rule: RuleSpec = with_options(inner or prodigy.Prodigy().inner, "optimizer", given)
    return rule
