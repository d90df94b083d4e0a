"""What `acmsao compare` and `acmsao ablate` share: options, progress, stopping, and the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from acmsao_cli.cli.console import print_json, print_table, safe
from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.errors import ConfigError, StoppedError

if TYPE_CHECKING:
    from acmsao_cli.bench.runner import Progress, Stage
    from acmsao_cli.bench.tasks import Task

TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...",
        help="pictures, bytes, bytes-batch-2, lora (these if none is named), text, or a recipe.",
    ),
]
TrialsOption = Annotated[int, typer.Option(min=1, help="Learning rates tried for each, by twos.")]
JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each on one core.")
]
ScaleOption = Annotated[
    float, typer.Option(min=1e-3, max=100, help="Of the tasks' steps: 0.1 for a quick look.")
]
ReportOption = Annotated[bool, typer.Option("--report", help="Run nothing, report what is there.")]
CACHE = "runs.jsonl"


@dataclass(frozen=True)
class Place:
    """Where runs and reports lie, and who reads along."""

    folder: Path
    as_json: bool

    @property
    def cache(self) -> Path:
        """A line for each run."""
        return self.folder / CACHE

    @property
    def stream(self) -> TextIO:
        """For people."""
        return sys.stderr if self.as_json else sys.stdout

    def say(self, text: str) -> None:
        """A line for people."""
        print(safe(text), file=self.stream, flush=True)

    def tell(self, event: str, **values: Any) -> None:
        """A line for programs, if one listens."""
        if self.as_json:
            print_json({"event": event, **values})


def tasks_asked(names: Sequence[str] | None) -> list[Task]:
    """The tasks by name, each once; the usual ones where none is named."""
    from acmsao_cli.bench import asked
    from acmsao_cli.bench.tasks import USUAL

    return asked.tasks_asked(names or USUAL)


def perform(stages: Sequence[Stage], jobs: int, place: Place) -> None:
    """Make the runs that are missing, with a line for each. Raises StoppedError on a signal."""
    from acmsao_cli.bench import runner

    with going_on(place):
        runner.perform(
            stages, place.cache, jobs, lambda progress: show(progress, place), quiet_libraries
        )


def require_runs(place: Place) -> None:
    """Refuse to report where nothing has run."""
    if not place.cache.exists():
        raise ConfigError(
            f"no runs are recorded in {place.folder}", hint="leave out --report to make them"
        )


@contextmanager
def going_on(place: Place) -> Iterator[None]:
    """Say on a signal how to go on."""
    from acmsao_cli.engine.signals import stop_on_signal

    try:
        with stop_on_signal():
            yield
    except StoppedError as stopped:
        raise StoppedError(
            stopped.signal,
            f"stopped; every finished run is in {place.cache}",
            hint="the same command goes on from there; with --report it tells what there is",
        ) from None


def show(progress: Progress, place: Place) -> None:
    """A line for a run that ended."""
    from acmsao_cli.bench.contest import outcome

    row = progress.row
    width = len(str(progress.total))
    place.say(
        f"{progress.done:{width}} of {progress.total}  {progress.task}  {row['contender']}  "
        f"lr {row['lr']:g}  seed {row['seed']}  loss {outcome(row)}  {left(progress.left)}"
    )
    keys = ("contender", "lr", "seed", "steps", "final", "error")
    told = {key: row[key] for key in keys if key in row}
    place.tell("run", task=progress.task, **told, done=progress.done, total=progress.total)


def left(seconds: float) -> str:
    """Time left, in minutes as soon as it is more than one."""
    return f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left"


def finish(name: str, result: Mapping[str, Any], place: Place) -> None:
    """Write the report, show its losses, and say where it is."""
    from acmsao_cli.bench import report
    from acmsao_cli.bench.plot import can_plot

    written = report.write(place.folder / name, result)
    if not place.as_json:
        for task, found in result["tasks"].items():
            print(f"\n{task}")
            print_table(lines(found, result["reference"]), indent=2)
    if not can_plot():
        place.say("no picture: matplotlib is not installed")
    place.say("\nwrote " + ", ".join(str(path) for path in written))
    place.tell("finished", files=[str(path) for path in written])


def lines(found: Mapping[str, Any], reference: str) -> Iterable[tuple[str, str, str, str]]:
    """A task's contenders, the best first; then those without a loss."""
    from acmsao_cli.bench.report import cells, ordered

    for name, row in ordered(found["figures"]):
        _, lr, loss, _, against, *_ = cells(name, row)
        errors = "" if against == "-" or name == reference else f"{against} errors"
        yield name, f"lr {lr}", loss, errors
    for name, reason in {**found["failed"], **found["unfinished"]}.items():
        yield name, "", reason, ""
