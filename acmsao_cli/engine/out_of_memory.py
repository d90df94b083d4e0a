"""Memory that runs out while steps are taken: recognised, let go of, and told."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from acmsao_cli.engine.report import human_bytes

# Failures in the first steps of a process are of its settings; later ones of a larger example, or
# of another program that took memory.
EARLY_STEPS: Final = 3

# What torch and the libraries below it say, where they raise no error of a class of its own.
SAID: Final = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# The CUDA allocator's words and the CPU's: both go on with more than one wants to know.
TRIED: Final = re.compile(r"tried to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


@dataclass
class Whole:
    """Whether weights and state are those of a whole number of steps: not while one is applied."""

    now: bool = True


def reason_of(error: BaseException) -> str | None:
    """In one line what could not be had; None of an error that is another."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not (
        isinstance(error, RuntimeError) and any(said in text for said in SAID)
    ):
        return None
    if wanted := TRIED.search(text):
        amount, unit = wanted.groups()
        size = human_bytes(float(amount)) if unit == "bytes" else f"{amount} {unit}"
        return f"tried to allocate {size}"
    return (text.splitlines() or ["the system has no more"])[0]


def ran_out(work: Callable[[], None]) -> str | None:
    """Do `work`. Returns what could not be had if memory ran out, and what it held is let go of."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
    else:
        return None
    let_go()
    return reason


def let_go() -> None:
    """Give the memory of what is no longer reachable back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
