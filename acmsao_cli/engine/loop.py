"""The training loop: step, report, save; then the files that are left at the end."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from acmsao_cli.checkpoint.store import set_aside_after
from acmsao_cli.engine.assemble import Run
from acmsao_cli.engine.events import Finished, Listener, Notice, Saved, StepDone, Working
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.measured import Expectation, forget_peak, peak_memory
from acmsao_cli.engine.out_of_memory import EARLY_STEPS, let_go, ran_out
from acmsao_cli.engine.report import MetricsFile, draw_loss, loss_from_to, losses_of
from acmsao_cli.engine.samples import read_samples, write_comparison, write_samples
from acmsao_cli.engine.saving import Checkpoints, DamagedStateError
from acmsao_cli.engine.signals import Stop
from acmsao_cli.engine.step import NotFiniteError, StepResult, let_go_of_step, training_step
from acmsao_cli.engine.watch import Watch
from acmsao_cli.errors import DivergedError, MemoryRanOutError, StoppedError
from acmsao_cli.models.base import Batch, Exported, Sample, TrainingFacts
from acmsao_cli.versions import versions
from acmsao_cli.writing import own_folder


def train(
    run: Run,
    folder: RunFolder,
    stop: Stop,
    listener: Listener,
    expectation: Expectation | None = None,
    sample_first: bool = True,
) -> dict[str, Any]:
    """Bring `run` to its last step and write what it leaves. Returns the summary.

    With an `expectation`, the memory of the first two steps is held against it. `sample_first` is
    False if samples of the untrained model have been drawn by this process. Raises
    MemoryRanOutError, with what was reached saved if it was more than the first steps, and
    PoisonedStepError.
    """
    started = time.monotonic()
    folder.reopen()
    # Before a line is cut: what is newer belongs to a course that the run has left.
    set_aside_after(folder.checkpoints, run.step)
    metrics = MetricsFile(folder.metrics, run.step, listener)
    if run.step == 0 and sample_first:
        draw_samples(run, folder, listener)
    watch = Watch(run, expectation, listener, losses_of(metrics.rows))
    # A copy of what is saved would count as the steps' memory.
    checkpoints = Checkpoints(
        run,
        folder,
        metrics,
        listener,
        aside=lambda: not watch.is_comparing,
        at_most=left_of_budget(run, expectation),
    )
    stop.stepping = True
    try:
        take_steps(run, folder, checkpoints, metrics, stop, listener, watch)
    finally:
        checkpoints.settle()
    stop.heed()
    checkpoints.store.forget_aside()  # a run that went back to its end saves nothing anew
    return finish(run, folder, metrics, checkpoints, time.monotonic() - started, listener)


def left_of_budget(run: Run, expectation: Expectation | None) -> int | None:
    """Bytes that `memory.budget_gib` leaves beside what is planned.

    None where there is no budget, or where it is not of the host's memory.
    """
    budget = run.config.recipe.memory.budget_gib
    if budget is None or expectation is None or run.core.trainee.device.type != "cpu":
        return None
    return int(budget * 2**30) - expectation.peak_bytes


def take_steps(
    run: Run,
    folder: RunFolder,
    checkpoints: Checkpoints,
    metrics: MetricsFile,
    stop: Stop,
    listener: Listener,
    watch: Watch,
) -> None:
    """Every step that is left, with the checkpoints and samples between them.

    None is made behind a step that was left out, unless the run stops there: it waits for a step
    that shows that the weights are good.
    """
    began_at = run.step
    while run.step < run.total_steps:
        try:
            reason = ran_out(lambda: metrics.append(advance(run, listener, watch)))
        except NotFiniteError as error:
            raise diverged(error.what, run, checkpoints) from None
        if reason is not None:
            message = f"out of memory in step {run.step + 1}: {reason}"
            if watch.steps_taken < EARLY_STEPS:
                checkpoints.settle()
                checkpoints.store.discard_after(began_at)  # it begins again there, changed
                raise MemoryRanOutError(message, early=True)
            raise out_of_memory(message, run, checkpoints)
        checkpoints.look()
        stopping, last = stop.number, run.step == run.total_steps
        try:
            if stopping or last:
                checkpoints.save_now()
            elif not run.progress.left_out and (stop.asked_to_save() or checkpoints.is_due):
                checkpoints.save()
        except DamagedStateError as error:
            raise damaged(error.what, run, checkpoints) from None
        if stopping:
            raise stopped(stopping, run, folder)
        every = run.config.recipe.samples.every
        if every and run.step % every == 0 and not last:
            reason = ran_out(partial(draw_samples, run, folder, listener))
            if reason is not None:
                message = f"out of memory while drawing samples after step {run.step}: {reason}"
                raise out_of_memory(message, run, checkpoints)


def out_of_memory(message: str, run: Run, checkpoints: Checkpoints) -> MemoryRanOutError:
    """The error of memory that ran out; what was reached is saved."""
    run.core.optimizer.zero_grad(set_to_none=True)
    let_go()
    if run.core.whole.now and run.step not in checkpoints.steps():
        checkpoints.save_now()
    last = max(checkpoints.steps(), default=None)
    if not run.core.whole.now:
        message += "; it was half applied, so nothing new is saved"
    kept = "no checkpoint was made" if last is None else f"the last checkpoint is at step {last}"
    return MemoryRanOutError(f"{message}; {kept}", early=False)


class PoisonedStepError(Exception):
    """`what` of a step turned out not to be finite when some weights had been stepped by it."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(step, what)
        self.step = step
        self.what = what


def advance(run: Run, listener: Listener, watch: Watch | None = None) -> dict[str, Any]:
    """One step; returns its line of metrics.

    A step whose loss or gradient is not finite is left out, unless it is one too many in a row:
    then raises NotFiniteError. Where that is known only once weights were stepped in backward,
    raises PoisonedStepError: the run has to go back, and comes here again to leave it out.
    """
    began = time.monotonic()
    recipe, progress, factor = run.config.recipe, run.progress, run.next_lr_factor
    picks = run.next_picks()
    batches, examples = [run.batch(some) for some in picks], sum(len(some) for some in picks)
    if run.step + 1 in run.poisoned:
        return left_out(run.poisoned[run.step + 1], run, listener, units_of(batches), began)
    if watch:
        watch.before(run)
    try:
        result = training_step(
            run.core,
            batches,
            first_micro_batch=progress.micro_batches,
            lr_factor=factor,
            previous_norm=progress.gradient_norm,
            guard=require_finite,
        )
    except NotFiniteError as error:
        return left_out(error.what, run, listener, units_of(batches), began)
    if result.gradient_norm is not None and not math.isfinite(float(result.gradient_norm)):
        raise PoisonedStepError(run.step + 1, "gradient norm")
    loss, norm, first_norm = read_out(result)
    units = units_of(batches)
    noise = progress.noise
    if norm is not None and first_norm is not None:
        noise = noise.after(first_norm, norm, batches[0].weight / units, examples)
    run.progress = progress.after(recipe.training, norm, noise, examples)
    run.core.whole.now = True
    done = step_done(
        run,
        began,
        lr=recipe.optimizer.lr * factor,
        accumulation=progress.accumulation,
        units=units,
        loss=loss,
        gradient_norm=norm,
        noise_scale=noise.scale,
        gradient_variance=noise.variance,
        signal=noise.signal,
    )
    listener(done)
    found = watch.after(done, batches) if watch else {}
    return {**dataclasses.asdict(done), **found}


def left_out(what: str, run: Run, listener: Listener, units: float, began: float) -> dict[str, Any]:
    """Go on behind a step that changed no weight; returns its line of metrics."""
    recipe, before, factor = run.config.recipe, run.progress, run.next_lr_factor
    let_go_of_step(run.core)
    after = before.after_leaving_out(recipe.training)
    if after.left_out >= recipe.training.nonfinite_steps:
        raise NotFiniteError(what)
    run.progress = after
    done = step_done(
        run,
        began,
        lr=recipe.optimizer.lr * factor,
        accumulation=before.accumulation,
        units=units,
        loss=None,
        gradient_norm=None,
        left_out=what,
    )
    listener(done)
    listener(Notice(f"step {run.step} is left out: its {what} is not finite"))
    return dataclasses.asdict(done)


def step_done(run: Run, began: float, **figures: Any) -> StepDone:
    """The event of the step that the run has just passed, with its figures."""
    return StepDone(
        step=run.step,
        total_steps=run.total_steps,
        seconds=round(time.monotonic() - began, 6),
        memory_bytes=peak_memory(run.core.trainee.device),
        **figures,
    )


def require_finite(what: str, value: Tensor) -> None:
    """The guard of real steps."""
    if not math.isfinite(float(value)):
        raise NotFiniteError(what)


def units_of(batches: Sequence[Batch]) -> float:
    """What a step's loss is a mean over."""
    return sum(batch.weight for batch in batches)


def read_out(result: StepResult) -> tuple[float, float | None, float | None]:
    """Loss, gradient norm, and the first micro-batch's: fetched from the device together."""
    wanted = [result.loss, result.gradient_norm, result.first_norm]
    there = iter(torch.stack([value.float() for value in wanted if value is not None]).tolist())
    loss, norm, first_norm = (None if value is None else next(there) for value in wanted)
    assert loss is not None
    return loss, norm, first_norm


def diverged(what: str, run: Run, checkpoints: Checkpoints) -> DivergedError:
    """The error of a number that is no longer finite."""
    times = run.progress.left_out + 1
    row = f", {times} steps in a row" if times > 1 else ""
    good = good_checkpoint(run, checkpoints)
    return DivergedError(
        f"the {what} is not finite at step {run.step + 1}{row}; {good}",
        hint=TAMER,
    )


def damaged(what: str, run: Run, checkpoints: Checkpoints) -> DivergedError:
    """The error of weights or state that are no longer finite."""
    return DivergedError(
        f"{what} is not finite after step {run.step}, and is not saved; "
        f"{good_checkpoint(run, checkpoints)}",
        hint=TAMER,
    )


TAMER: Final = (
    "lower optimizer.lr or lengthen schedule.warmup_steps, in a new run: another --output, or "
    "--resume never without one"
)


def good_checkpoint(run: Run, checkpoints: Checkpoints) -> str:
    """Names the last checkpoint from which a finite loss was computed."""
    last_applied = run.step - run.progress.left_out
    steps = checkpoints.steps()
    if good := [step for step in steps if step < last_applied]:
        return f"the last good checkpoint is at step {good[-1]}"
    return "the only checkpoints are of where it began" if steps else "no checkpoint was made"


def stopped(number: int, run: Run, folder: RunFolder) -> StoppedError:
    """The error that ends a run whose state is saved."""
    return StoppedError(
        number,
        f"stopped at step {run.step} of {run.total_steps}; saved in {folder.path}",
        hint=f"continue with --resume {folder.path}",
    )


def draw_samples(run: Run, folder: RunFolder, listener: Listener) -> None:
    """What the model makes of the recipe's prompts now, as files of this step."""
    prompts = run.config.recipe.samples.prompts
    if not prompts:
        return
    samples: list[Sample] = []
    listener(Working("drawing samples", 0, len(prompts)))
    for sample in run.core.trainee.sample():
        samples.append(sample)
        listener(Working("drawing samples", len(samples), len(prompts)))
    path = folder.samples / f"step-{run.step:08d}"
    write_samples(samples, path)
    forget_peak(run.core.trainee.device)
    listener(Saved("samples", path, run.step))


def finish(
    run: Run,
    folder: RunFolder,
    metrics: MetricsFile,
    checkpoints: Checkpoints,
    seconds: float,
    listener: Listener,
) -> dict[str, Any]:
    """Samples, plot, exported files; and the summary that makes the run a finished one."""
    draw_samples(run, folder, listener)
    comparison = write_comparison(
        {
            "before": read_samples(folder.samples / "step-00000000"),
            "after": read_samples(folder.samples / f"step-{run.step:08d}"),
        },
        folder.samples,
    )
    losses, best = loss_from_to(metrics.rows), checkpoints.store.best()
    draw_loss(metrics.rows, f"{run.config.name}: {run.total_steps} steps", folder.loss_plot)
    listener(Working("writing and checking the final files", 0, 1))
    own_folder(folder.final)
    with run.core.at_home():
        exported = run.core.trainee.export(folder.final, training_facts(run, losses))
    listener(Working("writing and checking the final files", 1, 1))
    summary = {
        "status": "finished",
        "recipe": run.config.name,
        "family": run.config.recipe.model.family,
        "model": run.config.recipe.model.source,
        "method": run.config.recipe.method.kind,
        "device": run.core.trainee.device.type,
        "steps": run.total_steps,
        "seconds": round(seconds, 1),
        "loss_from": losses[0] if losses else None,
        "loss_to": losses[1] if losses else None,
        "noise_scale": run.progress.noise.scale,
        "items_left_out": len(folder.left_out()),
        "steps_left_out": sum(1 for row in metrics.rows if row.get("left_out")),
        "loss_spikes": sum(1 for row in metrics.rows if row.get("spike")),
        "unmoved": latest(metrics, "unmoved"),
        "best_checkpoint": {"step": best[0], "loss": best[1]} if best else None,
        "peak_memory_bytes": max((row["memory_bytes"] for row in metrics.rows), default=0),
        "memory": latest(metrics, "memory"),
        "comparison": str(comparison.relative_to(folder.path)) if comparison else None,
        "files": [describe_export(one, folder) for one in exported],
        "changes": list(run.sources.changes),
        "versions": versions(),
    }
    folder.finish(summary)
    listener(Finished(folder.path, summary))
    return summary


def latest(metrics: MetricsFile, key: str) -> Any:
    """What the last line says that has such a key."""
    return next((row[key] for row in reversed(metrics.rows) if key in row), None)


def training_facts(run: Run, losses: tuple[float, float] | None) -> TrainingFacts:
    """What the exported files say of this run."""
    recipe = run.config.recipe
    return TrainingFacts(
        name=run.config.name,
        steps=run.total_steps,
        num_examples=len(run.items),
        learning_rate=recipe.optimizer.lr,
        optimizer=recipe.optimizer.name,
        seed=recipe.training.seed,
        loss=losses[1] if losses else None,
    )


def describe_export(exported: Exported, folder: RunFolder) -> dict[str, Any]:
    """One written file for summary.json."""
    return {
        "path": str(exported.path.relative_to(folder.path)),
        "format": exported.format,
        "used_by": exported.used_by,
        "max_error": exported.max_error,
    }
