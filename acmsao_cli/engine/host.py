"""Memory of the host that a device copies from and to without waiting.

A GPU's copies cross on a stream of their own, in order, beside what is computed; elsewhere the same
copies are made at once, and on the meta device they are only counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acmsao_cli.optim.tracing import HOST, counted_as


def host_like(tensor: Tensor) -> Tensor:
    """Room for a copy in the host's memory: page-locked beside a GPU; without values."""
    if tensor.device.type == "cuda":
        return torch.empty_like(tensor, device="cpu", pin_memory=True)
    with counted_as(HOST):
        return torch.empty_like(tensor)


@dataclass(eq=False)
class SideStream:
    """Where the copies of one device are made."""

    device: torch.device
    stream: torch.cuda.Stream | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """A stream, where there are streams."""
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """What is done within is done there, after all that was asked of the device before."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """What is done within is done there, beside what is computed."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield

    def arrival(self) -> torch.cuda.Event | None:
        """A mark behind the copies so far."""
        return None if self.stream is None else self.stream.record_event()

    def wait(self, arrival: torch.cuda.Event | None) -> None:
        """Compute nothing more before the copies ahead of the mark are made."""
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)

    def settle(self) -> None:
        """Wait until every copy is made."""
        if self.stream is not None:
            self.stream.synchronize()
