"""Kills runs at random moments and continues them; nothing may be lost, torn or changed.

    python benchmarks/chaos.py --kills 200 --seed 0 --output benchmarks/results/chaos.json

Each round is a recipe that is started, killed by SIGKILL, SIGTERM, SIGINT or SIGHUP after a random
time, and started again by the same command until it ends. After each kill every checkpoint that can
be seen must be whole; at the end all final weights must have the bits of the run that was left
alone, and the metrics its steps and losses. The runs are children of this process, which has the
imports done: most of a start's time would go into them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

BASE: Final = (
    *("-s", "training.steps=12", "-s", "schedule.warmup_steps=2", "-s", "checkpoint.every=2"),
    *("-s", "checkpoint.keep=2", "-s", "samples.prompts=[hello]", "-s", "training.batch_size=2"),
)
BRIEF: Final = ("-s", "samples.max_new_tokens=1", "-s", "training.epochs=null")
TEXT: Final = ("-s", "model.source=builtin:tiny-llm", "-s", "data.source=builtin:pirate")
FUSED: Final = ("-s", "optimizer.fused_backward=true", "-s", "training.clip_norm=null")
CASES: Final = {
    "text lora": ("quickstart-llm", *BASE, *BRIEF),
    "text full, fused, 1-bit state": (
        *("llm-full", *TEXT, *BASE, *BRIEF, *FUSED, "-s", "optimizer.storage=factored"),
        *("-s", "training.accumulation=1", "-s", "data.max_length=64", "-s", "samples.every=0"),
    ),
    "pictures lora": ("quickstart", *BASE, "-s", "samples.steps=1"),
    "pictures full, fused, workers": (
        *("sdxl-full", "-s", "model.source=builtin:tiny-sdxl", "-s", "data.source=builtin:zoblins"),
        *("-s", "data.resolution=64", "-s", "data.bucket_step=8", "-s", "data.workers=2"),
        *(*BASE, *FUSED, "-s", "samples.steps=1", "-s", "samples.every=0"),
        *("-s", "training.epochs=null", "-s", "optimizer.storage=factored_4bit"),
    ),
}
SIGNALS: Final = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What a run that was told to stop may answer; by the signal itself before anything was begun.
STOPPED: Final = {0, 129, 130, 143, *(-number for number in SIGNALS)}


@dataclass
class Told:
    """What came of the kills of one recipe."""

    kills: int = 0
    rounds: int = 0
    starts: int = 0
    torn_checkpoints: int = 0
    differing_runs: int = 0
    strange_ends: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, torn or changed."""
        return not (self.torn_checkpoints or self.differing_runs or self.strange_ends)


def start(arguments: tuple[str, ...], folder: Path) -> int:
    """Begin the command in a child; its number."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    from acmsao_cli.cli.app import main

    code = 1
    try:
        main(("train", *arguments, "--output", "run"))
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """How the child ended, if it does within so many seconds: its code, or minus its signal."""
    until = time.monotonic() + seconds
    while True:
        there, status = os.waitpid(child, os.WNOHANG)
        if there:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same of two runs: weights, state, and each step's figures."""
    from safetensors.torch import load_file

    run = folder / "run"
    newest = max((run / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": load_file(newest / "weights.safetensors"),
        "state": load_file(newest / "optimizer.safetensors"),
        "rows": [(row["step"], row["loss"], row["gradient_norm"], row["lr"]) for row in rows],
    }


def same(calm: Path, place: Path) -> bool:
    """Whether two runs came to the same bits; looked at in a child, whose threads are its own."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if _equal(outcome(calm), outcome(place)) else 1)
        finally:
            os._exit(2)
    return ended(child, 600) == 0


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one["rows"] == other["rows"] and all(
        one[part].keys() == other[part].keys()
        and all(torch.equal(value, other[part][name]) for name, value in one[part].items())
        for part in ("weights", "state")
    )


def last_words(folder: Path) -> str:
    """The end of a run's log."""
    return (folder / "log.txt").read_text(errors="replace")[-500:]


def torn(folder: Path) -> int:
    """How many of the checkpoints that can be seen are not whole."""
    from acmsao_cli.checkpoint.store import open_checkpoint
    from acmsao_cli.errors import CheckpointError

    count = 0
    for path in (folder / "run" / "checkpoints").glob("step-*"):
        try:
            open_checkpoint(path)
        except CheckpointError:
            count += 1
    return count


def harried(
    arguments: tuple[str, ...], kills: int, draw: random.Random, folder: Path
) -> tuple[Told, float]:
    """Kill runs of a recipe so many times; what came of it, and the seconds of one left alone."""
    calm = folder / "calm"
    calm.mkdir()
    began = time.monotonic()
    code = ended(start(arguments, calm), 600)
    seconds = time.monotonic() - began
    if code != 0:
        raise RuntimeError(f"the run that is left alone ends with {code}: see {calm / 'log.txt'}")
    told = Told()
    while told.kills < kills:
        place = folder / f"round-{told.rounds}"
        place.mkdir()
        told.rounds += 1
        if one_round(arguments, kills, draw, place, seconds, told):
            told.differing_runs += not same(calm, place)
    return told, seconds


def one_round(
    arguments: tuple[str, ...],
    kills: int,
    draw: random.Random,
    place: Path,
    seconds: float,
    told: Told,
) -> bool:
    """Start and kill a run until it ends; whether it ended well."""
    for _ in range(100):
        told.starts += 1
        child = start(arguments, place)
        code = None
        if told.kills < kills:
            code = ended(child, draw.uniform(0, seconds))
            if code is None:
                number = draw.choice(SIGNALS)
                os.kill(child, number)
                told.kills += 1
                if draw.random() < 0.2:  # again, in the midst of the save
                    time.sleep(draw.uniform(0, 0.05))
                    os.kill(child, draw.choice(SIGNALS))
        code = ended(child, 600) if code is None else code
        told.codes[str(code)] += 1
        told.torn_checkpoints += torn(place)
        if code not in STOPPED:
            told.strange_ends.append(f"{code}: {last_words(place)}")
            return False
        if code == 0:
            return True
    told.strange_ends.append(f"no end: {place / 'log.txt'}")
    return False


def main() -> None:
    """Harry every recipe, print what came of it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(CASES), action="append")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    import acmsao_cli.engine.loop
    import acmsao_cli.models.causal_lm.trainee
    import acmsao_cli.models.sdxl.trainee  # noqa: F401
    from acmsao_cli.versions import versions

    chosen = {name: CASES[name] for name in options.only or CASES}
    results, clean = {}, True
    for number, (name, arguments) in enumerate(chosen.items()):
        kills = options.kills // len(chosen) + (number < options.kills % len(chosen))
        draw = random.Random(f"{options.seed} {name}")
        folder = Path(tempfile.mkdtemp(prefix="acmsao-chaos-"))
        told, seconds = harried(arguments, kills, draw, folder)
        if told.is_clean:
            shutil.rmtree(folder)
        clean = clean and told.is_clean
        results[name] = {
            "kills": told.kills,
            "runs": told.rounds,
            "starts": told.starts,
            "torn_checkpoints": told.torn_checkpoints,
            "runs_that_differ": told.differing_runs,
            "strange_ends": told.strange_ends,
            "exit_codes": dict(told.codes),
            "seconds_left_alone": round(seconds, 2),
        }
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if options.output:
        entry = {
            "command": f"python benchmarks/chaos.py --kills {options.kills} --seed {options.seed}",
            "versions": versions(),
            "results": results,
        }
        options.output.write_text(json.dumps(entry, indent=1) + "\n")
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
