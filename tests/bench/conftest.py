"""A task of no time at all, and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from command_line import acmsao

from acmsao_cli.bench.opened import Opened
from acmsao_cli.bench.tasks import TASKS, Task

__all__ = ["acmsao"]


def open_line(seed: int, fault: str = "") -> Opened:
    """A line is fitted to points without noise."""
    torch.manual_seed(seed)
    line = torch.nn.Linear(2, 1)
    inputs, weight = torch.randn(16, 2), torch.tensor([[1.0, -2.0]])

    def loss() -> torch.Tensor:
        if fault:
            raise ArithmeticError(fault)
        return (line(inputs) - inputs @ weight.T).square().mean()

    return Opened(list(line.named_parameters()), loss, lambda: float(loss().detach()))


LINE = Task("line", "a line", "mean squared error", 20, open_line)
BROKEN = Task("broken", "no line", "nothing", 20, partial(open_line, fault="no such root"))


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`line` can be asked for; the number of threads is as it was."""
    monkeypatch.setitem(TASKS, "line", LINE)
    monkeypatch.setitem(TASKS, "broken", BROKEN)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def line() -> Task:
    return LINE


@pytest.fixture
def broken() -> Task:
    return BROKEN
