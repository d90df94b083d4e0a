"""Would a run come to the same bits again? Some of its steps are taken anew, and compared."""

from __future__ import annotations

from collections.abc import Sequence

from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.engine.assemble import assemble, restore
from acmsao_cli.engine.continuation import as_begun, check_continuation, without_effect
from acmsao_cli.engine.deterministic import reproducible
from acmsao_cli.engine.events import Listener, Notice
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.replay import passage, replay
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import stop_on_signal
from acmsao_cli.errors import CheckpointError
from acmsao_cli.identity import Kind
from acmsao_cli.launch.examples import identified, read_examples
from acmsao_cli.launch.run import NEW


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
        known = folder.data_items()
        config, reading = read_examples(config, listener, known)
        reading = as_begun(reading, chosen.checkpoint)
        told = without_effect(allow_changed, NEW)
        if chosen.checkpoint:
            reading, data = identified(config, reading, known, listener)
            told = check_continuation(
                config, data, folder, chosen.checkpoint, allow_changed, listener
            ).told()
        for notice in told:
            listener(Notice(notice))
        run = assemble(config, reading, listener, continued=chosen.checkpoint is not None)
        if chosen.checkpoint:
            restore(run, chosen.checkpoint, listener)
        began = "the beginning" if run.step == 0 else f"step {run.step}"
        wrong = next(replay(run, folder, chosen.rows, listener), None)
    if wrong:
        raise CheckpointError(
            f"{folder.path} does not come to the same bits: {wrong}",
            hint="another machine, another number of threads or other versions of the libraries "
            "compute with other last digits, and so does a GPU each time, unless the run was made "
            "with training.deterministic=true; the run can go on all the same",
        )
    listener(Notice(f"{len(chosen.rows)} steps from {began} came out the same to the bit"))
