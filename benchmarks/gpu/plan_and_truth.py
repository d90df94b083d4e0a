"""Planned against measured peaks of training steps, under the memory of a smaller card.

python benchmarks/gpu/plan_and_truth.py [--device cuda] [--card-gib 16] [--steps 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from limits import limited

from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.data.reading import read, require
from acmsao_cli.engine.assemble import assemble
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import train
from acmsao_cli.engine.measured import Expectation
from acmsao_cli.engine.precision import resolve_device
from acmsao_cli.engine.signals import Stop
from acmsao_cli.memory.planner import plan
from acmsao_cli.versions import versions

CASES = [
    ("quickstart", ()),
    ("quickstart", ("training.gradient_checkpointing=true",)),
    ("quickstart-llm", ()),
    ("quickstart-llm", ("training.gradient_checkpointing=true",)),
]


def measured(recipe: str, settings: tuple[str, ...], device: str, steps: int) -> dict[str, Any]:
    """One case: the plan, then the same run for real."""
    common = (f"training.device={device}", f"training.steps={steps}", "schedule.warmup_steps=0")
    config = resolve(Request(recipe, None, (*settings, *common)))
    expectation = Expectation(plan(config).peak_bytes)
    reading = read(config.recipe.data)
    run = assemble(config.with_data_format(reading.format), require(reading), lambda event: None)
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        summary = train(
            run, RunFolder(Path(folder) / "run"), Stop(), lambda event: None, expectation
        )
    return {
        "recipe": recipe,
        "settings": list(settings),
        "memory": summary["memory"],
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "seconds": round(time.monotonic() - started, 2),
    }


def results(device: str, steps: int) -> Iterator[dict[str, Any]]:
    """All cases, told as they come."""
    for recipe, settings in CASES:
        row = measured(recipe, settings, device, steps)
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    """Run every case and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--card-gib", type=float, default=16.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    limited(resolve_device(options.device), options.card_gib)
    found = {
        "what": "planned and measured peak of training steps",
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "card_gib": options.card_gib,
        "cases": list(results(options.device, options.steps)),
        "versions": versions(),
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
