"""A stored SDXL model, whichever way it is stored: found, described, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from acmsao_cli.errors import ConfigError, ModelError
from acmsao_cli.models.locate import Located, locate
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    Components,
    Config,
    Prediction,
)
from acmsao_cli.models.sdxl.folder import HUB_PATTERNS, FolderSource, patterns_of_halves
from acmsao_cli.models.sdxl.quantized import Quantize, check_loads, pack_unet
from acmsao_cli.models.sdxl.settings import INDEX, Settings
from acmsao_cli.models.sdxl.single_file import SingleFileSource

CPU = torch.device("cpu")


class Source(Protocol):
    """Described at once, its weights read when asked for; `notes` are words for a person."""

    path: Path
    settings: Settings
    notes: Mapping[str, str]

    def num_parameters(self) -> dict[str, int]:
        """Weights by component, from the files' headers."""

    def files(self) -> dict[str, Path]:
        """Weights and settings, by names that stay where the model goes."""

    def stored_dtype(self, component: str) -> torch.dtype:
        """That of most of a component's weights."""

    def sketch(self, component: str) -> nn.Module:
        """A component on the meta device. Raises ModelError unless its weights fill it exactly."""

    def read(self, component: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A component with its weights, cast tensor by tensor."""


def find(source: str, revision: str | None, config: str | None = None) -> tuple[Located, Source]:
    """The stored model that `source` names; `config` is a diffusers folder that describes a file.

    Raises ModelError, and ConfigError for a `config` that nothing needs.
    """
    located = locate(source, revision, single_file_allowed=True, patterns=HUB_PATTERNS)
    halves = () if located.kind == "single-file" else patterns_of_halves(located.path)
    if halves:
        patterns = (*HUB_PATTERNS, *halves)
        located = locate(source, revision, single_file_allowed=True, patterns=patterns)
    if located.kind == "single-file":
        folder = None if config is None else _described_by(config)
        return located, SingleFileSource(located.path, folder)
    if config is not None:
        raise ConfigError(
            f"`model.config` describes single files, but {source} is a folder with its own",
            hint="leave model.config out",
        )
    return located, FolderSource(located.path)


def _described_by(config: str) -> Path:
    folder = Path(config)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"`model.config` names {config}, which has no {INDEX}",
            hint="name a diffusers folder; its weights are not needed",
        )
    return folder


def open_parts(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    prediction: Prediction,
    on_device: Sequence[str] = (),
    quantize: Quantize = "none",
) -> Components:
    """Every part of the pipeline, the `on_device` ones on `device` and the rest on the CPU.

    On the meta device no weights are read. The VAE is fp32: in half precision SDXL's overflows. A
    UNet that is packed is read to the CPU, so it is never whole and dense on `device`.
    """
    settings = source.settings
    if device.type != "meta":
        check_loads(quantize)
    scheduler: Config = {**settings.scheduler, "prediction_type": prediction}
    modules = {}
    for component in CLASSES:
        cast = torch.float32 if component == "vae" else dtype
        if device.type == "meta":
            modules[component] = _without_weights(source, component, cast)
        else:
            home = device if component in on_device else CPU
            packs = component == "unet" and quantize != "none"
            modules[component] = source.read(component, CPU if packs else home, cast)
    if quantize != "none":
        pack_unet(modules["unet"], quantize, device, dtype)
        modules["unet"].to(device)
    return Components(
        **modules,
        tokenizer=settings.tokenizer,
        tokenizer_2=settings.tokenizer_2,
        scheduler=scheduler,
        force_zeros=settings.force_zeros,
    )


def _without_weights(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    module = source.sketch(component)
    with quiet_libraries():
        return module.to("meta", dtype)


def prediction_of(scheduler: Config, place: Path) -> Prediction:
    """What the UNet was trained to predict, as the model says."""
    match scheduler.get("prediction_type", "epsilon"):
        case "epsilon":
            return "epsilon"
        case "v_prediction":
            return "v_prediction"
        case other:
            raise ModelError(
                f"{place} predicts {other!r}; epsilon and v_prediction can be trained",
                hint="if the scheduler's configuration is wrong, set model.prediction",
            )
