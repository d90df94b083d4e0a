"""What every benchmark writes beside its figures: command, versions and machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from acmsao_cli.versions import installed_version, versions

RESULTS = Path(__file__).parent / "results"


def provenance(what: str, *libraries: str) -> dict[str, Any]:
    """The head of a result file; `libraries` are told beside our own."""
    return {
        "what": what,
        "command": command(),
        "machine": machine(),
        "versions": versions() | {name: installed_version(name) for name in libraries},
    }


def command() -> str:
    """The command line, paths of this machine by their last names."""
    script, *arguments = sys.argv
    told = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *told])


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


def write(stem: Path, result: dict[str, Any], text: str) -> None:
    """Write `stem`.json and `stem`.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"wrote {stem.with_suffix('.json')} and {stem.with_suffix('.md')}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
