"""What every result says beside its figures: command, versions and machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from acmsao_cli.privacy import private
from acmsao_cli.versions import installed_version, versions


def provenance(what: str, program: str, *libraries: str) -> dict[str, Any]:
    """The head of a result file; `libraries` are told beside our own."""
    return {
        "what": what,
        "command": command(program),
        "machine": machine(),
        "versions": versions() | {name: installed_version(name) for name in libraries},
    }


def command(program: str) -> str:
    """The command line of `program`, paths of this machine by their last names."""
    told = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return private(f"{program} {shlex.join(told)}".rstrip())


def machine() -> dict[str, Any]:
    """Processor and threads; no names of hosts or people."""
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def processor() -> str:
    """The processor's name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    family = told.get("cpu family")
    return told.get("model name", "unknown") + (f" (family {family})" if family else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
