"""A model of any family written out as files other programs load."""

from __future__ import annotations

import shutil
from pathlib import Path

from acmsao_cli.errors import ConfigError, OutputError
from acmsao_cli.models.locate import locate
from acmsao_cli.writing import staged

TEXT_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model")


def export_model(source: str, directory: Path, layout: str | None) -> list[Path]:
    """Write the model `source` into `directory`; returns what was written.

    `layout` is diffusers or single-file for SDXL, transformers for a language model; None is the
    family's folder. Raises ModelError, ConfigError, OutputError.
    """
    directory = vacant(directory)
    patterns = (*TEXT_MODEL_FILES, "**/*.json", "**/*.safetensors", "**/*.txt")
    located = locate(source, None, single_file_allowed=True, patterns=patterns)
    if located.kind == "single-file" or (located.path / "model_index.json").is_file():
        return _export_sdxl(source, directory, layout or "diffusers")
    if layout not in (None, "transformers"):
        raise ConfigError(
            f"{source} is a language model: it has no {layout} layout",
            hint="leave --format out",
        )
    with staged(directory) as stage:
        stage.mkdir()
        for pattern in TEXT_MODEL_FILES:
            for file in sorted(located.path.glob(pattern)):
                shutil.copy(file, stage / file.name)
    return [directory]


def vacant(directory: Path) -> Path:
    """`directory`, absolute, if it is new or empty: what is written takes its place as a whole."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(
            f"{directory} exists and is not an empty folder",
            hint="name a folder that does not exist yet",
        )
    return directory.resolve()


def _export_sdxl(source: str, directory: Path, layout: str) -> list[Path]:
    from acmsao_cli.models.sdxl.convert import export_model as export_sdxl

    if layout not in ("diffusers", "single-file"):
        raise ConfigError(
            f"{source} is an SDXL model: it has no {layout} layout",
            hint="--format diffusers, or --format single-file",
        )
    return export_sdxl(source, directory, "diffusers" if layout == "diffusers" else "single-file")
