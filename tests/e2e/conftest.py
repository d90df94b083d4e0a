"""The command line called in this process, on foreign micro models."""

from __future__ import annotations

import pytest
import torch
from command_line import acmsao
from micro.shelf import lm, sdxl, shelf


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Micro models lose by more."""
    torch.set_num_threads(1)


__all__ = ["acmsao", "lm", "sdxl", "shelf"]
