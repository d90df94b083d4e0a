"""The picture of a result: every contender's final loss with its spread, a panel for each task."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from acmsao_cli.writing import staged

Point: TypeAlias = Mapping[str, Any]  # of a grid

REFERENCE_COLOUR: Final = "tab:red"
COLOUR: Final = "tab:blue"
LEAST_RANGE: Final = 0.005  # of a panel around 1: what is smaller is no difference
LONG: Final = 10  # characters of a value's label
BEYOND: Final = 6.0  # spreads of the better half: what lies further off would squeeze the others


def can_plot() -> bool:
    """Whether there is what draws."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(result: Mapping[str, Any], path: Path) -> bool:
    """Write the picture; say whether there was something to draw, and something that draws."""
    panels = {name: found["figures"] for name, found in result["tasks"].items() if found["figures"]}
    grids = [
        (name, option, _in_those_of_the_base(points, found["sensitivity"]))
        for name, found in result["tasks"].items()
        for option, points in found.get("sensitivity", {}).items()
    ]
    grids = [(name, option, points) for name, option, points in grids if len(points) > 1]
    if not panels or not can_plot():
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tallest = max(len(figures) for figures in panels.values())
    top = 1.3 + 0.25 * tallest
    options = list(dict.fromkeys(option for _, option, _ in grids))
    columns = max(len(panels), min(4, len(options)))
    lines = -(-len(options) // columns)
    figure = pyplot.figure(figsize=(4.8 * columns, top + 2.4 * lines), layout="constrained")
    rows = figure.add_gridspec(1 + lines, columns, height_ratios=[top, *[2.4] * lines])
    for number, (name, found) in enumerate(panels.items()):
        _finals(figure.add_subplot(rows[0, number]), name, found, result["reference"])
    for number, option in enumerate(options):
        line, column = divmod(number, columns)
        axis = figure.add_subplot(rows[1 + line, column])
        _grid(axis, option, [(task, points) for task, one, points in grids if one == option])
    figure.suptitle(f"{result['what']}: mean, deviation (thick) and range (thin) of the seeds")
    with staged(path) as stage:
        figure.savefig(stage, dpi=110, format="png")
    pyplot.close(figure)
    return True


def _finals(axis: Any, task: str, found: Mapping[str, Any], reference: str) -> None:
    """Best on top; what is far off stands at the right edge, with its loss in figures."""
    ordered = sorted(found.items(), key=lambda item: item[1]["mean"], reverse=True)
    edge = _edge([row["highest"] for _, row in ordered])
    for height, (name, row) in enumerate(ordered):
        colour = REFERENCE_COLOUR if name == reference else COLOUR
        if row["mean"] > edge:
            axis.plot(edge, height, ">", color=colour, ms=5)
            axis.annotate(
                f"{row['mean']:.3g} ",
                (edge, height),
                ha="right",
                va="center",
                fontsize=7,
                xytext=(-6, 0),
                textcoords="offset points",
            )
            continue
        spread = row["deviation"] or 0.0
        highest = min(row["highest"], edge)
        axis.plot([row["lowest"], highest], [height] * 2, color=colour, lw=1)
        low, high = row["mean"] - spread, min(row["mean"] + spread, edge)
        axis.plot([low, high], [height] * 2, color=colour, lw=4, alpha=0.35)
        axis.plot(row["mean"], height, "o", color=colour, ms=4)
    if reference in found and found[reference]["mean"] <= edge:
        axis.axvline(found[reference]["mean"], color=REFERENCE_COLOUR, lw=0.8, ls=":")
    axis.set_ylim(-0.7, len(ordered) - 0.3)
    axis.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("final validation loss", fontsize=8)
    axis.set_title(task, fontsize=10)
    axis.grid(alpha=0.25)


def _edge(highest: Sequence[float]) -> float:
    """Up to where losses are drawn in proportion: the better half decides."""
    sorted_ = sorted(highest)
    best, middle = sorted_[0], sorted_[len(sorted_) // 2]
    return max(middle + BEYOND * (middle - best) / 2, middle) if middle > best else sorted_[-1]


def _in_those_of_the_base(
    points: Sequence[Point], grids: Mapping[str, Sequence[Point]]
) -> list[Point]:
    """Losses as multiples of the base's, which stands in the learning rate's grid."""
    base = next((p["mean"] for p in grids["lr"] if p["is_base"]), None)
    return [
        {**p, "mean": p["mean"] / base, "deviation": (p["deviation"] or 0.0) / base}
        for p in points
        if base is not None and p["mean"] is not None
    ]


def _grid(axis: Any, option: str, lines: Sequence[tuple[str, Sequence[Point]]]) -> None:
    """One option: the loss in those of the base at each value, a line for each task."""
    values = list(dict.fromkeys(point["value"] for _, points in lines for point in points))
    for number, (task, points) in enumerate(lines):
        axis.errorbar(
            [values.index(point["value"]) for point in points],
            [point["mean"] for point in points],
            [point["deviation"] for point in points],
            fmt="o-",
            ms=3,
            lw=1,
            capsize=2,
            color=f"C{number}",
            label=task,
        )
    axis.axhline(1.0, color="grey", lw=0.8, ls=":")
    turned = 20 if max(map(len, values)) > LONG else 0  # lest neighbours overlap
    axis.set_xticks(range(len(values)), values, fontsize=7, rotation=turned)
    axis.tick_params(axis="y", labelsize=7)
    axis.ticklabel_format(axis="y", useOffset=False)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 1 - LEAST_RANGE), max(high, 1 + LEAST_RANGE))
    axis.set_title(option, fontsize=9)
    axis.grid(alpha=0.25)
    if option == "lr":
        axis.legend(fontsize=7)
