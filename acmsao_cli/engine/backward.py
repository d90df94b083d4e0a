"""What becomes of each gradient at the moment backward has completed it.

Usually nothing: it stays, adds up and is stepped later. Where gradients must never exist together,
each is stepped, or measured, and freed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Action = Callable[[Tensor], None]

# What torch's clipping adds to a norm before it divides by it.
CLIP_EPS: Final = 1e-6


@dataclass(eq=False)
class BackwardHook:
    """Calls `action` for each parameter whose gradient the current backward has completed."""

    action: Action | None = None

    def attach(self, parameters: Sequence[Tensor]) -> None:
        """Be called for these parameters from now on."""
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self)

    def __call__(self, parameter: Tensor) -> None:
        """Act, in a backward that was asked to."""
        if self.action is not None:
            self.action(parameter)

    @contextmanager
    def doing(self, action: Action) -> Iterator[None]:
        """Within, completed gradients meet `action`."""
        self.action = action
        try:
            yield
        finally:
            self.action = None


def norm_of_backward(
    hook: BackwardHook, parameters: Sequence[Tensor], backward: Callable[[], object]
) -> Tensor | None:
    """The norm of all gradients as `backward` would leave them, 0-d fp32; they stay as they were.

    Every new gradient is added to what had been accumulated, measured, and freed: no more than one
    exists beside the accumulated ones, and the bits are those of the gradients left in place.
    """
    held = [parameter.grad for parameter in parameters]
    number_of = {parameter: number for number, parameter in enumerate(parameters)}
    norms: dict[int, Tensor] = {}

    def measure(parameter: Tensor) -> None:
        number, grad = number_of[parameter], parameter.grad
        assert grad is not None
        before = held[number]
        norms[number] = norm(grad if before is None else before + grad)
        parameter.grad = None

    for parameter in parameters:
        parameter.grad = None
    with hook.doing(measure):
        backward()
    for number, (parameter, grad) in enumerate(zip(parameters, held, strict=True)):
        parameter.grad = grad
        if grad is not None and number not in norms:
            norms[number] = norm(grad)
    return total_norm([norms[number] for number in sorted(norms)])


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor | None:
    """Norm of all gradients in fp32, 0-d, whatever their dtype; None where none are left."""
    return total_norm([norm(p.grad) for p in parameters if p.grad is not None])


def norm(gradient: Tensor) -> Tensor:
    """Euclidean norm of one gradient in fp32, 0-d."""
    length: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    return length


def total_norm(norms: Sequence[Tensor]) -> Tensor | None:
    """The norm of parts with these norms; None of no parts."""
    if not norms:
        return None
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total


def clip(parameters: Sequence[Tensor], bound: float | None, measured: Tensor | None) -> None:
    """Multiply the gradients by min(1, bound / measured); no bound or no norm leaves them."""
    if bound is not None and measured is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, bound, measured)
