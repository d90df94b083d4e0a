"""What operations make of the meta device's tensors, worked out once for each kind of arguments.

torch works out shapes, strides and dtypes in Python, slowly, and a model asks for the same again
for each of its layers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

# A tensor without its values, or anything else with its type: 1, 1.0 and True make other results.
Described: TypeAlias = Hashable


@dataclass(frozen=True)
class Made:
    """A fresh result, to be made again: shape, strides, dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def again(self) -> Tensor:
        """Another one, on the meta device."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


class KnownResults:
    """Runs operations, or makes their results again where the same was asked for before.

    Only of operations that change nothing and return fresh tensors on the meta device.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Made | tuple[Made, ...] | None] = {}

    def __call__(self, operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What `operation` returns of these."""
        key = (operation, described(arguments), described(keywords))
        try:
            known = self._made.get(key, self)
        except TypeError:  # an argument that cannot be a key
            return operation(*arguments, **keywords)
        if isinstance(known, Made):
            return known.again()
        if isinstance(known, tuple):
            return tuple(one.again() for one in known)
        result = operation(*arguments, **keywords)
        if known is self:
            self._made[key] = remembered(operation, result, (arguments, keywords))
        return result


def described(value: Any) -> Described:
    """What of an argument decides about the result's shape, strides and dtype."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(described(one) for one in value)
    if isinstance(value, dict):
        return tuple((name, described(one)) for name, one in value.items())
    return type(value), value


def remembered(operation: Any, result: Any, given: Any) -> Made | tuple[Made, ...] | None:
    """How to make the result again; None if it is more than fresh tensors."""
    schema = operation._schema
    if schema.is_mutable or any(one.alias_info is not None for one in schema.returns):
        return None
    if isinstance(result, Tensor):
        return _made(result, given)
    if isinstance(result, tuple) and type(result) is tuple:
        made = tuple(_made(one, given) for one in result)
        return None if None in made else made  # type: ignore[return-value]
    return None


def _made(result: Any, given: Any) -> Made | None:
    if not isinstance(result, Tensor) or result.device.type != "meta" or result.storage_offset():
        return None
    made = Made(tuple(result.shape), result.stride(), result.dtype)
    own = result.untyped_storage()
    is_new = all(own._cdata != one.untyped_storage()._cdata for one in tensors_in(given))
    return made if is_new and own.nbytes() == made.again().untyped_storage().nbytes() else None


def tensors_in(value: Any) -> list[Tensor]:
    """Of nested arguments, or of a result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in tensors_in(one)]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in tensors_in(one)]
    return []
