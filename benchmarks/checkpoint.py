"""What a checkpoint with all guarantees costs, in a plain save_file of the same tensors.

    python benchmarks/checkpoint.py [--rounds 7] [--folder DIR] [--out STEM]

Plain and ours take turns within each round, and what counts is the median of the rounds' ratios.
Three questions: how long saving 500 MB takes, at once and beside the training; how long a training
loop stands still for it; and how long it takes from `--resume` to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor

from acmsao_cli.checkpoint.background import Writer
from acmsao_cli.checkpoint.store import CheckpointStore, num_bytes, open_checkpoint

PLAIN: Final = "plain save_file"
MATRICES: Final = ((1280, 1280),) * 30 + ((640, 640),) * 30 + ((1280,),) * 260
# In a training loop: a save each so many steps.
STEPS, EVERY = 360, 120
RECIPE: Final = (
    *("quickstart-llm", "-s", "training.steps=6", "-s", "training.epochs=null"),
    *("-s", "schedule.warmup_steps=2", "-s", "checkpoint.every=3", "-s", "training.batch_size=2"),
    *("-s", "samples.prompts=[hello]", "-s", "samples.max_new_tokens=1"),
)


def made(scale: int = 1) -> dict[str, dict[str, Tensor]]:
    """Weights and two moments of each, of half the rows: 960 tensors, 500 MB in all."""
    draw = torch.Generator().manual_seed(0)
    shapes = [tuple(side // scale for side in shape) for shape in MATRICES]
    weights = {f"w{n}": torch.randn(shape, generator=draw) for n, shape in enumerate(shapes)}
    half = {f"{name}/{slot}": w[: len(w) // 2] for name, w in weights.items() for slot in "mv"}
    return {"weights": weights, "optimizer": {name: w.clone() for name, w in half.items()}}


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def saves(files: Mapping[str, Mapping[str, Tensor]], folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each way in each round."""
    taken: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        taken.setdefault(name, []).append(value)

    for number in range(rounds + 1):  # the first round warms up
        plain, store = folder / "plain", CheckpointStore(folder / "store", 2)
        shutil.rmtree(plain, ignore_errors=True)
        plain.mkdir()

        def plainly(plain: Path = plain) -> None:
            for name, tensors in files.items():
                save_file(dict(tensors), plain / f"{name}.safetensors")

        def waited_for(store: CheckpointStore = store, number: int = number) -> None:
            store.save(2 * number + 1, files, {})

        writer = Writer(store.save, aside=lambda: True)
        for name, work in ((PLAIN, plainly), ("all guarantees", waited_for)):
            note(name, seconds(work))
        began = time.perf_counter()
        writer.begin(2 * number + 2, files, {})
        note("beside the training: the training waits", time.perf_counter() - began)
        path = writer.wait()
        note("beside the training: until it is on the disk", time.perf_counter() - began)
        assert path is not None
        checkpoint = open_checkpoint(path)
        note("verify", seconds(lambda path=path: open_checkpoint(path)))  # type: ignore[misc]
        note("load", seconds(lambda one=checkpoint: [one.tensors(name) for name in files]))  # type: ignore[misc]
        os.sync()
    return compared({name: values[1:] for name, values in taken.items()}, PLAIN)


def compared(taken: Mapping[str, list[float]], base: str) -> dict[str, Any]:
    """Medians, and the median of the ratios to `base` in the same round."""
    return {
        name: {
            "seconds": round(statistics.median(values), 4),
            "ratio": round(
                statistics.median(a / b for a, b in zip(values, taken[base], strict=True)), 3
            ),
        }
        for name, values in taken.items()
    }


def loops(files: Mapping[str, Mapping[str, Tensor]], folder: Path, rounds: int) -> dict[str, Any]:
    """A loop of products that saves now and then: its longest pause, and its whole time."""
    side = torch.randn(700, 700)

    def plainly(step: int) -> None:
        for name, tensors in files.items():
            save_file(dict(tensors), folder / f"loop-{name}.safetensors")

    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        ways: dict[str, Callable[[int], object]] = {"no checkpoint": lambda step: None}
        ways[PLAIN] = plainly
        for name, aside in (("the training waits", False), ("beside the training", True)):
            store = CheckpointStore(folder / f"loop-{aside}-{number}", 1)
            writer = Writer(store.save, aside=lambda aside=aside: aside)  # type: ignore[misc]

            def begin(step: int, writer: Writer = writer) -> None:
                writer.wait()
                writer.begin(step, files, {})

            ways[name] = begin
        for name, save in ways.items():
            longest, began = 0.0, time.perf_counter()
            for step in range(1, STEPS + 1):
                for _ in range(4):
                    side @ side
                if step % EVERY == 0:
                    longest = max(longest, seconds(lambda save=save, step=step: save(step)))  # type: ignore[misc]
            if name == "beside the training":
                writer.wait()
            found.setdefault(name, []).append((longest, time.perf_counter() - began))
        for leftover in folder.glob("loop-*-*"):
            shutil.rmtree(leftover)
        os.sync()
    return {
        name: {
            "longest pause, seconds": round(statistics.median(one for one, _ in pairs[1:]), 4),
            "whole loop, seconds": round(statistics.median(all_ for _, all_ in pairs[1:]), 3),
        }
        for name, pairs in found.items()
    }


def starts(folder: Path, rounds: int) -> dict[str, Any]:
    """From the command to the first step, of a new run and of one that goes on."""
    taken: dict[str, list[float]] = {"a new run": [], "--resume": []}
    for number in range(rounds):
        run = folder / f"run-{number}"
        taken["a new run"].append(first_step((*RECIPE, "--output", str(run)), 1))
        (run / "summary.json").unlink()
        shutil.rmtree(max((run / "checkpoints").glob("step-*")))
        taken["--resume"].append(first_step((*RECIPE, "--output", str(run)), 4))
    return compared(taken, "a new run")


def first_step(arguments: tuple[str, ...], expected: int) -> float:
    """Seconds until the command tells its first step, which has to be the expected one."""
    began, at = time.perf_counter(), None
    command = (sys.executable, "-m", "acmsao_cli", "train", *arguments, "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if at is None and event["event"] == "step":
                assert event["step"] == expected, event
                at = time.perf_counter() - began
    assert child.returncode == 0
    assert at is not None
    return at


def told(result: Mapping[str, Any]) -> str:
    """The result as tables."""
    saved, looped, started = result["saves"], result["loops"], result["starts"]
    text = [
        f"# Saving {result['megabytes']} MB\n",
        recording.table(
            ("", "seconds", "of plain"),
            [(name, f"{r['seconds']:.3f}", f"{r['ratio']:.2f}") for name, r in saved.items()],
        ),
        f"# A loop of {STEPS} steps with a checkpoint each {EVERY}\n",
        recording.table(
            ("", "longest pause, s", "whole loop, s"),
            [
                (name, f"{r['longest pause, seconds']:.3f}", f"{r['whole loop, seconds']:.2f}")
                for name, r in looped.items()
            ],
        ),
        "# From the command to the first step (the quickstart for text)\n",
        recording.table(
            ("", "seconds", "of a new run"),
            [(name, f"{r['seconds']:.2f}", f"{r['ratio']:.2f}") for name, r in started.items()],
        ),
    ]
    return "\n".join(text)


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="matrices this much narrower")
    parser.add_argument("--folder", type=Path, help="where to write; else among temporary files")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a copy by two threads on a busy machine takes many times as long
    files = made(options.scale)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            **recording.provenance("the cost of checkpoints", "safetensors"),
            "rounds": options.rounds,
            "megabytes": round(num_bytes(files) / 1e6),
            "saves": saves(files, Path(folder), options.rounds),
            "loops": loops(files, Path(folder), max(1, options.rounds // 2)),
            "starts": starts(Path(folder), max(1, options.rounds // 2)),
        }
    text = told(result)
    print(text)
    recording.write(options.out, result, text)


if __name__ == "__main__":
    main()
