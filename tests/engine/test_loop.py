"""Laws of a whole run: what it leaves, and that stopping and resuming change nothing."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.checkpoint.resume import require_same_recipe
from acmsao_cli.checkpoint.store import CheckpointStore, open_checkpoint
from acmsao_cli.engine import loop
from acmsao_cli.engine.assemble import restore
from acmsao_cli.engine.events import Event, Notice, Saved, StepDone
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import PoisonedStepError, advance, train
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.samples import paired
from acmsao_cli.engine.signals import Stop, stop_on_signal
from acmsao_cli.engine.symptoms import spike
from acmsao_cli.engine.watch import Watch
from acmsao_cli.errors import CheckpointError, DivergedError, OutputError, StoppedError
from acmsao_cli.models.base import Sample


def ignore(event: Event) -> None:
    """A listener that does not listen."""


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.parameters.items()}


def stop_after(step: int, stop: Stop) -> Any:
    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            stop.number = signal.SIGTERM

    return listener


OPTIONS = [
    {},
    {"optimizer": {"fused_backward": True, "storage": "factored"}, "training": {"clip_norm": None}},
    {"optimizer": {"name": "lion", "storage": "bf16"}, "training": {"accumulation": 2}},
]

TWO_PASS = {"optimizer": {"fused_backward": True}, "training": {"clip": "two_pass"}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_that_was_stopped_and_resumed_has_the_bits_of_one_that_was_not(
    tmp_path: Path,
    make_run: Any,
    make_config: Any,
    newest: Any,
    options: Any,
    dtype: torch.dtype,
) -> None:
    config = make_config(**options)
    whole, whole_folder = make_run(config, dtype), RunFolder(tmp_path / "whole")
    train(whole, whole_folder, Stop(), ignore)

    folder, stop = RunFolder(tmp_path / "parts"), Stop()
    with pytest.raises(StoppedError) as error:
        train(make_run(config, dtype), folder, stop, stop_after(5, stop))
    assert error.value.exit_code == 143
    resumed = make_run(config, dtype)
    checkpoint = newest(folder)
    assert checkpoint.step == 5
    restore(resumed, checkpoint, ignore)
    train(resumed, folder, Stop(), ignore)

    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])
    rows = [
        [(row["step"], row["loss"], row["lr"]) for row in read_metrics(f.metrics)]
        for f in (whole_folder, folder)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8


def test_a_finished_run_leaves_what_the_documentation_says(tmp_path: Path, make_run: Any) -> None:
    folder = RunFolder(tmp_path)
    train(make_run(), folder, Stop(), ignore)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {
        "metrics.jsonl",
        "loss.png",
        "samples/before-after.md",
        "final/toy.safetensors",
    } <= names
    assert "summary.json" in names
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "step-00000006",
        "step-00000008",
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert folder.summary() == summary


def test_metrics_behind_the_checkpoint_are_cut_on_resume(
    tmp_path: Path, make_run: Any, newest: Any
) -> None:
    folder, stop = RunFolder(tmp_path), Stop()
    with pytest.raises(StoppedError):
        train(make_run(), folder, stop, stop_after(4, stop))
    with folder.metrics.open("a") as stream:
        stream.write(json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    run = make_run()
    restore(run, newest(folder), ignore)
    train(run, folder, Stop(), ignore)
    assert [row["step"] for row in read_metrics(folder.metrics)] == list(range(1, 9))


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tmp_path: Path, make_run: Any, make_config: Any
) -> None:
    run = make_run(make_config(training={"nonfinite_steps": 1}))
    run.core.trainee.poison_at = 16  # in the fifth step
    with pytest.raises(DivergedError, match=r"step 5.*checkpoint is at step 3"):
        train(run, RunFolder(tmp_path), Stop(), ignore)
    assert all(value.isfinite().all() for value in weights(run).values())
    assert run.step == 4


def poisoned(run: Any, steps: set[int]) -> None:
    """In these steps, counted from 1, the loss is not finite."""
    loss = run.core.trainee.loss

    def broken(batch: Any) -> Any:
        return loss(batch) * (float("nan") if run.step + 1 in steps else 1.0)

    run.core.trainee.loss = broken


@pytest.mark.parametrize("options", [*OPTIONS, TWO_PASS])
def test_a_step_whose_loss_is_not_finite_changes_nothing(
    tmp_path: Path, make_run: Any, make_config: Any, options: dict[str, Any]
) -> None:
    """The next one is the one it would have been, with its own examples, rate and noise."""
    config, told = make_config(**options), list[Event]()
    run, folder = make_run(config), RunFolder(tmp_path / "poisoned")
    poisoned(run, {3, 4})
    summary = train(run, folder, Stop(), told.append)
    assert summary["steps_left_out"] == 2
    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows if row["left_out"] == "loss"] == [3, 4]
    assert [row["loss"] is None for row in rows] == [row["step"] in (3, 4) for row in rows]
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert "step 3 is left out: its loss is not finite" in notices

    other = make_run(config)
    while other.step < other.total_steps:
        if other.step in (2, 3):
            other.progress = other.progress.after_leaving_out(config.recipe.training)
        else:
            advance(other, ignore)
    for name, value in weights(run).items():
        assert torch.equal(value, weights(other)[name])


def test_three_in_a_row_end_the_run_and_two_do_not(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    run = make_run(make_config())
    poisoned(run, {3, 4, 6, 7, 8})
    words = r"loss is not finite at step 8, 3 steps in a row; the only checkpoints are of where"
    with pytest.raises(DivergedError, match=words):
        train(run, RunFolder(tmp_path), Stop(), ignore)
    assert all(value.isfinite().all() for value in weights(run).values())
    assert newest(RunFolder(tmp_path)).step == 5, "owed since 3, made by the first step that counts"


def test_the_last_checkpoint_from_which_a_loss_was_finite_is_named(
    tmp_path: Path, make_run: Any, make_config: Any
) -> None:
    run = make_run(make_config(checkpoint={"every": 2}))
    poisoned(run, {6, 7, 8})
    with pytest.raises(DivergedError, match="the last good checkpoint is at step 4"):
        train(run, RunFolder(tmp_path), Stop(), ignore)


@pytest.mark.parametrize(("file", "number"), [("weights", "inf"), ("optimizer", "nan")])
def test_what_is_not_finite_is_never_saved(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any, file: str, number: str
) -> None:
    """Though loss and gradient are: a weight that this step's update sent off the scale."""
    run, folder = make_run(make_config(checkpoint={"every": 2})), RunFolder(tmp_path)
    state = run.state

    def spoilt() -> Any:
        files, header = state()
        if run.step == 4:
            name, value = next(
                (name, value) for name, value in files[file].items() if value.is_floating_point()
            )
            files[file][name] = torch.full_like(value, float(number))
        return files, header

    run.state = spoilt
    words = f"of the {file} is not finite after step 4, and is not saved; the last good .* step 2"
    with pytest.raises(DivergedError, match=words):
        train(run, folder, Stop(), ignore)
    assert newest(folder).step == 2


def test_the_count_of_steps_in_a_row_outlives_a_stop(
    tmp_path: Path, make_run: Any, make_config: Any, gone_on: Any
) -> None:
    config, stop = make_config(), Stop()
    run, folder = make_run(config), RunFolder(tmp_path)
    poisoned(run, {3, 4, 5})
    with pytest.raises(StoppedError):
        train(run, folder, stop, stop_after(4, stop))
    again = gone_on(config, folder)
    poisoned(again, {3, 4, 5})
    with pytest.raises(DivergedError, match="at step 5, 3 steps in a row"):
        train(again, folder, Stop(), ignore)


@pytest.mark.parametrize("clip", ["global", "two_pass"])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    tmp_path: Path, make_run: Any, make_config: Any, clip: str
) -> None:
    """Also where weights are stepped in backward, if the norm is measured before."""
    fused = {"fused_backward": clip == "two_pass"}
    run = make_run(make_config(optimizer=fused, training={"clip": clip}))
    before: list[dict[str, torch.Tensor]] = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if run.step == 2 else gradient

    next(iter(run.parameters.values())).register_hook(poison)

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            before.append(weights(run))

    summary = train(run, RunFolder(tmp_path), Stop(), listener)
    assert summary["steps_left_out"] == 1
    assert all(torch.equal(before[1][name], value) for name, value in before[2].items())
    assert not all(torch.equal(before[2][name], value) for name, value in before[3].items())


def test_a_gradient_that_is_known_too_late_is_not_saved_and_the_run_has_to_go_back(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    fused = {"optimizer": {"fused_backward": True}, "training": {"clip_norm": None}}
    run, folder = make_run(make_config(**fused, checkpoint={"every": 1})), RunFolder(tmp_path)

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if run.step == 2 else gradient

    next(iter(run.parameters.values())).register_hook(poison)
    with pytest.raises(PoisonedStepError) as error:
        train(run, folder, Stop(), ignore)
    assert (error.value.step, error.value.what) == (3, "gradient norm")
    assert newest(folder).step == 2


def test_a_loss_that_stands_out_is_told_and_counted(tmp_path: Path, make_run: Any) -> None:
    even, told = [1.0 + 0.01 * (n % 5) for n in range(40)], list[Event]()
    assert spike(even, 1.1) is None, "out of the usual, but no spike"
    assert spike(even[:10], 50.0) is None, "too few to say what is usual"
    assert spike([1.0, 9.0] * 20, 12.0) is None, "these losses are as wide as that"
    watch = Watch(make_run(), None, told.append, even)
    for step, loss in enumerate((1.0, 5.1, None, 1.0), 1):
        found = watch.after(StepDone(step, 9, loss, 0.0, None, 1.0, 1.0, 1), [])
        assert found == ({"spike": 5.0} if loss == 5.1 else {})
    assert [str(event.text).split(";")[0] for event in told if isinstance(event, Notice)] == [
        "loss spike at step 2: 5.1 is 5.0 times the usual"
    ]


@pytest.mark.parametrize(
    ("rounding", "lr", "told"),
    [("nearest", 1e-6, 1), ("nearest", 0.05, 0), ("stochastic", 1e-6, 0)],
)
def test_weights_whose_updates_round_to_nothing_are_told(
    tmp_path: Path, make_run: Any, make_config: Any, rounding: str, lr: float, told: int
) -> None:
    config = make_config(optimizer={"rounding": rounding, "lr": lr}, training={"steps": 51})
    run, events = make_run(config, torch.bfloat16), list[Event]()
    summary = train(run, RunFolder(tmp_path), Stop(), events.append)
    notices = [event for event in events if isinstance(event, Notice)]
    assert len([one for one in notices if "updates round to nothing" in one.text]) == told
    unmoved = {
        row["step"]: row["unmoved"]
        for row in read_metrics(tmp_path / "metrics.jsonl")
        if "unmoved" in row
    }
    assert list(unmoved) == ([50] if rounding == "nearest" else [])
    assert summary["unmoved"] == unmoved.get(50)
    if unmoved:
        assert (unmoved[50] > 0.9) is bool(told)


def test_a_changed_recipe_is_refused_by_name_and_a_harmless_change_is_told(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    folder, stop = RunFolder(tmp_path), Stop()
    with pytest.raises(StoppedError):
        train(make_run(), folder, stop, stop_after(4, stop))
    checkpoint = newest(folder)
    saved = checkpoint.header["recipe"]
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.05 in the run, 0\.01 now"):
        require_same_recipe(saved, make_config(optimizer={"lr": 0.01}).as_dict())
    changed = make_config(training={"steps": 12}, optimizer={"storage": "bf16"})
    assert "training.steps: 8 -> 12" in require_same_recipe(saved, changed.as_dict())
    notices: list[Event] = []
    restore(make_run(changed), checkpoint, notices.append)
    assert any("bf16" in str(notice) for notice in notices)


def test_a_second_signal_during_the_loop_would_end_the_process_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    with stop_on_signal() as stop:
        stop.stepping = True
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        assert codes == []
        signal.raise_signal(signal.SIGTERM)
        assert codes == [143]


def test_a_signal_before_the_first_step_stops_on_the_spot() -> None:
    with pytest.raises(StoppedError) as error, stop_on_signal():
        signal.raise_signal(signal.SIGHUP)
    assert error.value.exit_code == 129


def test_a_library_that_answers_every_failure_cannot_answer_a_signal() -> None:
    def forgiving() -> None:
        with suppress(Exception):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(StoppedError), stop_on_signal():
        forgiving()


def test_going_back_keeps_the_newer_checkpoints_until_there_is_another(
    tmp_path: Path, make_run: Any
) -> None:
    folder = RunFolder(tmp_path)
    train(make_run(), folder, Stop(), ignore)
    run = make_run()
    restore(run, open_checkpoint(folder.checkpoints / "step-00000006"), ignore)
    stop = Stop()
    with pytest.raises(StoppedError):
        train(run, folder, stop, stop_after(7, stop))
    assert folder.summary() is None
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["step-00000006", "step-00000007"]


def test_what_the_run_has_left_is_no_checkpoint_from_the_first_moment_on(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run that went back and was killed would go on from the course that it has left."""
    folder = RunFolder(tmp_path)
    train(make_run(), folder, Stop(), ignore)
    run = make_run()
    restore(run, open_checkpoint(folder.checkpoints / "step-00000006"), ignore)

    def killed(*what: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr(loop, "advance", killed)
    with pytest.raises(SystemExit):
        train(run, folder, Stop(), ignore)
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["left-step-00000008", "step-00000006"]
    assert [row["step"] for row in read_metrics(folder.metrics)] == [1, 2, 3, 4, 5, 6]


def test_a_signal_during_the_last_save_stops_the_run_before_it_draws_and_exports(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, folder = CheckpointStore.save, RunFolder(tmp_path)

    def interrupted(self: CheckpointStore, step: int, *what: Any) -> Path:
        if step == 8:
            signal.raise_signal(signal.SIGTERM)
        return save(self, step, *what)

    monkeypatch.setattr(CheckpointStore, "save", interrupted)
    with pytest.raises(StoppedError) as error, stop_on_signal() as stop:
        train(make_run(), folder, stop, ignore)
    assert error.value.exit_code == 143
    assert not folder.final.exists()


def test_a_checkpoint_that_was_asked_for_waits_for_a_step_that_counts(
    tmp_path: Path, make_run: Any, make_config: Any
) -> None:
    run, stop, saved = make_run(make_config(checkpoint={"every": 100})), Stop(), list[int]()
    poisoned(run, {3, 4})

    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            stop.saving = True
        if isinstance(event, Saved) and event.kind == "checkpoint":
            saved.append(event.step)

    train(run, RunFolder(tmp_path), stop, listener)
    assert saved == [5, 8]


def test_lines_of_metrics_that_cannot_be_written_are_told_once_and_written_later(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder, told = make_run(), RunFolder(tmp_path), list[Event]()

    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        is_line = content.startswith(b'{"step"')
        return write(descriptor, content[:9] if is_line and 2 <= run.step <= 4 else content)

    monkeypatch.setattr(os, "write", full)
    train(run, folder, Stop(), told.append)
    assert [row["step"] for row in read_metrics(folder.metrics)] == list(range(1, 9))
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert (
        len([text for text in notices if "metrics.jsonl" in text and "trying again" in text]) == 1
    )


@pytest.mark.parametrize("line", ["5", "null", "{}", "[]", "{", "\udcff", '{"step": "7"}'])
def test_a_line_that_is_none_ends_the_metrics(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "loss": 0.5, "lr": 0.1, "memory_bytes": 3})
    again = whole.replace(": 1,", ": 2,")
    file.write_bytes(f"{whole}\n{line}\n{again}\n".encode(errors="surrogateescape"))
    assert [row["step"] for row in read_metrics(file)] == [1]
    file.write_text(f"{whole}\n{whole}\n")
    assert len(read_metrics(file)) == 1


def test_prompts_that_changed_are_not_compared(tmp_path: Path) -> None:
    before = [Sample("a", text="1"), Sample("b", text="2"), Sample("a", text="3")]
    after = [Sample("a", text="4"), Sample("c", text="5")]
    pairs = paired({"before": before, "after": after})
    assert pairs == {"before": [before[0]], "after": [after[0]]}
    assert paired({"before": before, "after": [Sample("c", text="5")]}) == {}


def test_a_signal_that_comes_while_handlers_are_put_in_place_or_taken_away_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stops what has not begun, and finds nothing to stop in what is done."""
    install = signal.signal

    def interrupted(number: int, handler: Any) -> Any:
        before = install(number, handler)
        if number == signal.SIGTERM:
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)  # type: ignore[operator, misc]
        return before

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", interrupted)
        with pytest.raises(StoppedError) as stopped, stop_on_signal():
            pass
    assert stopped.value.exit_code == 130
    with stop_on_signal() as stop:
        handler = stop.handle
    handler(signal.SIGTERM, None)
    assert stop.number == signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("failures", "ends"), [(2, True), (3, False)])
def test_a_checkpoint_that_cannot_be_written_is_tried_again(
    tmp_path: Path,
    make_run: Any,
    make_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    ends: bool,
) -> None:
    save, tries, told = CheckpointStore.save, [], list[Event]()

    def sometimes(self: CheckpointStore, *what: Any) -> Path:
        tries.append(what[0])
        if len(tries) <= failures:
            raise OutputError("no room")
        return save(self, *what)

    monkeypatch.setattr(CheckpointStore, "save", sometimes)
    run, folder = make_run(make_config(checkpoint={"every": 1})), RunFolder(tmp_path / "run")
    if ends:
        train(run, folder, Stop(), told.append)
        notices = [event.text for event in told if isinstance(event, Notice)]
        assert [text for text in notices if "no room; going on" in text] == notices[:2]
    else:
        with pytest.raises(OutputError):
            train(run, folder, Stop(), ignore)
        assert tries == [1, 2, 3]
