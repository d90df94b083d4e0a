"""How much memory a computation holds at its highest point.

Run it on the meta device and nothing is held at all: every storage that an operation makes is
counted from its birth to its death. Real storages are counted alike, which is how this is tested.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageTracer(TorchDispatchMode):
    """While active, follows the storages that operations create until they die.

    A storage counts as `category` names it when it is born; `claim` gives it another. Sizes are
    rounded up to multiples of `block` bytes, as an allocator hands them out.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block = block
        self.category = "temporary"
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.peak_bytes = 0
        self._highest = 0  # since `needed_by` began
        self._live: dict[int, tuple[int, str]] = {}  # size and category by the storage's identity
        self._total = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Run the operation; storages that its arguments do not already hold are new."""
        before = {_identity(tensor) for tensor in _tensors((arguments, keywords))}
        result = operation(*arguments, **(keywords or {}))
        for tensor in _tensors(result):
            if _identity(tensor) not in before:
                self._follow(tensor, self.category)
        return result

    def claim(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count these tensors under `category`, whether they were counted before or not."""
        for tensor in tensors:
            size, former = self._live.get(_identity(tensor), (0, category))
            if size:
                self._live[_identity(tensor)] = (size, category)
                self.held[former] -= size
                self.held[category] += size
            else:
                self._follow(tensor, category)

    def needed_by(self, run: Callable[[], None]) -> int:
        """Run it, and return the most bytes it held beside what was held before."""
        before = self._highest = self._total
        run()
        return self._highest - before

    def pulse(self, size: int) -> None:
        """Count what another run of something known needs, as if it were run."""
        self._rise_to(self._total + size, Counter({self.category: size}))

    def _rise_to(self, total: int, more: Counter[str]) -> None:
        self._highest = max(self._highest, total)
        if total > self.peak_bytes:
            self.peak_bytes = total
            self.peak = Counter({name: held for name, held in self.held.items() if held}) + more

    def _follow(self, tensor: Tensor, category: str) -> None:
        storage, key = tensor.untyped_storage(), _identity(tensor)
        size = -(-storage.nbytes() // self.block) * self.block
        if not size or key in self._live:
            return
        self._live[key] = (size, category)
        weakref.finalize(storage, self._forget, key)
        self.held[category] += size
        self._total += size
        self._rise_to(self._total, Counter())

    def _forget(self, key: int) -> None:
        size, category = self._live.pop(key)
        self.held[category] -= size
        self._total -= size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
