"""Kernels that come to the same bits each time, for a run that asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.errors import ConfigError

# cuBLAS may divide its workspace among streams as it likes, and sum in another order, unless this
# variable bounds it (cuBLAS manual, "Results reproducibility"). Read when it is first used.
WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
BOUNDED: Final = (":4096:8", ":16:8")

# What torch says of an operation that it can only refuse.
REFUSED: Final = " does not have a deterministic implementation"


@contextmanager
def reproducible(training: TrainingSection) -> Iterator[None]:
    """Within, with `training.deterministic`, torch takes kernels that do not depend on chance.

    Convolutions, products, indexing and attention, whose cuDNN kernel is passed over (torch's
    notes on reproducibility); kernels that are not torch's are not seen. What was set before holds
    again behind it. Raises ConfigError for an operation that has no such kernel.
    """
    if not training.deterministic:
        yield
        return
    cudnn, workspace = torch.backends.cudnn, os.environ.get(WORKSPACE)
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    if workspace not in BOUNDED:
        os.environ[WORKSPACE] = BOUNDED[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(REFUSED)
        if not found:
            raise
        raise ConfigError(
            f"`training.deterministic` cannot hold: torch has no deterministic `{operation}`",
            hint="set training.deterministic=false; a run that has a checkpoint goes on so with "
            "--allow-changed recipe",
        ) from None
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = before
        if workspace is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = workspace
