"""What is measured: our compositions, and other libraries' optimizers where they are installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import nn

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Pipeline, build_pipeline

Named: TypeAlias = list[tuple[str, nn.Parameter]]
DECAY = 0.01
LR = 1e-4


class Absent(Exception):
    """An entry that cannot be measured here, and why."""


@dataclass(frozen=True)
class Entry:
    """`build` raises Absent. `against`: entries that are run beside it, for a ratio of times.

    `opaque`: its operations make temporaries where the tracer does not see them.
    """

    name: str
    build: Callable[[Named, float, float], torch.optim.Optimizer]  # parameters, lr, decay
    against: tuple[str, ...] = ()
    opaque: bool = False


BASE = "torch AdamW foreach"
ADV_FACTORED = "adv_optm 2.5.16 AdamW factored"
ADV_BF16 = "adv_optm 2.5.16 AdamW bf16 + SR of weights"
ADV_BF16_SR = "adv_optm 2.5.16 AdamW bf16 + SR of weights and states"
ADV_LION = "adv_optm 2.5.16 Lion bf16 + SR of weights"
ADV_LION_FACTORED = "adv_optm 2.5.16 Lion factored"
ADV_ADOPT = "adv_optm 2.5.16 ADOPT factored"
ADV_PRODIGY = "adv_optm 2.5.16 Prodigy factored"
ADV_INT8 = "adv_optm 2.5.16 AdamW int8_sr"
ADV_ADEMAMIX = "adv_optm 2.2.3 AdamW factored + AdEMAMix"
ADV_CAUTIOUS = "adv_optm 2.2.3 AdamW factored + cautious"
ADV_SIMPLIFIED = "adv_optm 2.2.3 Simplified_AdEMAMix factored"


# Ours


@dataclass(frozen=True)
class Ours:
    """A composition by names, with or without kernels."""

    says: Mapping[str, Any]
    kernels: bool = False

    def pipeline(self) -> Pipeline:
        """Raises Absent where a part is not known."""
        try:
            return build_pipeline(**self.says)
        except OptimizerError as error:
            raise Absent(error.message) from error

    def __call__(self, named: Named, lr: float, decay: float) -> ComposedOptimizer:
        """Build the optimizer. Raises Absent."""
        pipeline = self.pipeline()
        try:
            return ComposedOptimizer(
                named, pipeline, lr=lr, weight_decay=decay, use_kernels=self.kernels
            )
        except OptimizerError as error:
            raise Absent(error.message) from error


ADEMAMIX = {"name": "adamw", "momentum": "ademamix"}
DENSE_MOMENTUM = {"default": "factored", "momentum": "bf16"}
OURS: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "AdamW fp32": ({"name": "adamw"}, ()),
    "AdamW bf16 + SR": ({"name": "adamw", "storage": "bf16"}, (ADV_BF16, ADV_BF16_SR)),
    "AdamW int8": ({"name": "adamw", "storage": "int8"}, (ADV_INT8,)),
    "AdamW factored": ({"name": "adamw", "storage": "factored"}, (ADV_FACTORED,)),
    "AdamW factored 2-bit": ({"name": "adamw", "storage": "factored_2bit"}, (ADV_FACTORED,)),
    "AdamW factored 4-bit": ({"name": "adamw", "storage": "factored_4bit"}, (ADV_FACTORED,)),
    "AdamW factored 8-bit": ({"name": "adamw", "storage": "factored_8bit"}, (ADV_FACTORED,)),
    "AdamW factored, bf16 momentum": (
        {"name": "adamw", "storage": DENSE_MOMENTUM},
        (ADV_FACTORED,),
    ),
    "AdamW factored + AdEMAMix": ({**ADEMAMIX, "storage": "factored"}, (ADV_ADEMAMIX,)),
    "AdamW factored + cautious": (
        {"name": "adamw", "storage": "factored", "direction_edits": ["cautious"]},
        (ADV_CAUTIOUS,),
    ),
    "Lion bf16 + SR": ({"name": "lion", "storage": "bf16"}, (ADV_LION,)),
    "Lion factored": ({"name": "lion", "storage": "factored"}, (ADV_LION_FACTORED,)),
    "ADOPT bf16 + SR": ({"name": "adopt", "storage": "bf16"}, (ADV_BF16,)),
    "ADOPT factored": ({"name": "adopt", "storage": "factored"}, (ADV_ADOPT,)),
    "Prodigy factored, every 11th": (
        {"name": "prodigy", "slice_p": 11, "storage": "factored"},
        (ADV_PRODIGY,),
    ),
    "Simplified AdEMAMix factored": (
        {"name": "simplified_ademamix", "storage": "factored"},
        (ADV_SIMPLIFIED,),
    ),
    "A2Grad bf16 + SR": ({"name": "a2grad", "storage": "bf16"}, ()),
    "Adafactor": ({"name": "adafactor"}, ()),
    "Muon": ({"name": "muon"}, ()),
}
WITH_KERNELS = (
    "AdamW bf16 + SR",
    "AdamW factored",
    "AdamW factored 4-bit",
    "AdamW factored + AdEMAMix",
    "Lion bf16 + SR",
    "Lion factored",
    "ADOPT factored",
)


def our_entries() -> Iterator[Entry]:
    """Every composition in plain torch, and those that may have a kernel with it."""
    for name, (says, against) in OURS.items():
        yield Entry(f"ours {name}", Ours(says), against)
        if name in WITH_KERNELS:
            yield Entry(f"ours {name}, kernel", Ours(says, kernels=True), against)


# Others


@dataclass(frozen=True)
class Theirs:
    """An optimizer of a module, by the name of its class."""

    module: Callable[[], ModuleType]
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, named: Named, lr: float, decay: float) -> torch.optim.Optimizer:
        """Build the optimizer. Raises Absent."""
        kind = getattr(self.module(), self.kind, None)
        if kind is None:
            raise Absent(f"this version has no {self.kind}")
        made = kind([p for _, p in named], lr=lr, weight_decay=decay, **self.options)
        assert isinstance(made, torch.optim.Optimizer)
        return made


def installed(name: str) -> Callable[[], ModuleType]:
    """A module of this environment."""

    def load() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise Absent(f"{name.partition('.')[0]} is not installed") from error

    return load


def adv_optm(version: str, folder: Path | None) -> Callable[[], ModuleType]:
    """This version of adv_optm, of `folder`/adv_optm-VERSION."""

    @cache
    def load() -> ModuleType:
        place = None if folder is None else folder / f"adv_optm-{version}"
        if place is None or not place.is_dir():
            raise Absent(
                f"pip install --no-deps --target FOLDER/adv_optm-{version} adv_optm=={version}, "
                "and --peers FOLDER"
            )
        return _import_apart("adv_optm", place)

    return load


def _import_apart(package: str, place: Path) -> ModuleType:
    """Import a package from a folder and forget its name, so that another version can follow."""
    _forget(package)
    sys.path.insert(0, str(place))
    try:
        module = importlib.import_module(package)
    finally:
        sys.path.remove(str(place))
        _forget(package)
    return module


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


TORCH, TORCHAO = installed("torch.optim"), installed("torchao.optim")
PYTORCH_OPTIMIZER, BITSANDBYTES = installed("pytorch_optimizer"), installed("bitsandbytes.optim")


def adv_entries(folder: Path | None) -> Iterator[Entry]:
    """Two versions: the last one, and the one that still has what was dropped since."""
    new, old = adv_optm("2.5.16", folder), adv_optm("2.2.3", folder)
    factored = {"state_precision": "factored"}
    for name, kind, options in (
        (ADV_FACTORED, "AdamW_adv", factored),
        (ADV_BF16, "AdamW_adv", {}),
        (ADV_BF16_SR, "AdamW_adv", {"state_precision": "bf16_sr"}),
        ("adv_optm 2.5.16 AdamW fp32 states", "AdamW_adv", {"state_precision": "fp32"}),
        (ADV_INT8, "AdamW_adv", {"state_precision": "int8_sr"}),
        (ADV_ADOPT, "Adopt_adv", factored),
        (ADV_PRODIGY, "Prodigy_adv", factored),
        (ADV_LION, "Lion_adv", {}),
        (ADV_LION_FACTORED, "Lion_adv", {"nnmf_factor": True}),
    ):
        yield Entry(name, Theirs(new, kind, options))
    nnmf = {"nnmf_factor": True}
    for name, kind, options in (
        ("adv_optm 2.2.3 AdamW factored", "AdamW_adv", nnmf),
        (ADV_ADEMAMIX, "AdamW_adv", nnmf | {"use_AdEMAMix": True}),
        (ADV_CAUTIOUS, "AdamW_adv", nnmf | {"cautious_mask": True}),
        (ADV_SIMPLIFIED, "Simplified_AdEMAMix", nnmf),
        ("adv_optm 2.2.3 Lion_Prodigy factored", "Lion_Prodigy_adv", nnmf),
    ):
        yield Entry(name, Theirs(old, kind, options))


def other_entries() -> Iterator[Entry]:
    """torch, torchao, bitsandbytes, pytorch_optimizer."""
    rounding = {"bf16_stochastic_round": True}
    for name, module, kind, options in (
        (BASE, TORCH, "AdamW", {"foreach": True}),
        ("torch AdamW fused", TORCH, "AdamW", {"fused": True}),
        ("torch AdamW for-loop", TORCH, "AdamW", {"foreach": False}),
        ("torch Adafactor", TORCH, "Adafactor", {}),
        ("pytorch_optimizer AdEMAMix", PYTORCH_OPTIMIZER, "AdEMAMix", {}),
        ("pytorch_optimizer ADOPT", PYTORCH_OPTIMIZER, "ADOPT", {}),
        ("pytorch_optimizer Prodigy", PYTORCH_OPTIMIZER, "Prodigy", {}),
        ("pytorch_optimizer Lion", PYTORCH_OPTIMIZER, "Lion", {}),
        ("pytorch_optimizer CAME", PYTORCH_OPTIMIZER, "CAME", {}),
        ("pytorch_optimizer FlashAdamW", PYTORCH_OPTIMIZER, "FlashAdamW", {}),
    ):
        yield Entry(name, Theirs(module, kind, options))
    for name, module, kind, options in (
        ("torchao AdamW8bit + SR", TORCHAO, "AdamW8bit", rounding),
        ("torchao AdamW4bit + SR", TORCHAO, "AdamW4bit", rounding),
        ("bitsandbytes AdamW 32-bit", BITSANDBYTES, "AdamW32bit", {}),
        ("bitsandbytes AdamW8bit", BITSANDBYTES, "AdamW8bit", {}),
        ("bitsandbytes Lion8bit", BITSANDBYTES, "Lion8bit", {}),
        ("bitsandbytes AdEMAMix8bit", BITSANDBYTES, "AdEMAMix8bit", {}),
    ):
        yield Entry(name, Theirs(module, kind, options), opaque=True)
    yield Entry("pytorch_optimizer A2Grad", _a2grad)


def _a2grad(named: Named, lr: float, decay: float) -> torch.optim.Optimizer:
    made = PYTORCH_OPTIMIZER().A2Grad([p for _, p in named], lr=lr)  # it has no decay
    assert isinstance(made, torch.optim.Optimizer)
    return made


def entries(folder: Path | None) -> dict[str, Entry]:
    """Everything, ours first."""
    every = (*our_entries(), *adv_entries(folder), *other_entries())
    return {entry.name: entry for entry in every}
