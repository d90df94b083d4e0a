"""Optimizers on small real tasks, each with the same tuning budget.

python benchmarks/convergence.py [--tasks NAME ...] [--only TEXT ...] [--cache FILE] [--report]

For each task and optimizer: a grid of learning rates around the optimizer's own centre is tried
with one seed; the best is run with the other seeds. Every run is one line of the cache, so a
stopped comparison goes on where it was, and `--report` writes table and plot from what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import recording
import torch
from contenders import BASELINE, CONTENDERS, Contender
from tasks import TASKS, Task, text_digest

from acmsao_cli.errors import OptimizerError

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(tempfile.gettempdir()) / "convergence" / "runs.jsonl"
EVALUATIONS = 10
WARMUP = 0.1  # of the run; then a cosine down to zero
TUNING_SEED = 0


@dataclass(frozen=True)
class Plan:
    """How much is spent on each optimizer."""

    trials: int = 5  # learning rates, half a decade apart
    seeds: int = 3
    scale: float = 1.0  # of the tasks' steps

    def rates(self, centre: float) -> list[float]:
        """The grid: `trials` rates, half a decade apart, `centre` in the middle."""
        steps = range(-(self.trials // 2), self.trials - self.trials // 2)
        return [float(f"{centre * 10 ** (step / 2):.3g}") for step in steps]

    def steps(self, task: Task) -> int:
        """Steps of one run."""
        return max(EVALUATIONS, round(task.steps * self.scale))


@dataclass(frozen=True)
class Attempt:
    """One run: everything its outcome depends on."""

    task: str
    contender: str
    text: str  # the contender's
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What two equal runs share."""
        return tuple(asdict(self).values())


def rate(attempt: Attempt, step: int) -> float:
    """The learning rate at a step, counted from 0: a linear rise, then a cosine to zero."""
    rise = max(1, round(attempt.steps * WARMUP))
    if step < rise:
        return attempt.lr * (step + 1) / rise
    return attempt.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / (attempt.steps - rise)))


def run(attempt: Attempt) -> dict[str, Any]:
    """Train once. A run whose loss is no number stops there and has no final loss."""
    opened = TASKS[attempt.task].open(attempt.seed)
    contender = CONTENDERS[attempt.contender]
    optimizer = contender.optimizer(opened.parameters, attempt.lr, attempt.seed)
    looks = {round(attempt.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    curve = [(0, opened.validation_loss())]
    seconds = 0.0
    for step in range(attempt.steps):
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate(attempt, step)
        opened.training_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - begun
        if step + 1 in looks:
            curve.append((step + 1, opened.validation_loss()))
            if not math.isfinite(curve[-1][1]):
                break
    elements = sum(parameter.numel() for _, parameter in opened.parameters)
    finite = math.isfinite(curve[-1][1])
    return asdict(attempt) | {
        "final": curve[-1][1] if finite else None,
        "curve": curve if finite else curve[:-1],
        "seconds": round(seconds, 3),
        "parameters": elements,
        "state_bytes": optimizer.state_bytes(),
    }


# The cache: one line for each run


def recorded(cache: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Runs by key; a line that was cut short is left out."""
    found = {}
    for line in cache.read_text().splitlines() if cache.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        attempt = Attempt(**{name: row[name] for name in Attempt.__dataclass_fields__})
        found[attempt.key] = row
    return found


def perform(attempt: Attempt, cache: Path) -> dict[str, Any]:
    """Run, or return what is recorded."""
    known = recorded(cache).get(attempt.key)
    if known is not None and "error" not in known:
        return known
    row = tried(attempt)
    with cache.open("a") as file:
        file.write(json.dumps(row) + "\n")
    final = _outcome(row)
    print(
        f"{attempt.task:9} {attempt.contender:22} lr {attempt.lr:<9g} seed {attempt.seed}: {final}"
    )
    return row


def tried(attempt: Attempt) -> dict[str, Any]:
    """The run, or what broke it: a fault of one optimizer must not end the comparison."""
    try:
        return run(attempt)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return asdict(attempt) | {"final": None, "curve": [], "error": reason}


def _outcome(row: dict[str, Any]) -> str:
    return row.get("error", "diverged") if row["final"] is None else f"{row['final']:.4f}"


def attempts(task: Task, contender: Contender, plan: Plan) -> list[Attempt]:
    """The tuning runs."""
    return [
        Attempt(task.name, contender.name, contender.text, lr, TUNING_SEED, plan.steps(task))
        for lr in plan.rates(contender.centre)
    ]


def best(tuning: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The tuning run with the lowest final loss; None if all diverged."""
    finished = [row for row in tuning if row["final"] is not None]
    return min(finished, key=lambda row: row["final"], default=None)


def finals(chosen: dict[str, Any], plan: Plan) -> list[Attempt]:
    """The runs that count, of other seeds than the tuning's."""
    same = {name: chosen[name] for name in Attempt.__dataclass_fields__ if name != "seed"}
    return [Attempt(**same, seed=TUNING_SEED + 1 + seed) for seed in range(plan.seeds)]


def contest(task: str, contender: str, plan: Plan, cache: Path) -> None:
    """All runs of one optimizer on one task, in this process, on one thread."""
    torch.set_num_threads(1)
    tuning = attempts(TASKS[task], CONTENDERS[contender], plan)
    chosen = best([perform(attempt, cache) for attempt in tuning])
    for attempt in finals(chosen, plan) if chosen else ():
        perform(attempt, cache)


# The report


def missing_parts(names: Iterable[str]) -> dict[str, str]:
    """Contenders that cannot be built here, with the reason."""
    reasons = {}
    for name in names:
        try:
            CONTENDERS[name].pipeline()
        except OptimizerError as error:
            reasons[name] = error.message
    return reasons


def steps_to(target: float, curve: Sequence[Sequence[float]]) -> float | None:
    """Steps until the validation loss first reached `target`, linear between two evaluations."""
    for (start, before), (end, after) in pairwise(curve):
        if after <= target:
            return start + (end - start) * min(1.0, (before - target) / max(before - after, 1e-12))
    return None


def summary(
    rows: Sequence[dict[str, Any]], tuning: Sequence[dict[str, Any]], target: float
) -> dict[str, Any]:
    """One optimizer on one task; `target` is the baseline's mean final loss."""
    finished = [row for row in rows if row["final"] is not None]
    losses = [row["final"] for row in finished]
    reached = [(steps_to(target, row["curve"]), row["seconds"] / row["steps"]) for row in finished]
    arrived = [(steps, steps * each) for steps, each in reached if steps is not None]
    rates = [row["lr"] for row in tuning]
    return {
        "lr": rows[0]["lr"],
        "at_the_edge_of_the_grid": rows[0]["lr"] in (min(rates), max(rates)),
        "final": {
            "mean": statistics.fmean(losses),
            "lowest": min(losses),
            "highest": max(losses),
            "deviation": statistics.stdev(losses) if len(losses) > 1 else None,
            "each": losses,
        },
        "not_finished": [_outcome(row) for row in rows if row["final"] is None],
        "seeds": len(rows),
        "reached_the_baseline": len(arrived),
        "steps_to_the_baseline": statistics.median(s for s, _ in arrived) if arrived else None,
        "seconds_to_the_baseline": statistics.median(s for _, s in arrived) if arrived else None,
        "seconds": statistics.median(row["seconds"] for row in finished),
        "state_bytes_per_parameter": finished[0]["state_bytes"] / finished[0]["parameters"],
        "tuning": {f"{row['lr']:g}": row["final"] for row in tuning},
        "pipeline": str(CONTENDERS[rows[0]["contender"]].pipeline()),
    }


Runs: TypeAlias = dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def complete(task: Task, names: Sequence[str], plan: Plan, cache: Path) -> Runs:
    """Final runs and tuning runs of the contenders that have all of them."""
    known = recorded(cache)

    def rows(wanted: Sequence[Attempt]) -> list[dict[str, Any]]:
        return [known[attempt.key] for attempt in wanted if attempt.key in known]

    found = {}
    for name in names:
        tuning = rows(attempts(task, CONTENDERS[name], plan))
        chosen = best(tuning)
        runs = rows(finals(chosen, plan)) if chosen else []
        if len(tuning) == plan.trials and (len(runs) == plan.seeds or not chosen):
            found[name] = (runs, tuning)
    return found


def collect(found: Runs) -> dict[str, Any]:
    """Summaries of the contenders that finished a run; nothing before the baseline has."""
    done = {
        name: [row["final"] for row in runs if row["final"] is not None]
        for name, (runs, _) in found.items()
    }
    if not done.get(BASELINE):
        return {}
    target = statistics.fmean(done[BASELINE])
    return {name: summary(*found[name], target) for name, losses in done.items() if losses}


def failures(found: Runs) -> dict[str, str]:
    """Contenders of which no final run finished, and why."""
    return {
        name: _outcome([*runs, *tuning][0])
        for name, (runs, tuning) in found.items()
        if all(row["final"] is None for row in runs)
    }


def ordered(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Best final loss first."""
    return sorted(found.items(), key=lambda item: item[1]["final"]["mean"])


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    plan = result["plan"]
    parts = [
        f"# Convergence\n\n{result['what']}\n\n`{result['command']}`, "
        f"{result['machine']['processor']}, one core for each run.\n\n"
        f"Each optimizer was tried at {plan['trials']} learning rates, half a decade apart, with "
        f"one seed; the best was run with {plan['seeds']} other seeds. Validation loss: mean "
        "(lowest to highest). Steps and seconds (CPU time of training) until the loss was AdamW's "
        "mean final loss: median of the seeds that got there. No weight decay, fp32 weights, a "
        f"warm-up of {WARMUP:.0%} and a cosine to zero. A rate with * was at the edge of its grid: "
        "more might have been found beyond.\n"
    ]
    for name, found in result["tasks"].items():
        about = result["about"][name]
        parts.append(
            f"\n## {name}\n\n{about['about']}; {about['unit']}; {about['steps']} steps.\n\n"
        )
        parts.append(recording.table(HEADER, [_cells(n, row) for n, row in ordered(found)]))
        if result["failed"][name]:
            parts.append("\nNo run finished:\n\n")
            parts += [f"- {who}: {why}\n" for who, why in result["failed"][name].items()]
    if result["skipped"]:
        parts.append("\nNot run:\n\n")
        parts += [f"- {name}: {reason}\n" for name, reason in result["skipped"].items()]
    return "".join(parts)


HEADER = (
    "optimizer",
    "learning rate",
    "validation loss",
    "steps to AdamW's",
    "seconds to AdamW's",
    "seconds in all",
    "state B/parameter",
)


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    final, arrived = row["final"], row["reached_the_baseline"]
    steps = row["steps_to_the_baseline"]
    loss = f"{final['mean']:.4f} ({final['lowest']:.4f} to {final['highest']:.4f})"
    if row["not_finished"]:
        loss += f", {len(row['not_finished'])} of {row['seeds']} not finished"
    share = "" if arrived == row["seeds"] else f" ({arrived} of {row['seeds']})"
    return [
        name,
        f"{row['lr']:g}" + ("*" if row["at_the_edge_of_the_grid"] else ""),
        loss,
        "-" if steps is None else f"{steps:.0f}{share}",
        "-" if steps is None else f"{row['seconds_to_the_baseline']:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['state_bytes_per_parameter']:.2f}",
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """One panel for each task: every optimizer's final loss, mean and range, best on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(name, ordered(found)) for name, found in result["tasks"].items() if found]
    tallest = max(len(found) for _, found in panels)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 1.2 + 0.24 * tallest), squeeze=False
    )
    for axis, (name, found) in zip(axes[0], panels, strict=True):
        _panel(axis, name, found)
    figure.suptitle("Final validation loss after equal tuning: mean and range of the seeds")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"wrote {path}")


def _panel(axis: Any, task: str, found: list[tuple[str, dict[str, Any]]]) -> None:
    baseline = dict(found)[BASELINE]["final"]["mean"]
    for height, (name, row) in enumerate(reversed(found)):
        final = row["final"]
        colour = "tab:red" if name == BASELINE else "tab:blue"
        axis.plot(
            [final["lowest"], final["highest"]], [height, height], color=colour, lw=3, alpha=0.4
        )
        axis.plot(final["mean"], height, "o", color=colour, ms=4)
    axis.axvline(baseline, color="tab:red", lw=0.8, ls=":")
    axis.set_yticks(range(len(found)), [name for name, _ in reversed(found)], fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:.3g}")
    axis.xaxis.set_minor_formatter("{x:.3g}")
    axis.tick_params(axis="x", which="both", labelsize=7)
    axis.set_title(task, fontsize=10)
    axis.grid(alpha=0.25, axis="both")


def report(tasks: Sequence[Task], names: Sequence[str], plan: Plan, cache: Path) -> dict[str, Any]:
    """All that is known, for JSON."""
    skipped = missing_parts(names)
    there = [name for name in names if name not in skipped]
    found = {task.name: complete(task, there, plan, cache) for task in tasks}
    return recording.provenance("Final validation loss of optimizers, each tuned alike") | {
        "command": recording.command().replace(" --report", ""),  # what made the runs
        "plan": asdict(plan),
        "text": text_digest(),
        "about": {
            t.name: {"about": t.about, "unit": t.unit, "steps": plan.steps(t)} for t in tasks
        },
        "tasks": {name: collect(runs) for name, runs in found.items()},
        "failed": {name: failures(runs) for name, runs in found.items()},
        "skipped": skipped,
    }


def chosen_contenders(wanted: Sequence[str]) -> list[str]:
    """Contenders whose name has one of the texts; the baseline always."""
    return [
        name
        for name in CONTENDERS
        if name == BASELINE or not wanted or any(text in name for text in wanted)
    ]


def contests(tasks: Sequence[Task], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of task and contender, contender by contender."""
    return ((task.name, name) for name in names for task in tasks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", default=[], help="parts of optimizers' names")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--trials", type=int, default=Plan.trials)
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--scale", type=float, default=Plan.scale, help="of the tasks' steps")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "convergence")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "convergence.png")
    options = parser.parse_args(arguments)
    tasks = [TASKS[name] for name in options.tasks]
    names = chosen_contenders(options.only)
    plan = Plan(options.trials, options.seeds, options.scale)
    if not options.report:
        run_all(tasks, names, plan, options.cache, options.processes)
    result = report(tasks, names, plan, options.cache)
    recording.write(options.out, result, markdown(result))
    if any(result["tasks"].values()):
        plot(result, options.plot)


def run_all(
    tasks: Sequence[Task], names: Sequence[str], plan: Plan, cache: Path, processes: int
) -> None:
    """Every contest, in `processes` of one thread each; a failed one does not stop the others."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    absent = missing_parts(names)
    for name, reason in absent.items():
        print(f"left out: {name}: {reason}")
    present = [name for name in names if name not in absent]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        started = {
            pair: pool.submit(contest, *pair, plan, cache) for pair in contests(tasks, present)
        }
        for pair, future in started.items():
            error = future.exception()
            if error is not None:
                print(f"failed: {pair}: {error!r}")


if __name__ == "__main__":
    main()
