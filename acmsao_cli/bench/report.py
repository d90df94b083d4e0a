"""Results as files: JSON with every run, tables for people, and a picture with the spread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from acmsao_cli.bench.contest import EVALUATIONS, WARMUP
from acmsao_cli.bench.plot import plot
from acmsao_cli.bench.provenance import table
from acmsao_cli.writing import write_whole

HOW_IT_RAN = (
    f"Every run: fp32 weights (of a recipe: as it says), a warm-up of {WARMUP:.0%} and a cosine to "
    f"zero, {{clip}}; the validation loss is taken at {EVALUATIONS} points. Equal seeds mean equal "
    "first weights and equal batches."
)
WHAT_IT_SAYS = (
    "Validation loss: mean ± standard deviation (standard error of the mean) over the seeds; lower "
    "is better. Against {reference}: the difference of the means in standard errors of the two "
    "together; negative is better. With three seeds each, chance alone makes 2 or more one time in "
    "nine. Steps and CPU seconds to {reference}'s mean final loss: median of the seeds that got "
    "there; seconds are of training alone, on one thread."
)


def write(stem: Path, result: Mapping[str, Any], picture: Path | None = None) -> list[Path]:
    """Write `stem`.json, .md and .png (or `picture`); return what was written. Raises OutputError.

    There is no picture where matplotlib is missing, or nothing to show.
    """
    written = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    write_whole(written[0], json.dumps(result, indent=1) + "\n")
    write_whole(written[1], markdown(result))
    picture = picture or stem.with_suffix(".png")
    return [*written, picture] if plot(result, picture) else written


def markdown(result: Mapping[str, Any]) -> str:
    """The report in words and tables."""
    parts = [
        f"# {result['what']}\n",
        f"`{result['command']}`, {result['machine']['processor']}, one thread for each run.\n",
        budget(result),
        HOW_IT_RAN.format(clip=clipping(result["plan"]["clip"])) + "\n",
        WHAT_IT_SAYS.format(reference=result["reference"]) + "\n",
        *(part for name, found in result["tasks"].items() for part in of_task(name, found, result)),
    ]
    if result.get("skipped"):
        parts.append("## Not run\n\n" + listing(result["skipped"]))
    return "\n".join(parts)


def clipping(bound: float | None) -> str:
    """How gradients are bounded, in words."""
    return "gradients clipped to a global norm of " + f"{bound:g}" if bound else "no clipping"


def budget(result: Mapping[str, Any]) -> str:
    """What was spent on each."""
    plan = result["plan"]
    tuning = (
        f"{plan['trials']} learning rates, {plan['factor']:.3g} times apart, were tried with one "
        f"seed; the best was run with {plan['seeds']} other seeds. A rate with * is at the edge of "
        "its grid: more might be found beyond."
    )
    if "optimizer" not in result:
        return f"Each optimizer has the same budget: {tuning}\n"
    name = result["optimizer"]["name"]
    if plan["lr"] is not None:
        tuning = f"The learning rate was given: {plan['lr']:g}; {plan['seeds']} seeds."
    return f"Of {name}: {tuning} Each row changes one thing of it, at the same rate and seeds.\n"


def of_task(name: str, found: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """A task's section."""
    yield f"## {name}\n\n{found['about']}; {found['unit']}; {found['steps']} steps.\n"
    if found["figures"]:
        yield table(header(result), [cells(n, row) for n, row in ordered(found["figures"])])
    if found["failed"]:
        yield "No run finished:\n\n" + listing(found["failed"])
    if found["unfinished"]:
        yield "Not through yet:\n\n" + listing(found["unfinished"])
    if found.get("sensitivity"):
        yield sensitivity(found["sensitivity"])


def header(result: Mapping[str, Any]) -> list[str]:
    """Names of the columns."""
    reference = result["reference"]
    return [
        "what changed" if "optimizer" in result else "optimizer",
        "learning rate",
        "validation loss",
        "lowest to highest",
        f"against {reference}",
        f"steps to {reference}'s",
        f"seconds to {reference}'s",
        "seconds in all",
        "state B/parameter",
    ]


def ordered(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Best final loss first; whoever lost a run comes after all who lost none."""
    return sorted(found.items(), key=lambda item: (bool(item[1]["not_finished"]), item[1]["mean"]))


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """One contender's line."""
    seeds = len(row["finals"]) + len(row["not_finished"])
    loss = f"{row['mean']:.4f}"
    if row["deviation"] is not None:
        loss += f" ± {row['deviation']:.4f} ({row['error']:.4f})"
    if row["not_finished"]:
        loss += f", {len(row['not_finished'])} of {seeds} diverged"
    share = "" if row["reached"] == seeds else f" ({row['reached']} of {seeds})"
    steps, seconds = row["steps_to_reference"], row["seconds_to_reference"]
    return [
        name,
        f"{row['lr']:g}" + ("*" if row["at_edge"] else ""),
        loss,
        f"{row['lowest']:.4f} to {row['highest']:.4f}",
        "-" if row["in_errors"] is None else f"{row['in_errors']:+.1f}",
        "-" if steps is None else f"{steps:.0f}{share}",
        "-" if seconds is None else f"{seconds:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['state_bytes_per_parameter']:.2f}",
    ]


def sensitivity(grids: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table with a line for each option: values with what was reached."""
    most = max(len(points) for points in grids.values())
    lines = [
        [option, *(point_cell(point) for point in points), *[""] * (most - len(points))]
        for option, points in grids.items()
    ]
    columns = ["option", "value: validation loss", *[""] * (most - 1)]
    return "One number changed at a time; the base's own in bold:\n\n" + table(columns, lines)


def point_cell(point: Mapping[str, Any]) -> str:
    """A value and its loss."""
    if point["mean"] is None:
        reached = "diverged" if point["failed"] else "-"
    else:
        reached = f"{point['mean']:.4f}"
        if point["deviation"] is not None:
            reached += f" ± {point['deviation']:.4f}"
    text = f"{point['value']}: {reached}"
    return f"**{text}**" if point["is_base"] else text


def listing(reasons: Mapping[str, str]) -> str:
    """Names with reasons."""
    return "".join(f"- {name}: {reason}\n" for name, reason in reasons.items())
