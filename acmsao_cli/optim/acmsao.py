"""ACMSAO with the arguments of its document, in both of its forms."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, Unpack, cast, get_args

import torch

from acmsao_cli.errors import OptimizerError
from acmsao_cli.host_memory import host_memory
from acmsao_cli.optim import accounting, typed
from acmsao_cli.optim.admission import Admission
from acmsao_cli.optim.banks import powers
from acmsao_cli.optim.catalog import build_part
from acmsao_cli.optim.drop_in import Betas, DropIn, Options, Parameters, Rate, RuleSpec
from acmsao_cli.optim.multi_scale import SCALES, BankKind, Pace, Visits
from acmsao_cli.optim.phases import Phases
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.acmsao import Acmsao, AnyAttention
from acmsao_cli.optim.rules.acmsao_document import AcmsaoDocument, Similarity
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Rule, check_betas, rule
from acmsao_cli.optim.schedules import Course

Mode: TypeAlias = Literal["scalable", "document"]
_RULES: Final[dict[str, type[Rule]]] = {"scalable": Acmsao, "document": AcmsaoDocument}
_WARNED: Final = 0.1  # of the memory there is
_LONG: Final = 1000  # entries of a history: the document's default


# Of what no rule of ours is given under this name.
_TYPES: Final[dict[str, Any]] = {
    "betas": tuple[float, ...],
    "eps": Course,
    "amsgrad": bool,
    "num_scales": int,
}


class ACMSAO(DropIn):
    """`acmsao`, or with mode="document" `acmsao_document`, with the document's arguments.

    The arguments up to `ram_offload` are the document's, with its defaults but for `history_size`
    (it has 1000: 15.4 TB for SDXL) and `ram_offload` (it has the last of three scales). Those that
    one of the modes does not have are refused there, as is an option without effect. `num_scales`
    and `scales` are two ways to say one thing: 3 are (1, 4, 16). `betas`, `eps` and `amsgrad` are
    Adam's; another rule, as inner="lion" or inner={"name": "muon", ...}, has its own.
    `total_steps` is the run's length, by which weight and horizon of the memory grow.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Course = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        cycle_period: int | str = 1000,
        num_scales: int = 3,
        history_size: int = 8,
        sparsity_factor: float = 0.1,
        magnitude_threshold: float = 0.5,
        ram_offload: tuple[bool, ...] | list[bool] | bool | None = None,
        *,
        mode: Mode = "scalable",
        total_steps: int | None = None,
        scales: tuple[int, ...] | list[int] | str | None = None,
        horizon: float | None = None,
        alpha: float | tuple[float, ...] | None = None,
        attention: AnyAttention | None = None,
        admission: Admission = "robust",
        kappa: float = 1.0,
        nesterov: bool = True,
        visits: Visits = "momentum",
        bank: BankKind = "mean",
        temperature: float | None = None,
        similarity: Similarity = "dot",
        lagged: bool = True,
        cycle: float = 0.1,
        phases: Phases | Mapping[str, Any] | None = None,
        pace: Pace = "steps",
        growth: Course | None = None,
        ramp: Course | None = None,
        inner: RuleSpec = "adamw",
        **options: Unpack[Options],
    ) -> None:
        if mode not in get_args(Mode):
            raise OptimizerError(
                f"mode cannot be `{mode}`", hint="scalable, or document for the literal algorithm"
            )
        betas = cast(Any, tuple(betas)) if isinstance(betas, list) else betas
        adams = {"betas": betas, "eps": eps, "amsgrad": amsgrad, "num_scales": num_scales}
        typed.check("ACMSAO", _TYPES, adams, {"betas": "(0.9, 0.999)", "num_scales": "3"})
        check_betas(betas)
        own = {name: given for name, given in locals().items() if name in _options()}
        own["inner"] = _inner(inner, {"betas": betas, "eps": eps, "amsgrad": amsgrad})
        if isinstance(ram_offload, list):
            own["ram_offload"] = tuple(ram_offload)
        if mode == "document":
            inside = {"name": "corrected", "beta": getattr(own["inner"], "betas", betas)[0]}
            options = {**options, "decay": options.get("decay") or inside}
        else:
            own |= {"num_scales": 3, "scales": _scales(scales, num_scales)}
        chosen = _RULES[mode]
        super().__init__(
            params, _name(chosen), lr, weight_decay, _known(own, chosen, mode), **options
        )
        if mode == "document" or bank == "ring":
            self._check_history(history_size)

    def _check_history(self, history_size: int) -> None:
        """Name the bytes of a long history; refuse what does not fit."""
        device = self.members[0].parameter.device
        shapes = [member.values.shape for member in self.members]
        needed = accounting.placed_bytes(self.pipeline, shapes)
        places = [(needed.device, device)] if device.type == "cuda" else []
        on_host = needed.host if places else needed.device + needed.host
        for size, place in [*places, (on_host, torch.device("cpu"))]:
            if device.type == "meta":
                break
            free, total = memory_of(place)
            said = f"a history of {history_size} entries for each scale takes {_said(size)}"
            if size > free:
                raise OptimizerError(
                    f"{said}, and {place.type} has {_said(free)} free",
                    hint="a smaller history_size, or mode=scalable with bank=mean",
                )
            if size > _WARNED * total or (history_size >= _LONG and size):
                warnings.warn(f"{said} of {place.type} memory", stacklevel=3)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of a GPU, or of the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return host_memory()


def _said(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _inner(given: RuleSpec, of_adam: dict[str, Any]) -> Rule:
    """The inner rule; what is Adam's belongs to it alone."""
    if given == "adamw":
        return AdamW(**of_adam)
    built: Rule = build_part(rule, given)
    for option, value in of_adam.items():
        if value != getattr(AdamW, option):
            raise OptimizerError(
                f"{option} is Adam's, and inner is given as a rule with options of its own",
                hint=f"say them there: inner={{'name': '{part_name(built)}', ...}}",
            )
    return built


def _scales(given: Any, number: int) -> tuple[int, ...] | str:
    """Strides in steps: as given, or the document's, 4^i."""
    if given is None:
        if number < 1:
            raise OptimizerError(f"num_scales must be 1 or more, not {number}", hint="typical: 3")
        return powers(number)
    scales = given if isinstance(given, str) else tuple(given)
    named = len(SCALES) if isinstance(scales, str) else len(scales)
    if number not in (3, named):
        raise OptimizerError(
            f"num_scales is {number}, but scales names {named}", hint="give one of them"
        )
    return scales


def _options() -> frozenset[str]:
    """What either form's rule takes, and `num_scales`, which both count by."""
    return frozenset(name for rule in _RULES.values() for name in fields_of(rule))


def _known(own: Mapping[str, Any], chosen: type[Rule], mode: str) -> dict[str, Any]:
    """The options the mode has; refuse others that are not as usual."""
    fields = fields_of(chosen)
    declared = inspect.signature(ACMSAO.__init__).parameters
    for option, value in own.items():
        if option not in fields and value != declared[option].default:
            other = next(name for name in _RULES if name != mode)
            raise OptimizerError(
                f"{option} has no effect with mode={mode}", hint=f"it is of mode={other}"
            )
    return {key: value for key, value in own.items() if key in fields and value is not None}


def fields_of(chosen: type[Rule]) -> set[str]:
    """The options of a rule."""
    return {field.name for field in dataclasses.fields(cast(Any, chosen))}


def _name(chosen: type[Rule]) -> str:
    return cast(str, cast(Any, chosen).registered_name)
