"""How close updates from compressed states are to exact AdamW's, on gradients of a real training.

python benchmarks/fidelity.py [--steps 150] [--only TEXT ...] [--out STEM]

The gradients of a Llama of width 128, which reads as in the `text` task, are recorded once and
given to every optimizer: the weights of one do not lead another elsewhere. Interior matrices are
those of attention and MLP; the embedding and the head, whose rows are seldom touched, are harder
and stand beside. So do three synthetic streams of noise: alike everywhere, of sizes by row and
column, and by element.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import recording
import torch
from entries import Absent, Entry, entries
from torch import Tensor, nn
from torch.nn import functional

from acmsao_cli.bench.built_in import open_reader
from acmsao_cli.optim import ComposedOptimizer, build_pipeline

STEPS = 150
COUNTED = 50  # the last ones: averages have filled by then
BETAS, EPS = (0.9, 0.999), 1e-8
EDGES = ("embed_tokens", "lm_head")
OTHERWISE = ("AdEMAMix", "cautious", "torch ", "pytorch_optimizer", "kernel", "SR of weights")


def adam_like(chosen: Iterable[Entry]) -> list[Entry]:
    """AdamW with states kept in any way: what the exact update can be held against."""
    return [
        entry
        for entry in chosen
        if "AdamW" in entry.name and not any(word in entry.name for word in OTHERWISE)
    ]


@cache
def recorded_gradients(steps: int) -> list[dict[str, Tensor]]:
    """Gradients of every matrix at each step of an AdamW training."""
    opened = open_reader(0, width=128)
    optimizer = ComposedOptimizer(opened.parameters, build_pipeline("adamw"), lr=2e-3)
    stream = []
    for _ in range(steps):
        opened.training_loss().backward()
        stream.append(
            {n: p.grad.clone() for n, p in opened.parameters if p.ndim == 2 and p.grad is not None}
        )
        optimizer.step()
        optimizer.zero_grad()
    return stream


def synthetic_gradients(steps: int, rows: int = 128, cols: int = 192) -> list[dict[str, Tensor]]:
    """Normal noise times sizes that stay: one, lognormal by row and column, or by element."""
    generator = torch.Generator().manual_seed(0)

    def sizes(deviation: float, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * deviation).exp()

    scales = {
        "alike": torch.ones(rows, cols),
        "rows x cols lognormal(1)": sizes(1.0, rows, 1) * sizes(1.0, 1, cols),
        "elements lognormal(2)": sizes(2.0, rows, cols),
    }
    return [
        {name: torch.randn(rows, cols, generator=generator) * s for name, s in scales.items()}
        for _ in range(steps)
    ]


def exact_updates(stream: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """AdamW's update in fp64 at each step, written out."""
    first = {name: torch.zeros_like(grad).double() for name, grad in stream[0].items()}
    second = {name: torch.zeros_like(grad).double() for name, grad in stream[0].items()}
    for step, grads in enumerate(stream, start=1):
        for name, grad in grads.items():
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * grad.double()
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * grad.double() ** 2
        yield {
            name: (m / (1 - BETAS[0] ** step))
            / ((second[name] / (1 - BETAS[1] ** step)).sqrt() + EPS)
            for name, m in first.items()
        }


def updates_of(entry: Entry, stream: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """What an optimizer takes off fp32 weights at lr 1, step by step. Raises Absent."""
    weights = {name: nn.Parameter(torch.zeros_like(grad)) for name, grad in stream[0].items()}
    optimizer = entry.build(list(weights.items()), 1.0, 0.0)
    for grads in stream:
        for name, weight in weights.items():
            weight.data.zero_()
            weight.grad = grads[name].clone()
        optimizer.step()
        yield {name: -weight.detach().double() for name, weight in weights.items()}


def compare(
    entry: Entry, stream: list[dict[str, Tensor]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean cosine with the exact update over the last steps, and the largest entry of any update.

    By matrix. Raises Absent.
    """
    steps = len(stream)
    counted = min(COUNTED, steps // 2)
    cosines: dict[str, list[float]] = {name: [] for name in stream[0]}
    largest = dict.fromkeys(stream[0], 0.0)
    pairs = zip(updates_of(entry, stream), exact_updates(stream), strict=True)
    for step, (update, exact) in enumerate(pairs):
        for name, value in update.items():
            largest[name] = max(largest[name], float(value.abs().max()))
            if step >= steps - counted:
                cosine = functional.cosine_similarity(value.flatten(), exact[name].flatten(), 0)
                cosines[name].append(float(cosine))
    return {name: sum(values) / len(values) for name, values in cosines.items()}, largest


def fidelity(entry: Entry, steps: int = STEPS) -> dict[str, Any]:
    """Figures of the real and the synthetic streams. Raises Absent."""
    means, largest = compare(entry, recorded_gradients(steps))
    cosines, extremes = compare(entry, synthetic_gradients(steps))
    interior = [mean for name, mean in means.items() if not any(e in name for e in EDGES)]
    return {
        "interior": {"mean": sum(interior) / len(interior), "lowest": min(interior)},
        "edges": {name: mean for name, mean in means.items() if any(e in name for e in EDGES)},
        "largest_update": max(largest.values()),
        "synthetic": {
            name: {"cosine": mean, "largest_update": extremes[name]}
            for name, mean in cosines.items()
        },
    }


def fidelities(entries: list[Entry], steps: int = STEPS) -> dict[str, Any]:
    """By entry's name; what is not installed or not known is left out."""
    found = {}
    for entry in entries:
        try:
            found[entry.name] = fidelity(entry, steps)
        except Absent:
            continue
        row = found[entry.name]
        print(f"fidelity  {entry.name:42} {row['interior']['mean']:.3f}", flush=True)
    return found


def report(found: dict[str, Any]) -> str:
    """The figures as a markdown table."""
    streams = list(next(iter(found.values()))["synthetic"]) if found else []
    header = ["optimizer", "interior, mean (lowest)", "embedding, head", "largest", *streams]
    return recording.table(
        header,
        [
            [
                name,
                f"{row['interior']['mean']:.3f} ({row['interior']['lowest']:.3f})",
                ", ".join(f"{mean:.3f}" for mean in row["edges"].values()),
                f"{row['largest_update']:.1f}",
                *(
                    f"{part['cosine']:.3f}, {part['largest_update']:.1f}"
                    for part in row["synthetic"].values()
                ),
            ]
            for name, row in found.items()
        ],
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="*", default=[], help="entries with any of these texts")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "fidelity")
    options = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    chosen = [
        entry
        for entry in adam_like(entries(None).values())
        if not options.only or any(text in entry.name for text in options.only)
    ]
    found = fidelities(chosen, options.steps)
    head = recording.provenance(
        "Cosine of updates with fp64 AdamW's, and their largest entry at lr 1",
        "torchao",
        "bitsandbytes",
        "pytorch_optimizer",
    )
    text = report(found)
    print(text)
    result = {**head, "steps": options.steps, "counted": COUNTED, "fidelity": found}
    recording.write(options.out, result, f"# Fidelity of compressed states\n\n{text}")


if __name__ == "__main__":
    main()
