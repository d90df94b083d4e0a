"""Would a run come to the same bits again? Some of its steps are taken anew, and compared."""

from __future__ import annotations

from collections.abc import Sequence

from acmsao_cli.checkpoint.store import Checkpoint, open_newest
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.engine.assemble import assemble, restore
from acmsao_cli.engine.continuation import CHANGES, MADE_WITH, Sources
from acmsao_cli.engine.deterministic import reproducible
from acmsao_cli.engine.events import Listener, Notice
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.replay import Passage, passage, replay
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import stop_on_signal
from acmsao_cli.errors import CheckpointError
from acmsao_cli.identity import Kind, digest
from acmsao_cli.launch.prepare import Prepared, prepare
from acmsao_cli.memory.advise import out_of_memory_named, require_fit


def verify(
    config: RunConfig,
    folder: RunFolder,
    num_steps: int,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Take steps again. Raises CheckpointError that says what did not come out as it was."""
    with stop_on_signal(), folder.locked(), reproducible(config.recipe.training):
        chosen = passage(folder, read_metrics(folder.metrics), num_steps)
        compared = chosen.checkpoint or beginning(config, folder)
        prepared = prepare(config, folder, compared, allow_changed, listener)
        require_fit(prepared.decided.plan, prepared.decided.config)
        assert prepared.continuation is not None
        for notice in prepared.continuation.told():
            listener(Notice(notice))
        with out_of_memory_named(config.recipe):
            wrong = first_difference(prepared, folder, chosen, listener)
    if wrong:
        raise CheckpointError(
            f"{folder.path} does not come to the same bits: {wrong}",
            hint="another machine, another number of threads or other versions of the libraries "
            "compute with other last digits, and so does a GPU each time, unless the run was made "
            "with training.deterministic=true; the run can go on all the same",
        )
    began = f"step {chosen.checkpoint.step}" if chosen.checkpoint else "the beginning"
    listener(Notice(f"{len(chosen.rows)} steps from {began} came out the same to the bit"))


def first_difference(
    prepared: Prepared, folder: RunFolder, chosen: Passage, listener: Listener
) -> str | None:
    """Assemble the run as it was, and take the steps."""
    assert prepared.continuation is not None
    sources = Sources(require_same_model=prepared.continuation.require_same_model)
    config, reading = prepared.decided.config, prepared.reading
    run = assemble(config, reading, listener, sources, continued=True)
    if chosen.checkpoint:
        restore(run, chosen.checkpoint, listener)
    return next(replay(run, folder, chosen.rows, listener), None)


def beginning(config: RunConfig, folder: RunFolder) -> Checkpoint:
    """Where a run began, to be compared with like a checkpoint: it has no weights or state.

    What it was made from says its newest checkpoint, or what its folder noted where it has none.
    Raises CheckpointError where that became something else in mid-run.
    """
    newest, _ = open_newest(folder.checkpoints)
    if newest is None:
        data, model = folder.data_items(), folder.model_items()
        noted = {
            "recipe": config.as_dict(),
            Kind.data: digest(data),
            Kind.model: digest(model) if model else "",
            MADE_WITH: {},
            CHANGES: [],
        }
        return Checkpoint(folder.path, 0, noted)
    for change in newest.header[CHANGES]:
        if change["what"] in list(Kind):
            raise CheckpointError(
                f"{folder.path} has no checkpoint with steps behind it, and from its beginning it "
                f"cannot be taken again: at step {change['step']} its {change['what']} was changed"
                f"\n  {change['change']}",
                hint="let the run go on to its next checkpoint",
            )
    return Checkpoint(folder.path, 0, newest.header)
