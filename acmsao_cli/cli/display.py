"""What a run looks like to a person at a terminal, and to a program that reads its lines."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from acmsao_cli.cli.console import safe
from acmsao_cli.cli.outlet import outlet
from acmsao_cli.engine.events import (
    Event,
    Finished,
    Listener,
    MemoryMeasured,
    Notice,
    Replayed,
    Saved,
    Started,
    StepDone,
    Working,
)
from acmsao_cli.engine.report import human_bytes
from acmsao_cli.privacy import private_values

# A log without a terminal gets a line at most this often.
SECONDS_BETWEEN_LINES = 10.0


def both(*listeners: Listener) -> Listener:
    """One listener that tells several."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


class NoticeHandler(logging.Handler):
    """Passes what our own modules log as warnings to a listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.WARNING)
        self.listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record."""
        self.listener(Notice(record.getMessage()))


@contextmanager
def warnings_as_notices(listener: Listener) -> Iterator[None]:
    """Within, warnings logged under acmsao_cli reach `listener`, and nobody else."""
    logger, handler = logging.getLogger("acmsao_cli"), NoticeHandler(listener)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def kept_private(listener: Listener) -> Listener:
    """A listener that is told neither secrets nor where the home folder is."""

    def tell(event: Event) -> None:
        told = {f.name: private_values(getattr(event, f.name)) for f in dataclasses.fields(event)}
        listener(type(event)(**told))

    return tell


def json_lines(stream: IO[str]) -> Listener:
    """Each event as one JSON object on a line: {"event": "step", ...}.

    Progress of work that is not a step is told at its start, at its end, and once a second.
    """
    said_at, out = 0.0, outlet(stream)

    def tell(event: Event) -> None:
        nonlocal said_at
        if isinstance(event, Working) and 0 < event.done < event.total:
            if time.monotonic() - said_at < 1:
                return
            said_at = time.monotonic()
        out.write(json.dumps(event_as_dict(event)) + "\n")
        out.flush()

    return tell


EVENT_NAMES = {
    Started: "started",
    Working: "working",
    StepDone: "step",
    MemoryMeasured: "memory",
    Replayed: "replayed",
    Saved: "saved",
    Notice: "notice",
    Finished: "finished",
}


def event_as_dict(event: Event) -> dict[str, Any]:
    """The event's fields as plain values, with its name."""
    values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return {"event": EVENT_NAMES[type(event)], **plain}


STARTING = "starting"


def shown(text: str) -> str:
    """`text` as it is: neither rich nor the terminal takes anything in it for a command."""
    return escape(safe(text))


class RateColumn(ProgressColumn):
    """Loss, speed, time left and memory of the last step."""

    def render(self, task: Task) -> Text:
        """The figures, once there is a step."""
        step = task.fields.get("last")
        if step is None:
            return Text("")
        return Text(step_figures(step, task.fields["pace"]), style="cyan")


def step_figures(step: StepDone, seconds_per_step: float) -> str:
    """The figures of a step on one line."""
    left = round(seconds_per_step * (step.total_steps - step.step))
    loss = "left out" if step.loss is None else f"loss {step.loss:.4f}"
    return (
        f"{loss}  {pace_words(seconds_per_step)}  "
        f"{clock(left)} left  {human_bytes(step.memory_bytes)}"
    )


def memory_line(event: MemoryMeasured) -> str:
    """The plan's peak beside the measured one; how far off, where that says something."""
    smaller = "" if event.batch_is_largest else ", with a smaller batch than planned"
    off = f"{100 * event.error:+.1f} %{smaller}" if event.comparable else "not comparable"
    reserved = event.reserved_bytes
    return (
        f"memory: {human_bytes(event.predicted_bytes)} predicted, "
        f"{human_bytes(event.measured_bytes)} measured ({off})"
        + (f", {human_bytes(reserved)} reserved" if reserved is not None else "")
    )


def replayed_line(event: Replayed) -> str:
    """A step that was taken again, and how it came out."""
    loss = "left out" if event.loss is None else f"loss {event.loss:.6f}"
    compared = ", all weights and state with it" if event.weights_compared else ""
    return f"step {event.step}  {loss}  {'the same' if event.same else 'DIFFERENT'}{compared}"


def pace_words(seconds_per_step: float) -> str:
    """Steps in a second, or seconds for a step, whichever is above one."""
    if seconds_per_step <= 1:
        return f"{1 / max(seconds_per_step, 1e-9):.1f} it/s"
    return f"{seconds_per_step:.1f} s/it"


def clock(seconds: int) -> str:
    """1:05, or 2:03:04."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """A run on a terminal: what it will do, a live bar, and what came of it.

    Use as a context manager: the bar is taken down however the run ends.
    """

    def __init__(self, console: Console, next_command: Callable[[Finished], str]) -> None:
        self.console = console
        self.next_command = next_command
        self.live = console.is_terminal
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            RateColumn(),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.tasks: dict[str, Any] = {}
        self.pace = 0.0
        self.said_at = 0.0

    def __enter__(self) -> Display:
        """Start the live part; the libraries take seconds to load before there is an event."""
        self.progress.start()
        self.show_work(Working(STARTING, 0, 1))
        return self

    def __exit__(self, *_: object) -> None:
        """Take the live part down."""
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if STARTING in self.tasks:
            self.show_work(Working(STARTING, 1, 1))
        match event:
            case Started():
                self.show_start(event)
            case Working():
                self.show_work(event)
            case StepDone():
                self.show_step(event)
            case MemoryMeasured():
                self.console.print(memory_line(event), markup=False, soft_wrap=True)
            case Replayed():
                self.console.print(replayed_line(event), markup=False, soft_wrap=True)
            case Saved(kind="checkpoint"):
                if not self.live:
                    self.console.print(shown(f"saved {event.path}"), soft_wrap=True)
            case Notice():
                self.console.print(f"[yellow]note:[/] {shown(event.text)}", soft_wrap=True)
            case Finished():
                self.show_end(event)

    def show_start(self, event: Started) -> None:
        """What is about to be done."""
        self.console.print(f"[bold]acmsao train {shown(event.name)}[/]")
        self.show_table(event.facts)
        if event.resumed_from is not None:
            self.console.print(f"  continuing at step {event.resumed_from}")

    def show_table(self, facts: Mapping[str, str]) -> None:
        """Names and values in two columns."""
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            self.console.print(f"  [dim]{name:<{width}}[/]  {shown(value)}", soft_wrap=True)

    def show_work(self, event: Working) -> None:
        """A bar for the time the work takes."""
        if not self.live:
            if event.done == 0:
                self.console.print(f"{event.task} ...", markup=False)
            return
        if event.done >= event.total:
            task = self.tasks.pop(event.task, None)
            if task is not None:
                self.progress.remove_task(task)
            return
        if event.task not in self.tasks:
            self.tasks[event.task] = self.progress.add_task(event.task, total=event.total)
        self.progress.update(self.tasks[event.task], completed=event.done)

    def show_step(self, event: StepDone) -> None:
        """Move the bar; without a terminal, a line now and then."""
        self.pace = event.seconds if not self.pace else 0.9 * self.pace + 0.1 * event.seconds
        if not self.live:
            now = time.monotonic()
            if now - self.said_at >= SECONDS_BETWEEN_LINES or event.step == event.total_steps:
                self.said_at = now
                figures = step_figures(event, self.pace)
                self.console.print(
                    f"step {event.step}/{event.total_steps}  {figures}", markup=False
                )
            return
        if "training" not in self.tasks:
            self.tasks["training"] = self.progress.add_task(
                "training", total=event.total_steps, pace=self.pace, last=None
            )
        self.progress.update(
            self.tasks["training"], completed=event.step, last=event, pace=self.pace
        )

    def show_end(self, event: Finished) -> None:
        """What came of the run, where it lies, and what to type next."""
        self.progress.stop()
        summary = event.summary
        self.console.print(f"[bold green]done[/] in {clock(round(summary['seconds']))}")
        self.show_table(end_facts(event))
        self.console.print(f"  next: [bold]{shown(self.next_command(event))}[/]", soft_wrap=True)


def end_facts(event: Finished) -> dict[str, str]:
    """The summary in words."""
    summary, folder = event.summary, event.folder
    facts = {}
    if summary["loss_from"] is not None:
        facts["loss"] = f"{summary['loss_from']:.4f} -> {summary['loss_to']:.4f}"
    whole = "" if summary["device"] == "cuda" else " (the whole process, libraries included)"
    facts["peak memory"] = human_bytes(summary["peak_memory_bytes"]) + whole
    if summary["comparison"]:
        facts["before/after"] = str(folder / summary["comparison"])
    for file in summary["files"]:
        facts[file["format"]] = f"{folder / file['path']}  ({file['used_by']})"
    return facts


def open_console(*, to_stderr: bool) -> Console:
    """A console on stdout, or on stderr where stdout belongs to machine-readable lines."""
    file = outlet(sys.stderr if to_stderr else sys.stdout)
    return Console(highlight=False, file=cast(IO[str], file))
