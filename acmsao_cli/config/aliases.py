"""The optimizers of adv_optm by their names and options, put into ours.

`optimizer: {name: Prodigy_Adv, use_atan2: true, factored: true}` becomes `{name: prodigy, inner:
{name: adamw, ratio: atan2, ...}, storage: factored, ...}`, which is what a run's file shows. Where
adv_optm computes otherwise than the paper, its form is chosen. Defaults are those of its 0.1.9;
options are known by their later names too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from acmsao_cli.config.choices import Kind, Wanted, parts
from acmsao_cli.config.options import Complaint, settle

Given: TypeAlias = Mapping[str, Any]  # their options, every one with a value


@dataclass(frozen=True)
class Seed:
    """One of their optimizers: our rule, their options with defaults, and what becomes of them."""

    rule: str
    defaults: Given
    options: Callable[[Given], dict[str, Any]]  # of our rule
    estimates: bool = False  # our rule is inside prodigy


@dataclass(frozen=True)
class Translated:
    """Our keys, and what cannot be honoured."""

    values: Mapping[str, Any]
    complaints: tuple[tuple[str, Complaint], ...]  # by their option


def seed_called(name: str) -> Seed | None:
    """Return the optimizer that has this name there; a name of ours is ours."""
    if name in parts()["rule"]:
        return None
    return SEEDS.get(LATER_NAMES.get(name.lower(), name.lower()))


def wanted_by(seed: Seed) -> dict[str, tuple[Wanted, ...]]:
    """Return what each of its options takes, also by its later name."""
    found = {option: _wanted(option, value) for option, value in seed.defaults.items()}
    later = {new: found[old] for new, old in LATER_OPTIONS.items() if old in found}
    return {**found, **later}


def translate(seed: Seed, written: Given) -> Translated:
    """Put what was written of its options into our keys."""
    complaints = tuple(_complaints(seed, written))
    if complaints:
        return Translated({}, complaints)
    given = {**seed.defaults, **_by_first_name(written)}
    inside = {"name": seed.rule, **seed.options(given)}
    estimate = {key: v for key, v in given.items() if key in ESTIMATE and v != math.inf}
    outside = {"name": "prodigy", "inner": inside, **estimate} if seed.estimates else inside
    values = {**outside, **_stations(given)}
    return Translated({k: v for k, v in values.items() if v is not None}, complaints)


def decided_by(key: str, written: Iterable[str]) -> list[str]:
    """Return those of their options, as they were written, that decide a key of ours."""
    deciding = DECIDED_BY.get(key, (key,))
    return [option for option in written if LATER_OPTIONS.get(option, option) in deciding]


def _stations(given: Given) -> dict[str, Any]:
    """Everything around the rule."""
    edits = [name for name in ("grams", "cautious") if given.get(f"use_{name}")]
    storage = "factored_square" if given["vector_reshape"] else "factored"
    return {
        "lr": given["lr"],
        "weight_decay": given["weight_decay"],
        "decay": "cautious" if given["cautious_wd"] else None,
        "storage": storage if given["factored"] else None,
        "gradient_edits": ["orthograd"] if given["use_orthograd"] else None,
        "direction_edits": edits or None,
        "rounding": None if given["stochastic_rounding"] else "nearest",
    }


def _by_first_name(written: Given) -> dict[str, Any]:
    return {LATER_OPTIONS.get(option, option): value for option, value in written.items()}


def _complaints(seed: Seed, written: Given) -> Iterator[tuple[str, Complaint]]:
    given = {**seed.defaults, **_by_first_name(written)}
    for spelled, value in written.items():
        option = LATER_OPTIONS.get(spelled, spelled)
        default = seed.defaults[option]
        where = f"`optimizer.{spelled}`"
        for complaint in settle(_wanted(option, default), value, where).complaints:
            yield spelled, complaint
        if value == default:
            continue
        if option in REFUSED:
            message = f"{where} cannot be honoured: there is no such part here"
            yield spelled, Complaint(message, REFUSED[option])
        flag = NEEDS.get(option, "")
        if flag in seed.defaults and not given[flag]:
            message = f"{where} is set, but `{flag}` is not"
            yield spelled, Complaint(message, f"drop it, or set optimizer.{flag}")


def _wanted(option: str, default: Any) -> tuple[Wanted, ...]:
    """What an option takes, as its default tells."""
    number = Wanted("number")
    if isinstance(default, bool):
        return (Wanted("truth"),)
    if isinstance(default, list):
        return (Wanted("list", items=(number,), length=len(default)),)
    if default is None:
        return (Wanted(_OF_NOTHING[option]), Wanted("null"))
    return (Wanted("count" if isinstance(default, int) else "number"),)


_OF_NOTHING: Final[Mapping[str, Kind]] = {  # what options take whose default is none
    "vector_reshape": "truth",
    "t_alpha": "count",
    "beta1_warmup": "count",
    "beta3": "number",
}

# Their rules in our options


def _adam(given: Given) -> dict[str, Any]:
    """Corrects the whole update where its parts differ: with atan2, with two averages."""
    corrected = given.get("use_bias_correction", False)
    of_update = given["use_atan2"] or given["use_AdEMAMix"] or given.get("Simplified_AdEMAMix")
    correction = ("update" if of_update else "momentum") if corrected else "none"
    return {**_moments(given), "ratio": _ratio(given, "divide"), "correction": correction}


def _adopt(given: Given) -> dict[str, Any]:
    """Adds eps, where the paper takes the larger; with atan2 nothing is clipped or left out."""
    options = {**_moments(given), "ratio": _ratio(given, "divide")}
    if given["use_atan2"]:
        options |= {"clip": math.inf, "skip_first": False}
    return options


def _simplified(given: Given) -> dict[str, Any]:
    """Divides the sum by the weight of its gradients."""
    corrected = given["use_bias_correction"]
    warmup = given["beta1_warmup"]
    momentum = {"name": "accumulator", "alpha": given["alpha_grad"], "corrected": corrected}
    if warmup is not None:
        momentum |= {"warmup": warmup, "start_beta": given["min_beta1"]}
    options = {"betas": given["betas"], "eps": given["eps"], "momentum": momentum}
    return options if corrected else {**options, "correction": "none"}


def _lion(given: Given) -> dict[str, Any]:
    return {"betas": given["betas"]}


def _moments(given: Given) -> dict[str, Any]:
    options: dict[str, Any] = {"betas": given["betas"]}
    if not given["use_atan2"]:
        options["eps"] = given["eps"]
    if given.get("Simplified_AdEMAMix"):
        options["momentum"] = {"name": "accumulator", "alpha": given["alpha_grad"]}
    elif given["use_AdEMAMix"]:
        alpha: Any = given["alpha"]
        if given["t_alpha"] is not None:
            alpha = {"name": "linear", "start": 0.0, "stop": alpha, "steps": given["t_alpha"]}
        options["momentum"] = {"name": "ademamix", "slow_beta": given["beta3_ema"], "alpha": alpha}
    return options


def _ratio(given: Given, otherwise: str) -> str:
    return "atan2" if given["use_atan2"] else otherwise


# The table: their options with their defaults, by optimizer

_COMMON: Final[Given] = {
    "weight_decay": 0.0,
    "cautious_wd": False,
    "stochastic_rounding": True,
    "use_orthograd": False,
    "factored": False,
    "vector_reshape": None,  # true up to 1.2.11, when it meant factored_square for all
    "kourkoutas_beta": False,
    "compiled_optimizer": False,
}
_ADAM: Final[Given] = {
    **_COMMON,
    "lr": 1e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "use_atan2": False,
    "use_cautious": False,
    "use_grams": False,
    "use_AdEMAMix": False,
    "beta3_ema": 0.9999,
    "alpha": 5.0,
    "t_alpha": None,
}
_EITHER: Final[Given] = {"Simplified_AdEMAMix": False, "alpha_grad": 100.0}
_LION: Final[Given] = {
    **_COMMON,
    "lr": 1e-4,
    "betas": [0.9, 0.99],
    "factored": True,
    "use_cautious": False,
    "clip_threshold": 0.0,
    "kappa_p": 1.0,
    "auto_kappa_p": False,
}
ESTIMATE: Final[Given] = {
    "d0": 1e-6,
    "d_coef": 1.0,
    "growth_rate": math.inf,
    "safeguard_warmup": False,
    "slice_p": 11,
    "beta3": None,
}
_PRODIGY: Final[Given] = {
    **ESTIMATE,
    "lr": 1.0,
    "prodigy_steps": 0,
    "fsdp_in_use": False,
    "d_limiter": False,
}
SEEDS: Final[Mapping[str, Seed]] = {
    "adam_adv": Seed("adamw", {**_ADAM, "use_bias_correction": True}, _adam),
    "adopt_adv": Seed(
        "adopt",
        {**_ADAM, **_EITHER, "lr": 1e-4, "betas": [0.9, 0.9999], "eps": 1e-6},
        _adopt,
    ),
    "prodigy_adv": Seed("adamw", {**_ADAM, **_EITHER, **_PRODIGY}, _adam, estimates=True),
    "simplified_ademamix": Seed(
        "simplified_ademamix",
        {
            **_COMMON,
            "lr": 1e-5,
            "betas": [0.99, 0.999],
            "eps": 1e-8,
            "alpha_grad": 100.0,
            "beta1_warmup": None,
            "min_beta1": 0.9,
            "use_bias_correction": True,
        },
        _simplified,
    ),
    "lion_adv": Seed("lion", _LION, _lion),
    "prodigy_lion_adv": Seed("lion", {**_LION, **_PRODIGY}, _lion, estimates=True),
}
LATER_NAMES: Final = {"adamw_adv": "adam_adv", "lion_prodigy_adv": "prodigy_lion_adv"}
LATER_OPTIONS: Final = {
    "nnmf_factor": "factored",
    "cautious_mask": "use_cautious",
    "grams_moment": "use_grams",
    "orthogonal_gradient": "use_orthograd",
}
_OF_MOMENTUM: Final = (
    *("use_AdEMAMix", "beta3_ema", "alpha", "t_alpha", "Simplified_AdEMAMix", "alpha_grad"),
    *("beta1_warmup", "min_beta1"),
)
# Which of their options decide a key of ours that is called otherwise.
DECIDED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "ratio": ("use_atan2",),
    "clip": ("use_atan2",),
    "skip_first": ("use_atan2",),
    "momentum": _OF_MOMENTUM,
    "correction": ("use_bias_correction",),
    "inner": ("betas", "eps", "use_atan2", *_OF_MOMENTUM),
    "storage": ("factored", "vector_reshape"),
    "decay": ("cautious_wd",),
    "gradient_edits": ("use_orthograd",),
    "direction_edits": ("use_grams", "use_cautious"),
    "rounding": ("stochastic_rounding",),
}
# Options that mean something only with another.
NEEDS: Final = {
    "beta3_ema": "use_AdEMAMix",
    "alpha": "use_AdEMAMix",
    "t_alpha": "use_AdEMAMix",
    "alpha_grad": "Simplified_AdEMAMix",
    "min_beta1": "beta1_warmup",
    "vector_reshape": "factored",
}
# What is not here in any form, so that only the default can be honoured; and what to do instead.
REFUSED: Final = {
    "prodigy_steps": "drop it: d settles by itself; growth_rate bounds its growth",
    "fsdp_in_use": "drop it: a run has one process",
    "d_limiter": "drop it; growth_rate bounds how fast d grows",
    "clip_threshold": "drop it, and bound gradients by gradient_edits: [rms_clip] or "
    "training.clip_norm",
    "kappa_p": "drop it: Lion takes the sign",
    "auto_kappa_p": "drop it: Lion takes the sign",
    "kourkoutas_beta": "drop it, and set betas",
    "compiled_optimizer": "drop it; optimizer.kernels=true takes the kernels that there are",
}
