"""What a run is made from, as its checkpoints say; and what of it may change in mid-run.

Model and data are compared by content: they may lie elsewhere. A difference that would make it
another run is refused, unless --allow-changed names its kind; then it is told, and recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from acmsao_cli.checkpoint.resume import ALTERING, is_below, recipe_changes, require_same_recipe
from acmsao_cli.checkpoint.store import Checkpoint
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import Example, Problem, Reading, name_of
from acmsao_cli.data.files import printable
from acmsao_cli.data.reading import bad
from acmsao_cli.engine.events import Listener, Notice, Working
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.precision import resolve_device
from acmsao_cli.engine.report import joined
from acmsao_cli.errors import CheckpointError, InputError, ModelError
from acmsao_cli.identity import Kind, Manifest, difference, digest, nothing
from acmsao_cli.models import catalog
from acmsao_cli.models.identity import (
    identified_meanwhile,
    identify,
    require_unchanged,
    stamps_of,
)
from acmsao_cli.versions import versions

MADE_WITH: Final = "made_with"
CHANGES: Final = "changes"
LEFT_OUT: Final = "left_out"

# Of a model that a checkpoint does not know.
UNIDENTIFIED: Final = (
    "the checkpoints of this run cannot say which model it is, so to go on from one takes "
    "--allow-changed model"
)

# No number depends on them.
NOT_COMPUTING: Final = frozenset({"pydantic", "safetensors", "typer"})
NAMED: Final = 3

# {"step": where it went on, "what": recipe, data, model or made_with, "change": in words}.
Change: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """What a run is made from: digests of its data and its model, and what changed in mid-run.

    The model's is asked for when it is needed: it may still be computed, and is empty where it
    cannot be. `require_same_model` raises ModelError where files of the model are no longer those
    that the run began with: called behind its loading, what was loaded is what was looked at.
    """

    data: str = ""
    model: Callable[[], str] = str
    changes: tuple[Change, ...] = ()
    require_same_model: Callable[[], None] = nothing

    def as_header(self, device: torch.device) -> dict[str, Any]:
        """What a checkpoint says of it; waits for the model's digest."""
        return {
            Kind.data: self.data,
            Kind.model: self.model(),
            MADE_WITH: made_with(device),
            CHANGES: list(self.changes),
        }


# Of a run that nobody will continue.
UNKNOWN: Final = Sources()


@dataclass(frozen=True)
class Continuation:
    """How a run that goes on differs from what it was at `step`, where it may.

    `free` settings may change; what comes later may follow from those that are `altering`.
    `allowed` are, by kind, the differences that were allowed. `made_with` are those that may show
    in the last bits. `model` are the model's `files` now, and `before` what had been recorded
    already.
    """

    step: int
    files: Mapping[str, Path]
    model: Manifest
    free: Sequence[str]
    altering: Sequence[str]
    allowed: Mapping[Kind, Sequence[str]]
    made_with: Sequence[str]
    before: Sequence[Change] = ()

    def require_same_model(self) -> None:
        """Raise ModelError where a file is not the one that was looked at."""
        require_unchanged(self.files, {name: item.stamp for name, item in self.model.items()})

    def told(self) -> Iterator[str]:
        """In words; also that nothing had changed of what was allowed to."""
        for line in self.free:
            yield f"changed since the checkpoint: {line}"
        for what, lines in self.allowed.items():
            said = f"changed, and the run goes on{listed(lines)}" if lines else "had not changed"
            yield f"--allow-changed {what}: the {what} {said}"
        if self.made_with:
            yield f"other than at the checkpoint, so bits may differ: {joined(self.made_with)}"

    def recorded(self) -> tuple[Change, ...]:
        """Every change that matters, from the beginning of the run."""
        kinds = [
            (Kind.recipe, self.altering),
            *self.allowed.items(),
            (MADE_WITH, self.made_with),
        ]
        return (
            *self.before,
            *(
                {"step": self.step, "what": what, "change": line}
                for what, lines in kinds
                for line in lines
            ),
        )


def without_effect(allowed: Collection[Kind], why: str) -> Iterator[str]:
    """What is said of --allow-changed where nothing is compared."""
    if allowed:
        yield f"--allow-changed {joined(allowed)} has no effect: {why}"


def as_begun(reading: Reading, checkpoint: Checkpoint | None) -> Reading:
    """The reading without what the run left out when it began, whatever has become of it since:
    what is good now, and what is gone now and may come back.
    """
    left_out = checkpoint.header.get(LEFT_OUT, {}) if checkpoint else {}
    places = {name_of(example): example.place for example in reading.examples}
    still = {problem.name for problem in bad(reading)}
    return reading.without(
        [
            Problem(places.get(name, name), message, name=name)
            for name, message in left_out.items()
            if name in places or name not in still
        ]
    )


def refuse_to_lose(example: Example, error: InputError) -> None:
    """The order of the rest depends on how many examples there are."""
    raise CheckpointError(
        f"{error.message}; the run began with it and cannot go on without it",
        hint="put it back, or start a new run: another --output, or --resume never without one",
    )


def check_continuation(
    config: RunConfig,
    data: Manifest,
    folder: RunFolder,
    checkpoint: Checkpoint,
    allowed: Collection[Kind],
    listener: Listener,
) -> Continuation:
    """What changed since `checkpoint` and may; raises CheckpointError for what may not.

    Nothing is loaded or written; of the model what may have changed is hashed.
    """
    header = checkpoint.header
    free, other = recipe_changes(header["recipe"], config.as_dict())
    if Kind.recipe not in allowed:
        require_same_recipe(header["recipe"], config.as_dict())
    recipe = config.recipe
    changed = differences(folder.data_items(), data, header[Kind.data])
    if Kind.data not in allowed:
        refuse(Kind.data, recipe.data.source, checkpoint, changed)
    found: dict[Kind, Sequence[str]] = {
        Kind.recipe: [str(setting) for setting in other],
        Kind.data: changed,
    }

    def progress(done: int, total: int) -> None:
        listener(Working("looking at the model's files", done, total))

    known = folder.model_items()
    files = catalog.family(recipe.model.family).files(recipe)
    model = identify(files, known, progress)
    found[Kind.model] = differences(known, model, header[Kind.model])
    if Kind.model not in allowed:
        refuse(Kind.model, recipe.model.source, checkpoint, found[Kind.model])
    return Continuation(
        step=checkpoint.step,
        files=files,
        model=model,
        free=[str(setting) for setting in free],
        altering=[str(setting) for setting in free if is_below(setting.key, ALTERING)],
        allowed={what: lines for what, lines in found.items() if what in allowed},
        made_with=other_made_with(header[MADE_WITH], resolve_device(recipe.training.device)),
        before=header[CHANGES],
    )


def differences(before: Manifest, now: Manifest, saved: str) -> list[str]:
    """How `now` differs from what had the digest `saved`: lines, none if it does not.

    `before` is what was noted last, which may be of another time than the checkpoint.
    """
    if not saved:
        return ["it could not be identified then"]
    if digest(now) == saved:
        return []
    if digest(before) != saved:
        return ["what it was then is no longer noted, so the differences cannot be named"]
    found = difference(before, now)
    changed = [
        f"{name} (its caption)"
        if now[name].sha256 and now[name].sha256 == before[name].sha256
        else name
        for name in found.changed
    ]
    kinds = {"changed": changed, "added": found.added, "removed": found.removed}
    lines = [f"{kind}: {some(names)}" for kind, names in kinds.items() if names]
    return lines or ["the order is another"]


def some(names: Sequence[str]) -> str:
    """The first few, and how many there are."""
    shown = ", ".join(printable(name) for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def listed(lines: Sequence[str]) -> str:
    """Each on a line of its own."""
    return "".join(f"\n  {line}" for line in lines)


def refuse(what: Kind, source: str, checkpoint: Checkpoint, changed: Sequence[str]) -> None:
    """Raise CheckpointError if there is a difference."""
    if changed:
        known = checkpoint.header[what] != ""
        raise CheckpointError(
            f"the {what} at {source} {'is not' if known else 'may not be'} what "
            f"{checkpoint.path.name} was made with{listed(changed)}",
            hint=f"{'put it back, ' if known else ''}go on with it as it is by --allow-changed "
            f"{what}, or start a new run: another --output, or --resume never without one",
        )


def made_with(device: torch.device) -> dict[str, str]:
    """Libraries, device and threads: with others the last bits may be others."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**versions(), "device": name, "threads": str(torch.get_num_threads())}


def other_made_with(before: Mapping[str, str], device: torch.device) -> list[str]:
    """What a checkpoint was made with that is not what is here."""
    now = made_with(device) if before else {}
    return [
        f"{what} {before.get(what)} -> {is_now}"
        for what, is_now in now.items()
        if what not in NOT_COMPUTING and before.get(what) != is_now
    ]


@contextmanager
def sources_of(
    config: RunConfig,
    data: Manifest,
    folder: RunFolder,
    continuation: Continuation | None,
    listener: Listener,
) -> Iterator[Sources]:
    """What the run is made from. At its start the model is identified while it is loaded and
    trained; the first checkpoint waits for that, and what was found is kept in the run's folder.

    A model whose files change or vanish meanwhile stays unknown, and that is told: what is trained
    is worth more than its name.
    """
    if continuation is not None:
        known = digest(continuation.model)
        folder.keep_model(continuation.model)
        yield Sources(
            digest(data),
            lambda: known,
            continuation.recorded(),
            continuation.require_same_model,
        )
        return
    files = catalog.family(config.recipe.model.family).files(config.recipe)
    stamps = stamps_of(files)

    def progress(done: int, total: int) -> None:
        listener(Working("waiting for the model's hash", done, total))

    with identified_meanwhile(files, folder.model_items(), stamps) as wait:

        @functools.cache
        def model() -> str:
            try:
                found = wait(progress)
            except ModelError as error:
                listener(Notice(f"{error.message}; {UNIDENTIFIED}"))
                return ""
            folder.keep_model(found)
            return digest(found)

        yield Sources(digest(data), model, (), partial(require_unchanged, files, stamps))
