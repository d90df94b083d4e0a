"""The folder of a run: which one, whose, and what lies where in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmsao_cli.checkpoint.store import newest_checkpoint, path_in, step_of
from acmsao_cli.data.files import text_of
from acmsao_cli.engine.lock import held
from acmsao_cli.errors import CheckpointError, ConfigError
from acmsao_cli.identity import Item, Manifest, as_json, from_json
from acmsao_cli.privacy import private_values
from acmsao_cli.writing import probe, refuse_link, write_whole, writing

RUNS = Path("runs")
SUMMARY = "summary.json"
RECIPE = "run.yaml"
DATA = "data.json"
MODEL = "model.json"
LOCK = ".acmsao.lock"
# How run.yaml begins, which is itself a recipe: a file of that name may also be a user's.
MARK = "# run of "


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved configuration, each value with its origin."""
        return self.path / RECIPE

    @property
    def metrics(self) -> Path:
        """One JSON object for each step."""
        return self.path / "metrics.jsonl"

    def keep_data(self, items: Manifest, left_out: Sequence[str]) -> None:
        """Remember the examples, each of which was found whole, and what is left out."""
        self._keep(DATA, items, left_out=list(left_out))

    def data_items(self) -> dict[str, Item]:
        """The examples that `keep_data` was given."""
        return from_json(read_object(self.path / DATA).get("items"))

    def left_out(self) -> list[str]:
        """The items of the data that are left out."""
        found = read_object(self.path / DATA).get("left_out")
        return found if isinstance(found, list) else []

    def keep_model(self, items: Manifest) -> None:
        """Remember the model's files."""
        self._keep(MODEL, items)

    def model_items(self) -> dict[str, Item]:
        """The files that `keep_model` was given."""
        return from_json(read_object(self.path / MODEL).get("items"))

    def _keep(self, name: str, items: Manifest, **more: Any) -> None:
        told = private_values(more)
        head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in told.items())
        write_whole(self.path / name, f'{{{head}"items": {as_json(items)}}}\n')

    @property
    def loss_plot(self) -> Path:
        """The loss over the steps."""
        return self.path / "loss.png"

    @property
    def samples(self) -> Path:
        """What the model made of the fixed prompts, before, during and after."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """What the run can be continued from."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Where that of a step is."""
        return path_in(self.checkpoints, step)

    def checkpoint_bytes(self) -> int:
        """What the checkpoints take on the disk."""
        return sum(file.stat().st_size for file in self.checkpoints.glob("step-*/*"))

    @property
    def final(self) -> Path:
        """The files other programs load."""
        return self.path / "final"

    @property
    def name(self) -> str | None:
        """What the run is called, by the file that it wrote first; None where there is none."""
        match = re.match(rf"{re.escape(MARK)}`([^`]+)`", first_line(self.recipe))
        return match[1] if match else None

    @property
    def exists(self) -> bool:
        """Whether a run has been started here: by files that only a run writes."""
        return (self.path / LOCK).is_file() or first_line(self.recipe).startswith(MARK)

    def summary(self) -> dict[str, Any] | None:
        """What the finished run wrote last; None while it is not finished."""
        return read_object(self.path / SUMMARY) or None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the file that makes the run a finished one."""
        write_whole(self.path / SUMMARY, json.dumps(private_values(summary), indent=2) + "\n")

    def reopen(self) -> None:
        """Make a finished run an unfinished one, before anything in it changes."""
        with writing(self.path):
            (self.path / SUMMARY).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, once it was seen that all in it can be written.

        The kernel lets go when the process ends, however. Raises RunLockedError if a living process
        holds it, OutputError where it cannot be written, or what belongs in it is a link.
        """
        with writing(self.path):
            made = [folder for folder in self.path.parents if not folder.exists()]
        with held(self.path, LOCK):
            try:
                probe(self.path)
                for inner in (self.checkpoints, self.samples, self.final):
                    refuse_link(inner)
                yield
            finally:
                self.remove_if_empty(made)

    def remove_if_empty(self, made: Sequence[Path] = ()) -> None:
        """Take the folder away again if nothing but the lock came into it, and those `made` for it.

        `made` goes from the nearest to the farthest.
        """
        with suppress(OSError):  # another run comes into it, or somebody has taken it away
            if os.listdir(self.path) == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
                for folder in made:
                    folder.rmdir()


@dataclass(frozen=True)
class Place:
    """Where to run, and from which checkpoint.

    `finished`: the run there has come to its end. `explicit`: the checkpoint was asked for by its
    path, whatever came after it.
    """

    folder: RunFolder
    checkpoint: Path | None = None
    finished: bool = False
    explicit: bool = False

    @property
    def step(self) -> int | None:
        """The step of the checkpoint, by its name."""
        return step_of(self.checkpoint) if self.checkpoint else None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        found = json.loads(text_of(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def first_line(file: Path) -> str:
    """The first line of a text file; empty if there is no such file."""
    try:
        return text_of(file).partition("\n")[0][:200]
    except OSError:
        return ""


def choose_place(name: str, output: Path | None, resume: str) -> Place:
    """The folder for a run of recipe `name` under --output and --resume.

    Without `output`: `auto` takes the newest unfinished runs/<name>-NNN, else the next number;
    `never` takes the next number. With `output`: `auto` continues what is there or reports it
    finished; `never` refuses a folder that already holds a run. `resume` may also be the path of a
    run or of a checkpoint; in both, `~` is the home folder.
    """
    output = output.expanduser() if output else None
    if resume not in ("auto", "never"):
        return place_at(Path(resume).expanduser(), output)
    if output is None:
        unfinished = newest_unfinished(name)
        if resume == "auto" and unfinished is not None:
            return Place(unfinished, newest_checkpoint(unfinished.checkpoints))
        return Place(next_run(name))
    folder = RunFolder(output)
    if not folder.exists:
        refuse_foreign(output)
        return Place(folder)
    if resume == "never":
        raise ConfigError(
            f"{output} already holds a run, which --resume never would overwrite",
            hint="choose another --output, or move that folder away",
        )
    return look_again(Place(folder))


def place_at(path: Path, output: Path | None) -> Place:
    """The run that `path`, a run folder or one of its checkpoints, belongs to."""
    if not path.is_dir():
        raise CheckpointError(
            f"nothing to resume at {path}: no such folder",
            hint="--resume takes auto, never, a run folder, or one of its checkpoints",
        )
    is_run = RunFolder(path).exists
    if not is_run and not is_checkpoint_of_a_run(path):
        raise CheckpointError(
            f"{path} is neither a run nor a checkpoint in one",
            hint="name a run folder, or one like RUN/checkpoints/step-00000200",
        )
    path = path if is_run else path.resolve()
    folder = RunFolder(path if is_run else path.parent.parent)
    if output is not None and output.resolve() != folder.path.resolve():
        raise ConfigError(
            f"--output {output} is not the run that {path} belongs to",
            hint="leave --output out: a resumed run goes on in its own folder",
        )
    if not is_run:
        return Place(folder, path, explicit=True)
    place = look_again(Place(folder))
    if place.checkpoint is None:
        raise CheckpointError(
            f"{path} has no checkpoint yet", hint="start the run again with --resume auto"
        )
    return place


def is_checkpoint_of_a_run(path: Path) -> bool:
    """Whether `path` is RUN/checkpoints/step-N of a run."""
    home = path.resolve().parent
    run = RunFolder(home.parent)
    return step_of(path.resolve()) is not None and home == run.checkpoints and run.exists


def look_again(place: Place) -> Place:
    """What stands in the place's folder now: another process may have gone on with the run."""
    if place.explicit:
        return place
    folder = place.folder
    return Place(folder, newest_checkpoint(folder.checkpoints), folder.summary() is not None)


def refuse_foreign(output: Path) -> None:
    """Raise ConfigError if `output` exists and holds something that is not a run."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"--output {output} exists and is not a run folder",
            hint="choose a folder that is new or empty",
        )


def numbered_runs(name: str) -> list[tuple[int, Path]]:
    """The runs of recipe `name`, by number."""
    if not RUNS.is_dir():
        return []
    matches = (
        (re.fullmatch(rf"{re.escape(name)}-(\d{{3,}})", path.name), path) for path in RUNS.iterdir()
    )
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest_unfinished(name: str) -> RunFolder | None:
    """The run of `name` with the highest number among those that are not finished."""
    runs = [RunFolder(path) for _, path in reversed(numbered_runs(name))]
    return next((run for run in runs if run.summary() is None), None)


def next_run(name: str) -> RunFolder:
    """A run of `name` with a number that is not taken."""
    runs = numbered_runs(name)
    number = runs[-1][0] + 1 if runs else 1
    return RunFolder(RUNS / f"{name}-{number:03d}")
