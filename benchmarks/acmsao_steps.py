"""How long a step of ACMSAO takes, in AdamW's of the same storage.

python benchmarks/acmsao_steps.py [--rounds 12] [--compile] [--out STEM]

One thread, fp32 weights; AdamW and the others take turns within each round, and what counts is the
median of the rounds' ratios. `--compile` adds torch.compile(pipeline.step), which needs a C++
compiler: steps, rates and salts are then tensors, so that every bank is stored at every step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import recording
import torch

from acmsao_cli.optim import ComposedOptimizer, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context

SHAPES: Final = ((1280, 1280),) * 2 + ((640, 640),) * 4 + ((320, 320),) * 8 + ((1280,),) * 12
SIDE: Final = 1280  # of the matrix whose step is compiled
RUN: Final = 1000
STORAGES: Final = ("fp32", "bf16", "factored_8bit", "factored_4bit")
BASE: Final = "adamw"
RULES: Final[Mapping[str, Mapping[str, Any]]] = {
    BASE: {"name": "adamw"},
    "adamw nesterov cautious": {
        "name": "adamw",
        "momentum": "nesterov",
        "direction_edits": ["cautious"],
    },
    "acmsao, one scale": {"name": "acmsao", "scales": (16,)},
    "acmsao": {"name": "acmsao"},
    "acmsao, banks in host memory": {"name": "acmsao", "ram_offload": (True, True, True)},
    "acmsao, sums of this step": {"name": "acmsao", "lagged": False},
    "acmsao without attention": {"name": "acmsao", "attention": "none"},
}
AIMS: Final = {"acmsao, one scale": 1.3, "acmsao": 1.6}

Step = Callable[[], None]


def stacked(storage: str, says: Mapping[str, Any]) -> Step:
    """The step of an optimizer over matrices and vectors, small ones stacked."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draw) * 0.02) for shape in SHAPES]
    pipeline = build_pipeline(storage=storage, **says)
    optimizer = ComposedOptimizer(weights, pipeline, lr=1e-4, total_steps=RUN)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=draw) * 1e-3
    return optimizer.step


def compiled(storage: str, says: Mapping[str, Any]) -> Step:
    """The compiled step of one matrix."""
    pipeline = build_pipeline(storage=storage, **says)
    state = pipeline.allocate(1, SIDE, SIDE, torch.device("cpu"))
    weights, grad = torch.randn(1, SIDE, SIDE) * 0.02, torch.randn(1, SIDE, SIDE) * 1e-3
    run = torch.compile(pipeline.step, fullgraph=True, dynamic=False)
    numbers, taken = torch.zeros((1, 1, 1), dtype=torch.int32), [1]

    def step() -> None:
        taken[0] += 1
        count = torch.tensor(float(taken[0]), dtype=torch.float64)
        salt = torch.tensor(hash_numbers(0, taken[0]), dtype=torch.int32)
        rate = torch.tensor(1e-4)
        ctx = Context(count, False, rate, 0.0, weights, SIDE, SIDE, total_steps=RUN)
        with torch.no_grad():
            run(weights, grad, state, ctx, Noise(numbers, salt))

    return step


def seconds(step: Step) -> float:
    """CPU time of 16 steps: as many as the coarsest bank's visits are apart."""
    begun = time.process_time()
    for _ in range(16):
        step()
    return time.process_time() - begun


def measure(make: Callable[[str, Mapping[str, Any]], Step], rounds: int) -> dict[str, Any]:
    """Ratios by storage and rule: median, lowest and highest of the rounds."""
    found: dict[str, Any] = {}
    for storage in STORAGES:
        steps = {name: make(storage, says) for name, says in RULES.items()}
        for step in steps.values():
            seconds(step)  # state is allocated, graphs are made
        times = [{name: seconds(step) for name, step in steps.items()} for _ in range(rounds)]
        found[storage] = {"ms": statistics.median(one[BASE] for one in times) / 16 * 1e3}
        for name in steps:
            ratios = [one[name] / one[BASE] for one in times]
            found[storage][name] = {
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        print(storage, {n: round(found[storage][n]["ratio"], 2) for n in steps})
    return found


def markdown(result: dict[str, Any]) -> str:
    """A table for each way of stepping."""
    parts = [f"# Steps of ACMSAO\n\n{result['what']}\n\n`{result['command']}`, "]
    parts.append(f"{result['machine']['processor']}, one thread.\n")
    for way, found in result["ways"].items():
        header = ("rule", *(f"{one} ({found[one]['ms']:.1f} ms)" for one in found), "aim")
        rows = [
            (name, *(f"{found[one][name]['ratio']:.2f}" for one in found), str(AIMS.get(name, "")))
            for name in RULES
        ]
        parts.append(f"\n## {way}\n\n{recording.table(header, rows)}")
    return "".join(parts)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "acmsao-steps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = len(RULES) * len(STORAGES) + 1  # one step for each
    ways = {"Stacked and in blocks": partial(measure, stacked)}
    if given.compile:
        ways["Compiled, one matrix of 1280 x 1280"] = partial(measure, compiled)
    what = (
        "CPU time of a step in that of AdamW in the same storage (in brackets), fp32 weights; "
        "the median of rounds in which they take turns."
    )
    result = recording.provenance(what) | {
        "rounds": given.rounds,
        "ways": {way: run(given.rounds) for way, run in ways.items()},
    }
    recording.write(given.out, result, markdown(result))


if __name__ == "__main__":
    main()
