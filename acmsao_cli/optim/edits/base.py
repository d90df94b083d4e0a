"""The two sockets for edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.rules.base import Context

# An edit returns a fresh tensor, or one of its arguments unchanged. One with options is a frozen
# dataclass that can be called, so a registered edit is a function or such a class.
GradientEdit: TypeAlias = Callable[[Tensor, Context], Tensor]  # (grad, ctx)
DirectionEdit: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]  # (update, edited grad, ctx)

gradient_edit: Registry[Any] = Registry("gradient edit")
direction_edit: Registry[Any] = Registry("direction edit")
