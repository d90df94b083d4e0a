"""The report file of an unexpected fault: what a maintainer needs, and nothing private."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from acmsao_cli import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "typer")


def write_report(error: BaseException, argv: Sequence[str]) -> Path | None:
    """Write the traceback here, or among temporary files; return None where neither can be done.

    Neither the environment nor local variables are in it: both hold what people keep to themselves.
    """
    text = "\n".join(
        [
            f"acmsao {__version__}, python {platform.python_version()}, {platform.platform()}",
            *(f"{name} {_version(name)}" for name in LIBRARIES),
            f"command: acmsao {shlex.join(argv)}",
            "",
            *traceback.format_exception(error),
        ]
    )
    name = f"acmsao-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        try:
            path = folder() / name
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except OSError:
            continue
    return None


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
