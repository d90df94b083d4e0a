"""The versions a result or a fault depends on."""

from __future__ import annotations

import importlib.metadata
import platform

from acmsao_cli import __version__

LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"),
    *("bitsandbytes", "tokenizers", "pillow", "pydantic", "typer"),
)


def versions() -> dict[str, str]:
    """Name -> version, ours first; nothing is imported for it."""
    found = {"acmsao": __version__, "python": platform.python_version()}
    return found | {library: installed_version(library) for library in LIBRARIES}


def installed_version(library: str) -> str:
    """The version of an installed distribution, or `missing`."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
