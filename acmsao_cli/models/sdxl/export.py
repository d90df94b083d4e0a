"""What a finished training leaves: every format of the recipe, written and loaded back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.config.rules import formats_of
from acmsao_cli.config.sdxl import SdxlLora, SdxlRecipe
from acmsao_cli.models.base import Exported, TrainingFacts
from acmsao_cli.models.dtypes import DTYPES
from acmsao_cli.models.lora import adapted_layers
from acmsao_cli.models.merging import merged_weights
from acmsao_cli.models.safetensors_writer import entry, write_safetensors
from acmsao_cli.models.sdxl.components import CLASSES, TEXT_ENCODERS, Components, Prediction
from acmsao_cli.models.sdxl.folder import write_folder
from acmsao_cli.models.sdxl.kohya import effective_alpha, kohya_weights
from acmsao_cli.models.sdxl.metadata import (
    ORIGINAL_LAYOUT,
    model_spec,
    network_fields,
    training_fields,
)
from acmsao_cli.models.sdxl.peft_file import METADATA_KEY, peft_metadata, peft_weights
from acmsao_cli.models.sdxl.single_file import write_single_file
from acmsao_cli.models.sdxl.verify import (
    check_folder,
    check_lora_in_diffusers,
    check_single_file,
    check_tensors,
    empty_network,
)
from acmsao_cli.writing import staged

MERGEABLE = ("unet", *TEXT_ENCODERS)


@dataclass(frozen=True)
class Work:
    """What an export writes: the weights, and what is said about them."""

    recipe: SdxlRecipe
    parts: Components
    prediction: Prediction
    facts: TrainingFacts
    captions: tuple[str, ...]

    def dtype(self, trained: torch.dtype) -> torch.dtype:
        """That of the file, where `trained` is that of the weights."""
        return DTYPES.get(self.recipe.output.dtype, trained)

    def component_dtypes(self) -> dict[str, torch.dtype]:
        """That of each network of a whole model."""
        return {
            component: self.dtype(next(self.parts.module(component).parameters()).dtype)
            for component in CLASSES
        }


def export_all(work: Work, directory: Path) -> list[Exported]:
    """Write the recipe's formats, or all of its method's, and load each back.

    Raises OutputError where it does not come back as it was trained.
    """
    return [WRITERS[name](work, directory) for name in formats_of(work.recipe)]


def _kohya(work: Work, directory: Path) -> Exported:
    path = directory / f"{work.facts.name}.safetensors"
    method, weights = work.recipe.method, kohya_weights(work.parts)
    assert isinstance(method, SdxlLora)
    metadata: dict[str, str] = {}
    if work.recipe.output.metadata:
        metadata = _described(work, ORIGINAL_LAYOUT)
        metadata |= network_fields(method, _alpha(work.parts))
    obstacle = "it leaves out DoRA's magnitudes there" if method.dora else None
    obstacle = obstacle or _text_obstacle(work.parts, ("out_proj",))
    error = _write_lora(work, path, weights, metadata, in_diffusers=obstacle is None)
    return Exported(path, "kohya", _users("ComfyUI, A1111, Forge", obstacle), error)


def _peft(work: Work, directory: Path) -> Exported:
    path = directory / f"{work.facts.name}-peft.safetensors"
    metadata = {"format": "pt", METADATA_KEY: peft_metadata(work.parts)}
    if work.recipe.output.metadata:
        metadata |= _described(work, "diffusers")
    weights = peft_weights(work.parts)
    obstacle = _text_obstacle(work.parts, ("q_proj", "k_proj", "v_proj", "out_proj"))
    error = _write_lora(work, path, weights, metadata, in_diffusers=obstacle is None)
    method = work.recipe.method
    assert isinstance(method, SdxlLora)
    if obstacle is None and method.dora and method.text_encoders:
        obstacle = "it leaves out DoRA's magnitudes on the text encoders"
    return Exported(path, "peft", _users("peft", obstacle), error)


def _write_lora(
    work: Work,
    path: Path,
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    in_diffusers: bool,
) -> float:
    """Write, load back, and give the largest difference.

    Alphas stay fp32: rounded to 16 bits, they would change the scale of every layer.
    """
    dtype = work.dtype(torch.float32)
    dtypes = {name: torch.float32 if name.endswith(".alpha") else dtype for name in weights}
    entries = {name: entry(one, dtypes[name]) for name, one in weights.items()}
    write_safetensors(path, entries, metadata)
    error = check_tensors(path, weights, dtypes)
    if in_diffusers:
        error = max(error, check_lora_in_diffusers(path, work.parts, dtype))
    return error


def _users(known: str, obstacle: str | None) -> str:
    return f"{known}, diffusers" if obstacle is None else f"{known}; not diffusers: {obstacle}"


def _text_obstacle(parts: Components, needed: tuple[str, ...]) -> str | None:
    """diffusers tells a text encoder's adapters by those on some of its attention layers."""
    names = [name for name, _ in adapted_layers(parts.text_encoder)]
    if not names or any(name.endswith(needed) for name in names):
        return None
    return f"it needs an adapter on the text encoders' {' or '.join(needed)} there"


def _alpha(parts: Components) -> float:
    return next(effective_alpha(layer) for _, layer in adapted_layers(parts.unet))


def _folder(work: Work, directory: Path) -> Exported:
    path = directory / f"{work.facts.name}-diffusers"
    dtypes = work.component_dtypes()
    with staged(path) as stage:
        write_folder(work.parts, stage, dtypes)
        error = check_folder(stage, work.parts, dtypes)
    return Exported(path, "diffusers", "diffusers", error)


def _merged(work: Work, directory: Path) -> Exported:
    """The base with the adapters folded in, in the original layout."""
    path = directory / f"{work.facts.name}-merged.safetensors"
    dtype = work.dtype(work.parts.unet.dtype)
    networks: dict[str, Any] = {part: _dense(work.parts, part, dtype) for part in MERGEABLE}
    whole = replace(work, parts=replace(work.parts, **networks))
    return replace(_write_single_file(whole, path), format="merged")


def _dense(parts: Components, component: str, dtype: torch.dtype) -> nn.Module:
    """A component on the CPU with nothing packed and no adapters, rounded to `dtype` once."""
    dense = empty_network(parts, component)
    weights = {name: one.to("cpu", dtype) for name, one in merged_weights(parts.module(component))}
    dense.load_state_dict(weights, strict=True, assign=True)
    return dense


def _single_file(work: Work, directory: Path) -> Exported:
    return _write_single_file(work, directory / f"{work.facts.name}.safetensors")


def _write_single_file(work: Work, path: Path) -> Exported:
    dtypes = work.component_dtypes()
    metadata = _described(work, ORIGINAL_LAYOUT) if work.recipe.output.metadata else {}
    write_single_file(work.parts, path, dtypes, metadata)
    error = check_single_file(path, work.parts, dtypes)
    return Exported(path, "single-file", "ComfyUI, A1111, Forge, diffusers", error)


def _described(work: Work, implementation: str) -> dict[str, str]:
    spec = model_spec(work.recipe, work.facts, work.prediction, implementation)
    return spec | training_fields(work.recipe, work.facts, work.captions)


WRITERS: Mapping[str, Callable[[Work, Path], Exported]] = {
    "kohya": _kohya,
    "peft": _peft,
    "diffusers": _folder,
    "single-file": _single_file,
    "merged": _merged,
}
