"""A model written out as it is, in the other layout or as a copy."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from acmsao_cli import builtin
from acmsao_cli.models.sdxl.components import CLASSES
from acmsao_cli.models.sdxl.folder import write_folder
from acmsao_cli.models.sdxl.metadata import ARCHITECTURE, ORIGINAL_LAYOUT, SPEC_PREDICTIONS
from acmsao_cli.models.sdxl.single_file import write_single_file
from acmsao_cli.models.sdxl.source import find, open_parts, prediction_of
from acmsao_cli.models.sdxl.verify import check_folder, check_single_file
from acmsao_cli.writing import staged, vacant

LAYOUTS: tuple[str, ...] = ("diffusers", "single-file")


def export_model(
    source: str, directory: Path, layout: str = LAYOUTS[0], revision: str | None = None
) -> list[Path]:
    """Write the model `source` into `directory`, in its own dtypes, and load it back.

    `layout` is one of LAYOUTS. A diffusers folder becomes `directory` itself; a single file lies in
    it. Raises ModelError for
    a source that cannot be read, OutputError for what is there already, cannot be written, or does
    not come back.
    """
    located, found = find(source, revision)
    prediction = prediction_of(found.settings.scheduler, located.path)
    file = directory / f"{builtin.name_in(source) or located.path.stem}.safetensors"
    place = vacant(directory if layout == "diffusers" else file)
    dtypes = {component: found.stored_dtype(component) for component in CLASSES}
    widest = functools.reduce(torch.promote_types, dtypes.values())
    parts = open_parts(found, torch.device("cpu"), widest, prediction)
    if layout == "diffusers":
        with staged(place) as stage:
            write_folder(parts, stage, dtypes)
            check_folder(stage, parts, dtypes)
        return [place]
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": ORIGINAL_LAYOUT,
        "modelspec.title": place.stem,
        "modelspec.prediction_type": SPEC_PREDICTIONS[prediction],
    }
    write_single_file(parts, place, dtypes, metadata)
    check_single_file(place, parts, dtypes)
    return [place]
