"""What the steps of a run really hold, beside what its plan says they would."""

from __future__ import annotations

import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.engine import malloc
from acmsao_cli.engine.events import MemoryMeasured
from acmsao_cli.engine.report import human_bytes
from acmsao_cli.models.base import Batch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")

# The first step makes the optimizer's state, so its peak is not yet that of a usual step.
COMPARED_STEP = 2
TOLERANCE = 0.1
# Below this plan, what is no tensor of ours decides: on a CPU pages of libraries that are loaded
# meanwhile, and small things between which memory cannot be given back; on a GPU cuBLAS's
# workspace, up to 32 MiB, which torch counts as allocated.
COMPARABLE = {"cpu": 256 * 2**20, "cuda": 512 * 2**20}

SPILLED_STEPS = 3
USUAL_STEPS = 10
SPILLED_SLOWDOWN = 5.0
SPILLED_SHARE = 0.9


def resident_bytes() -> int:
    """Bytes of this process in memory, without what its allocator keeps for later.

    Where the system does not say, the most there were.
    """
    malloc.give_back()
    return _status("VmRSS") or _most_resident()


@dataclass(frozen=True)
class Expectation:
    """What the plan predicts the steps' tensors to hold, and what was resident without them.

    Make it before the model is loaded: from here on, what a CPU holds more is the run's.
    """

    peak_bytes: int
    resident_before: int = field(default_factory=resident_bytes)


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point since `forget_peak`: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") or _most_resident()


def peak_reserved(device: torch.device) -> int | None:
    """Bytes that the caching allocator held at most since `forget_peak`; a CPU has none."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> bool:
    """Leave what loading, encoding and sampling held out of the steps' peak, which is planned.

    Returns whether that was possible: not every system lets a process reset its high water mark
    (Linux: 5 written to clear_refs, see proc(5)).
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else the peak of what is reserved begins with the leftovers
        torch.cuda.reset_peak_memory_stats(device)
        return True
    malloc.give_back()
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is no such file or field."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def share_in_use(device: torch.device) -> float:
    """How much of the card is taken, by all processes; may exceed 1 once memory has spilled."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return max(total - free, torch.cuda.memory_reserved(device)) / total


def spilled(seconds: Sequence[float], share_of_card: float) -> bool:
    """Whether steps of these durations show that the driver pages GPU memory out to the host.

    Drivers on Windows and WSL do so instead of reporting that memory ran out. Then a full card's
    steps, the last three each, take more than five times the median of the first ones.
    """
    usual, latest = seconds[:-SPILLED_STEPS][:USUAL_STEPS], seconds[-SPILLED_STEPS:]
    if len(usual) < SPILLED_STEPS or share_of_card < SPILLED_SHARE:
        return False
    return min(latest) > SPILLED_SLOWDOWN * median(usual)


def is_largest(batches: Sequence[Batch], planned: Batch, training: TrainingSection) -> bool:
    """Whether a step of `batches` was as large as the plan's: of its shape, in as many portions."""
    if len(batches) < training.planned_portions:
        return False  # planned with a second portion, which meets the gradients of the first
    return any(
        all(batch.inputs[name].numel() >= value.numel() for name, value in planned.inputs.items())
        for batch in batches
    )


def warning(measured: MemoryMeasured) -> str | None:
    """What to say of a plan that is more than 10 % off; None if nothing.

    Less than planned is worth no word where the batch was a smaller one, or where the run's first
    step, without its optimizer state, is all there is.
    """
    if not measured.comparable or abs(measured.error) <= TOLERANCE:
        return None
    numbers = (
        f"the steps hold {human_bytes(measured.measured_bytes)}, "
        f"{human_bytes(measured.predicted_bytes)} were predicted ({100 * measured.error:+.0f} %)"
    )
    if measured.error > 0:
        return (
            f"{numbers}: the plan is too low for this run, which may exceed its budget; "
            "if memory runs out, set training.gradient_checkpointing=true or a smaller "
            "training.batch_size"
        )
    if measured.batch_is_largest and measured.step >= COMPARED_STEP:
        return (
            f"{numbers}: the plan is too high for this run; larger ones may fit than it allows, "
            "with a higher memory.budget_gib"
        )
    return None
