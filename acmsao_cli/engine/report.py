"""What a run leaves behind for people: metrics, the loss plot, sample files, run.yaml."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from acmsao_cli import __version__
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.config.writing import to_yaml
from acmsao_cli.data.files import text_of
from acmsao_cli.engine.events import Listener, Notice
from acmsao_cli.errors import OutputError
from acmsao_cli.privacy import private
from acmsao_cli.writing import append_whole, open_to_append, write_whole, writing


class MetricsFile:
    """metrics.jsonl: one line for each step, appended; never more than the steps that are done.

    Lines that cannot be written are told once, and tried again with each that follows: a full disk
    does not end a run before it has missed its checkpoints.
    """

    def __init__(self, path: Path, steps_done: int, listener: Listener) -> None:
        self.path, self.listener = path, listener
        self.rows = [row for row in read_metrics(path) if row["step"] <= steps_done]
        if len(self.rows) < steps_done:
            missing = steps_done - len(self.rows)
            listener(Notice(f"{path} lacks the lines of {missing} of the {steps_done} steps done"))
        whole = "".join(map(line_of, self.rows))
        write_whole(path, whole)
        self._size, self._waiting = len(whole.encode()), ""

    def append(self, row: dict[str, Any]) -> None:
        """Add a step's line."""
        self.rows.append(row)
        told = bool(self._waiting)
        self._waiting += line_of(row)
        try:
            self._write()
        except OutputError as error:
            if not told:
                self.listener(Notice(f"{error.message}; going on, and trying again"))

    def flush(self) -> None:
        """Make all lines durable, so that none is missing behind a checkpoint.

        Raises OutputError.
        """
        self._write()
        with writing(self.path), open_to_append(self.path) as stream:
            os.fsync(stream.fileno())

    def _write(self) -> None:
        """Write the lines that wait, after the whole ones."""
        content = self._waiting.encode()
        with writing(self.path), open_to_append(self.path) as stream:
            append_whole(stream.fileno(), content, self._size)
        self._size, self._waiting = self._size + len(content), ""


def line_of(row: Mapping[str, Any]) -> str:
    """Of metrics.jsonl."""
    return json.dumps(row) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file up to the first that is none, as a crash may leave it."""
    rows: list[dict[str, Any]] = []
    for line in text_of(path).splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not is_row(row) or (rows and row["step"] <= rows[-1]["step"]):
            break
        rows.append(row)
    return rows


def is_row(value: object) -> bool:
    """Whether this is a step's line, with what is read from one."""
    return (
        isinstance(value, dict)
        and all(type(value.get(key)) is int for key in ("step", "memory_bytes"))
        and isinstance(value.get("lr"), int | float)
        and isinstance(value.get("loss"), int | float | None)
    )


def losses_of(rows: list[dict[str, Any]]) -> list[float]:
    """Of the steps that were not left out."""
    return [float(row["loss"]) for row in rows if row["loss"] is not None]


def loss_from_to(rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Mean loss of the first and of the last tenth of the steps: single steps are too noisy."""
    losses = losses_of(rows)
    if not losses:
        return None
    width = max(1, len(losses) // 10)
    return sum(losses[:width]) / width, sum(losses[-width:]) / width


def smoothed(losses: list[float], horizon: int) -> list[float]:
    """A bias-corrected running mean over about `horizon` steps."""
    decay, total, weight, means = 1 - 1 / horizon, 0.0, 0.0, []
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        means.append(total / weight)
    return means


def draw_loss(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """The loss of each step, its running mean, and the learning rate, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["loss"] is not None]
    steps, losses = [row["step"] for row in rows], losses_of(rows)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="loss of each step")
    mean = smoothed(losses, max(2, len(losses) // 20))
    axes.plot(steps, mean, color="#1f4e8c", linewidth=2, label="running mean")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [row["lr"] for row in rows], color="#c98a2b", linewidth=1, linestyle="--")
    rates.set_ylabel("learning rate", color="#c98a2b")
    rates.set_ylim(bottom=0)
    axes.legend(loc="upper right", frameon=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_whole(path, buffer.getvalue())


def write_recipe(config: RunConfig, path: Path, facts: Mapping[str, str]) -> None:
    """run.yaml: every value of the run with where it came from; it is itself a recipe."""
    lines = [f"# run of `{config.name}`; acmsao {__version__}"]
    lines += [private(f"# {key}: {value}") for key, value in facts.items()]
    write_whole(path, "\n".join(lines) + "\n" + to_yaml(config))


def human_bytes(count: float) -> str:
    """Bytes in the unit that a card's memory is made in: 1 GiB is 2^30 bytes."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if unit == "GiB" else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def human_count(count: float) -> str:
    """A number of parameters: 2.57 B, 4.3 M, 12 k."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def joined(parts: Iterable[str]) -> str:
    """Non-empty parts with commas between."""
    return ", ".join(part for part in parts if part)
