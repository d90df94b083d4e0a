"""How much memory a computation holds at its highest point, without holding it.

The real code runs on the meta device; every storage that an operation makes is counted from its
birth to its death. The same tracer also counts real storages, which is how it is tested.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The caching allocator of CUDA hands out multiples of this many bytes.
BLOCK = 512


class StorageTracer(TorchDispatchMode):
    """Counts live storages by category; remembers what was live at the peak.

    Storages born inside take the category named by `category`; `claim` gives one another. Category
    names are the caller's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.category = "activations"
        self.live: dict[int, tuple[int, str]] = {}
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._total = 0
        self._peak_total = 0

    @property
    def peak_bytes(self) -> int:
        """Bytes at the highest point."""
        return self._peak_total

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Run the operation and count what it made."""
        result = operation(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf, self.category)
        return result

    def count(self, tensor: Tensor, category: str) -> None:
        """Count the tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self.live or not size:
            return
        self.live[key] = (size, category)
        weakref.finalize(storage, self._forget, key)
        self._add(category, size)

    def claim(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count these tensors under `category`, whatever they were counted as before."""
        for tensor in tensors:
            self.count(tensor, category)
            key = tensor.untyped_storage()._cdata
            if key in self.live:
                size, former = self.live[key]
                self.live[key] = (size, category)
                self.held[former] -= size
                self.held[category] += size

    def _add(self, category: str, size: int) -> None:
        self.held[category] += size
        self._total += size
        if self._total > self._peak_total:
            self._peak_total = self._total
            self.peak = Counter({name: held for name, held in self.held.items() if held})

    def _forget(self, key: int) -> None:
        size, category = self.live.pop(key, (0, ""))
        if size:
            self.held[category] -= size
            self._total -= size


class FlashShape(torch.autograd.Function):
    """Attention as the fused kernels allocate it: the output and one number for each query.

    On the meta device torch takes the plain path, which holds the whole score matrix; no device
    that trains does.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output's shape, (batch, heads, queries, width of a value)."""
        batch, heads, length, _ = query.shape
        width = value.shape[-1]
        output = query.new_empty((batch, length, heads, width)).transpose(1, 2)
        logsumexp = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of the inputs' shapes."""
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def flash_shaped(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand-in for `scaled_dot_product_attention`; grouped keys are repeated as the kernels do."""
    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    result: Tensor = FlashShape.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def fused_attention_shapes() -> Iterator[None]:
    """Within, attention allocates as fused kernels do."""
    original: Callable[..., Tensor] = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = flash_shaped
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original
