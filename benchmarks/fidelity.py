"""How close updates from compressed states are to exact AdamW's, on gradients of a real training.

The gradients of the `text` task (a small Llama) are recorded once and given to every optimizer:
the weights of one do not lead another elsewhere. Interior matrices are those of attention and MLP;
the embedding and the head, whose rows are seldom touched, are harder and stand beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from entries import Absent, Entry
from tasks import TASKS
from torch import Tensor, nn
from torch.nn import functional

from acmsao_cli.optim import ComposedOptimizer, build_pipeline

STEPS = 150
COUNTED = 50  # the last ones: averages have filled by then
BETAS, EPS = (0.9, 0.999), 1e-8
EDGES = ("embed_tokens", "lm_head")


@cache
def recorded_gradients(steps: int) -> list[dict[str, Tensor]]:
    """Gradients of every matrix at each step of an AdamW training."""
    opened = TASKS["text"].open(0)
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


def fidelity(entry: Entry, steps: int = STEPS) -> dict[str, Any]:
    """Mean cosine with the exact update over the last steps, and the largest entry of any update.

    Raises Absent.
    """
    stream = recorded_gradients(steps)
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
    means = {name: sum(values) / len(values) for name, values in cosines.items()}
    interior = [mean for name, mean in means.items() if not any(e in name for e in EDGES)]
    return {
        "interior": {"mean": sum(interior) / len(interior), "lowest": min(interior)},
        "edges": {name: mean for name, mean in means.items() if any(e in name for e in EDGES)},
        "largest_update": max(largest.values()),
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
