"""A model of any family written out as files other programs load."""

from __future__ import annotations

from pathlib import Path

from acmsao_cli.errors import ConfigError
from acmsao_cli.models.catalog import family
from acmsao_cli.models.locate import locate

PIPELINE = "model_index.json"


def export_model(source: str, directory: Path, layout: str | None) -> list[Path]:
    """Write the model `source` into `directory`, loaded back; returns what was written.

    `layout` is one of its family's, None the first of them. Raises ModelError, ConfigError,
    OutputError.
    """
    found = family(_family_of(source))
    if layout not in (None, *found.layouts):
        raise ConfigError(
            f"{source} is a model of the family {found.name}: it has no {layout} layout",
            hint=" or ".join(f"--format {known}" for known in found.layouts),
        )
    return found.copy(source, directory, layout or found.layouts[0])


def _family_of(source: str) -> str:
    """By the file that only a diffusers folder has; of a hub id nothing more is fetched for it."""
    located = locate(source, None, single_file_allowed=True, patterns=(PIPELINE, "config.json"))
    is_pipeline = located.kind == "single-file" or (located.path / PIPELINE).is_file()
    return "sdxl" if is_pipeline else "causal_lm"
