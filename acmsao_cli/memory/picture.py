"""A picture of what a step holds over its course."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from acmsao_cli.memory.planner import CATEGORIES, CONTEXT, MemoryPlan
from acmsao_cli.optim.tracing import HOST, Event
from acmsao_cli.writing import write_whole

# Columns of the picture; each shows the highest moment of its part of the step.
COLUMNS: Final = 1200
COLOURS: Final = {
    CONTEXT: "#b9b9b9",
    "weights": "#33577f",
    "optimizer": "#6f94bd",
    "gradients": "#c3553a",
    "workspace": "#e8a08c",
    "activations": "#d9a441",
    "loss head": "#7d9a4f",
    "batch": "#9a8fb0",
}
GIB: Final = 2**30


def timeline(events: Sequence[Event], columns: int = COLUMNS) -> dict[str, list[float]]:
    """Bytes by category in each of so many parts of a step, at the part's highest moment."""
    start = _beginning(events)
    sizes: dict[int, tuple[int, str]] = {}
    held: Counter[str] = Counter()
    width = max(1, -(-(len(events) - start) // columns))
    highest: list[Counter[str]] = []
    total = best = 0
    for index, (number, size, category) in enumerate(events):
        if category == HOST:
            continue
        before, former = sizes.get(number, (0, category))
        sizes[number] = size, category
        held[former] -= before
        held[category] += size
        total += size - before
        if index < start:
            continue
        column = (index - start) // width
        if column == len(highest):
            highest.append(Counter(held))
            best = total
        elif column > len(highest):
            highest += [Counter(held)] * (column - len(highest) + 1)
            best = total
        elif total > best:
            highest[column] = Counter(held)
            best = total
    return {name: [float(moment[name]) for moment in highest] for name in CATEGORIES}


def _beginning(events: Sequence[Event]) -> int:
    """Where the step begins: behind what was there before it."""
    there = ("weights", "optimizer", "batch", HOST)
    return next((i for i, (_, _, category) in enumerate(events) if category not in there), 0)


def draw(made: MemoryPlan, title: str, path: Path) -> None:
    """Stacked areas over a step's course, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = timeline(made.events)
    length = len(next(iter(series.values())))
    series[CONTEXT] = [float(made.by_category[CONTEXT])] * length
    shown = {name: _in_gib(series[name]) for name in COLOURS if any(series.get(name, ()))}
    figure = Figure(figsize=(9, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    course = [100 * index / max(length - 1, 1) for index in range(length)]
    colours = [COLOURS[name] for name in shown]
    axes.stackplot(course, *shown.values(), labels=list(shown), colors=colours, linewidth=0)
    axes.axhline(made.peak_bytes / GIB, color="#444444", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"peak {made.peak_bytes / GIB:.2f} GiB",
        (0, made.peak_bytes / GIB),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=9,
    )
    axes.set(
        title=f"{title}: {_place(made)}",
        xlabel="course of the step, % of its allocations",
        ylabel="GiB on the device",
        xlim=(0, 100),
    )
    axes.set_ylim(0, 1.12 * made.peak_bytes / GIB)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_whole(path, buffer.getvalue())


def _in_gib(values: Sequence[float]) -> list[float]:
    return [value / GIB for value in values]


def _place(made: MemoryPlan) -> str:
    if made.card is not None:
        return f"a card of {made.card.gib:g} GiB"
    return str(made.device)
