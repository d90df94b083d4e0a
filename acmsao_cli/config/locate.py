"""Recipes and presets by name or path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acmsao_cli.config.suggest import closest
from acmsao_cli.errors import ConfigError
from acmsao_cli.privacy import at_home

Kind = Literal["recipe", "preset"]

PACKAGE = Path(__file__).resolve().parent.parent
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Located:
    """A recipe or preset file; `base` is the folder that its relative paths start from."""

    name: str
    path: Path
    base: Path

    @property
    def shown(self) -> str:
        """The path as errors and run.yaml name it: short below the current or the home folder."""
        path = Path(os.path.abspath(self.path))
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else at_home(str(path))


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of named files: the package's in an install, the checkout's otherwise."""
    packaged = PACKAGE / f"_{kind}s"
    return packaged if packaged.is_dir() else PACKAGE.parent / f"{kind}s"


def shipped(kind: Kind) -> list[Located]:
    """Return what can be named without a path, sorted by name.

    Its relative paths start from the current folder: `./data` is the user's, not the package's.
    """
    files = sorted(shipped_folder(kind).glob("*.yaml"))
    return [Located(file.stem, file, Path.cwd()) for file in files]


def locate(kind: Kind, request: str) -> Located:
    """Find a file by path if it looks like one, else by name; raise ConfigError with the names."""
    if _looks_like_path(request):
        return _by_path(kind, request)
    by_name = {file.name: file for file in shipped(kind)}
    if request in by_name:
        return by_name[request]
    near = closest(request, by_name)
    known = f"{kind}s: {', '.join(by_name)}; or the path of a .yaml file"
    raise ConfigError(
        f"unknown {kind} `{request}`", hint=f"did you mean `{near}`? {known}" if near else known
    )


def _looks_like_path(request: str) -> bool:
    return "/" in request or os.sep in request or request.lower().endswith(SUFFIXES)


def _by_path(kind: Kind, request: str) -> Located:
    path = Path(os.path.expanduser(request))
    if not os.path.lexists(path):
        names = [file.name for file in shipped(kind)]
        near = closest(path.stem, names)
        hint = f"the {kind} that comes with acmsao is called `{near}`" if near else None
        raise ConfigError(
            f"there is no {kind} at {request}",
            hint=hint or f"{kind}s that need no path: {', '.join(names)}",
        )
    return Located(path.stem, path, Path(os.path.abspath(path)).parent)
