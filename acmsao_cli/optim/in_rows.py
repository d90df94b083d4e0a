"""A matrix's gradient that is computed some rows at a time, whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import torch
from torch import Tensor

# Elements of the rows that are computed together, and kept until others are asked for.
TOGETHER: Final = 1 << 23


class GradientInRows:
    """The gradient of a parameter (rows, cols), which never exists as a whole.

    `compute(start, stop)` gives its rows in that range, always the same: (stop - start, cols), in
    the parameter's dtype. It must not depend on what stepping changes of other rows.
    """

    def __init__(self, like: Tensor, compute: Callable[[int, int], Tensor]) -> None:
        self.rows, self.cols = like.shape
        self.dtype, self.is_meta = like.dtype, like.is_meta
        self._compute = compute
        self._first, self._found = 0, like.detach()[:0]

    def cut(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` as (1, stop - start, cols), to be read at once."""
        first = self._first
        if not first <= start <= stop <= first + len(self._found):
            self._found = self._found[:0]
            count = max(TOGETHER // max(self.cols, 1), stop - start)
            self._found = self._compute(start, min(start + count, self.rows))
            first = self._first = start
        return self._found[start - first : stop - first][None]

    def whole(self) -> Tensor:
        """All rows, for a rule that needs them together."""
        return self.cut(0, self.rows)

    def split(self, count: int) -> Iterator[Tensor]:
        """So many rows at a time; on the meta device, where all are alike, the first of them."""
        starts = range(0, self.rows, count)
        for start in starts[:2] if self.is_meta else starts:
            yield self.cut(start, min(start + count, self.rows))

    def let_go(self) -> None:
        """Keep no rows any longer."""
        self._found = torch.empty(0)
        self._first = 0


# (batch, rows, cols), or one parameter's rows.
Gradient: TypeAlias = Tensor | GradientInRows
