"""One case, in this process: its plan, then its steps, and what they held and took."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import torch
from cases import CARD, Case, config_of
from entries import LR, Absent, Theirs, installed
from limits import limited
from torch import Tensor
from weights import opened, random_batch, write_model

from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.engine.loop import read_out
from acmsao_cli.engine.measured import (
    forget_peak,
    peak_memory,
    peak_reserved,
    resident_bytes,
)
from acmsao_cli.engine.precision import resolve_device
from acmsao_cli.engine.step import Core, build_core, training_step
from acmsao_cli.errors import AcmsaoError
from acmsao_cli.memory.cards import CONTEXT_BYTES, GIB
from acmsao_cli.memory.choose import Decided, decide
from acmsao_cli.memory.planner import MemoryPlan, trace_step
from acmsao_cli.models.base import Batch, Trainee

Row: TypeAlias = dict[str, Any]
Turn: TypeAlias = Callable[[], None]

# Steps that make state and compile kernels are no usual ones.
FIRST_STEPS: Final = 2

PASSED, FAILED, RAN, MISSING = "passed", "failed", "ran", "not installed"


@dataclass(frozen=True)
class Asked:
    """How the cases are run. `alone`: nothing else of ours is on the device."""

    device: str = "cuda:0"
    steps: int = 6
    tiny: bool = False
    alone: bool = True


def measure(case: Case, asked: Asked, turn: Turn) -> Row:
    """The case's row; whatever goes wrong is told in it. `turn` is called before each step."""
    row: Row = {
        "model": case.model,
        "recipe": case.recipe,
        "settings": list(case.settings),
        "tiny": asked.tiny,
        "torch": torch.__version__,
        "cap_gib": None if asked.tiny else case.cap_gib,
    }
    began = time.monotonic()
    try:
        device = resolve_device(asked.device)
        row["device"] = limited(device, row["cap_gib"])
        with TemporaryDirectory() as base:
            folder = write_model(case.model, Path(base) / case.model, tiny=asked.tiny)
            config = config_of(case, folder, asked.device, asked.steps, tiny=asked.tiny)
            for found in (by_peer if case.peer else by_run)(case, config, asked, turn):
                row |= found
        row["status"] = verdict(row)
    except Absent as absent:
        row |= {"status": MISSING, "message": str(absent)}
    except Exception as error:  # memory runs out in many libraries' ways; the others must go on
        row |= {"status": FAILED, "message": told(error)}
        if torch.cuda.is_initialized():  # how far it came
            row["measured"] = counted(torch.device(asked.device), asked)
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def told(error: Exception) -> str:
    """What an error says, without the machine's paths."""
    text = error.message if isinstance(error, AcmsaoError) else str(error)
    return f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else ''}"


def verdict(row: Row) -> str:
    """Whether what was reserved stayed under the cap, where both are known."""
    reserved = row["measured"]["reserved_bytes"]
    if row["cap_gib"] is None or reserved is None:
        return RAN
    return PASSED if reserved <= row["cap_gib"] * GIB else FAILED


def planned(decided: Decided) -> Row:
    """The plan in bytes; `needs` is what is held against a budget, with the context."""
    plan = decided.plan
    return {
        "decided": dict(decided.settings),
        "why": decided.why,
        "planned": {
            "by_category": dict(plan.by_category),
            "allocated_bytes": plan.tensor_bytes,
            "reserved_bytes": reserved_of(plan),
            "needs_bytes": plan.needed_bytes,
            "host_bytes": dict(plan.host),
        },
    }


def reserved_of(plan: MemoryPlan) -> int | None:
    """What the caching allocator should take; a CPU has none."""
    return plan.reserved_bytes - CONTEXT_BYTES if plan.device.type == "cuda" else None


def by_run(case: Case, config: RunConfig, asked: Asked, turn: Turn) -> Iterator[Row]:
    """The run's own plan, placement and step; what is known, as it becomes known."""
    decided = decide(config, CARD)
    yield planned(decided)
    recipe = decided.config.recipe
    trainee, how = opened(case, recipe)
    core = build_core(recipe, trainee, asked.steps)
    batch = random_batch(trainee, recipe.training.batch_size)
    yield {"weights": how, "opening": {"reserved_bytes": peak_reserved(trainee.device)}}
    norm: float | None = None

    def step(number: int) -> float:
        nonlocal norm
        result = training_step(
            core,
            [batch],
            first_micro_batch=number,
            lr_factor=1.0,
            previous_norm=norm,
            guard=finite,
        )
        loss, norm, _ = read_out(result)
        return loss

    yield from stepped(trainee, asked, turn, step)
    yield compared(core, batch, decided.plan, asked)


def by_peer(case: Case, config: RunConfig, asked: Asked, turn: Turn) -> Iterator[Row]:
    """Another library's optimizer in a plain loop: backward, then step, nothing capped."""
    assert case.peer is not None
    kind = peer(case.peer)
    trainee, how = opened(case, config.recipe)
    named = [pair for group in trainee.parameter_groups() for pair in group.parameters]
    optimizer = kind(named, LR, 0.0)
    batch = random_batch(trainee, config.recipe.training.batch_size)
    yield {
        "optimizer": f"{kind.kind} {dict(kind.options)}",
        "weights": how,
        "opening": {"reserved_bytes": peak_reserved(trainee.device)},
    }

    def step(number: int) -> float:
        loss = trainee.loss(batch) / batch.weight
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    with eager() if asked.tiny else nullcontext():
        yield from stepped(trainee, asked, turn, step)
    yield {"measured": counted(trainee.device, asked)}


def eager() -> AbstractContextManager[Any]:
    """Within, nothing is compiled: that would take longer than all tiny cases together."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def stepped(
    trainee: Trainee, asked: Asked, turn: Turn, step: Callable[[int], float]
) -> Iterator[Row]:
    """Take the steps; after each, the seconds and losses so far."""
    seconds: list[float] = []
    losses: list[float] = []
    forget_peak(trainee.device)
    for number in range(asked.steps):
        turn()
        _settle(trainee.device)
        began = time.perf_counter()
        losses.append(step(number))
        _settle(trainee.device)
        seconds.append(round(time.perf_counter() - began, 4))
        usual = seconds[FIRST_STEPS:]
        yield {
            "seconds_of_steps": list(seconds),
            "seconds_per_step": round(median(usual), 4) if usual else None,
            "losses": [round(loss, 6) for loss in losses],
        }


def compared(core: Core, batch: Batch, plan: MemoryPlan, asked: Asked) -> Row:
    """What the steps held beside the plan; on a CPU a trace of one more stands for a measurement.

    The errors are measured / planned - 1.
    """
    device = core.trainee.device
    if device.type == "cuda":
        measured = counted(device, asked)
    else:
        peak = trace_step(core, [batch]).tracer.peak_bytes
        measured = _measurement("the trace of a real step on a CPU", peak)
    pairs = {
        "allocated": (measured["allocated_bytes"], plan.tensor_bytes),
        "reserved": (measured["reserved_bytes"], reserved_of(plan)),
    }
    errors = {
        name: round(found / told_before - 1, 4) if found and told_before else None
        for name, (found, told_before) in pairs.items()
    }
    return {"measured": measured, "prediction_error": errors}


def counted(device: torch.device, asked: Asked) -> Row:
    """What torch counted since the steps began; nothing on a CPU."""
    if device.type != "cuda":
        return _measurement("nothing: a CPU counts no tensors", None)
    outside = None
    if asked.alone:  # the context, if nobody else is on the card
        free, total = torch.cuda.mem_get_info(device)
        outside = total - free - torch.cuda.memory_reserved(device)
    found = _measurement("torch.cuda", peak_memory(device), peak_reserved(device))
    return found | {"outside_allocator_bytes": outside, "host_resident_bytes": resident_bytes()}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measurement(by: str, allocated: int | None, reserved: int | None = None) -> Row:
    return {"by": by, "allocated_bytes": allocated, "reserved_bytes": reserved}


def finite(what: str, value: Tensor) -> None:
    """As the run's guard: a step whose numbers are none is no step."""
    if not math.isfinite(float(value)):
        raise ArithmeticError(f"the {what} is not finite")


def peer(name: str) -> Theirs:
    """The optimizer of a library that is measured beside ours. Raises Absent."""
    kind, wanted = PEERS[name]
    module = installed(name if name == "adv_optm" else f"{name}.optim")
    found = getattr(module(), kind, object)  # that a version has none is told when it is built
    known: Mapping[str, Any] = inspect.signature(found).parameters
    options = {key: value for key, value in wanted.items() if key in known}
    return Theirs(module, kind, options)


# adv_optm calls its factored state by one name before 2.5 and by the other since.
PEERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "adv_optm": ("AdamW_adv", {"nnmf_factor": True, "state_precision": "factored"}),
    "torchao": ("AdamW8bit", {"bf16_stochastic_round": True}),
}
