"""How much memory a computation holds at its highest point.

Run it on the meta device and nothing is held at all: every storage that an operation makes is
counted from its birth to its death. Real storages are counted alike, which is how this is tested.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acmsao_cli.optim.known_results import KnownResults, tensors_in

# What lies in page-locked memory of the host: counted, but not the device's.
HOST: Final = "host"
WEIGHTS: Final = "weights"
# The temporaries of a step of the optimizer.
WORKSPACE: Final = "workspace"


# How bytes cross between the two.
TO_DEVICE: Final = "to the device"
FROM_DEVICE: Final = "from the device"

Event = tuple[int, int, str]


class StorageTracer(TorchDispatchMode):
    """While active, follows the storages that operations create until they die.

    A storage counts as `category` names it when it is born; `claim` gives it another. Sizes are
    rounded up to multiples of `block` bytes, as an allocator hands them out. `events` say in order
    what became of which storage: its number, its size (0: it died), its category. `flops` are those
    of products; `crossed` are bytes copied between host and device, by direction.
    """

    _tracing: list[StorageTracer] = []  # noqa: RUF012  # those that are active

    def __init__(self, block: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block = block
        self.category = "temporary"
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.peak_bytes = 0
        self.host_peak_bytes = 0
        self.events: list[Event] = []
        self.flops = 0
        self.crossed: Counter[str] = Counter()
        self._known = KnownResults()
        self._highest = 0  # since `needed_by` began
        self._live: dict[int, tuple[int, str, int]] = {}  # size, category, number by identity
        self._total = 0  # of the device
        self._born = 0

    def __enter__(self) -> StorageTracer:
        """Begin to follow."""
        self._tracing.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._tracing.remove(self)

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Run the operation; storages that its arguments do not already hold are new."""
        keywords = keywords or {}
        before = {_identity(tensor) for tensor in tensors_in((arguments, keywords))}
        result = self._known(operation, arguments, keywords)
        for tensor in tensors_in(result):
            if _identity(tensor) not in before:
                self._follow(tensor, self.category)
        formula = flop_registry.get(operation.overloadpacket)
        if formula is not None and self.category != WORKSPACE:
            self.flops += formula(*arguments, **keywords, out_val=result)
        return result

    def claim(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count these tensors under `category`, whether they were counted before or not."""
        for tensor in tensors:
            key = _identity(tensor)
            if key in self._live:
                size, former, number = self._live[key]
                self._live[key] = (size, category, number)
                self._change(-size, former)
                self._change(size, category)
                self.events.append((number, size, category))
            else:
                self._follow(tensor, category)

    def resized(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` as large as it is now: no operation tells."""
        if _identity(tensor) in self._live:
            self._resize(_identity(tensor), self._size(tensor))
        else:
            self._follow(tensor, self.category)

    def needed_by(self, run: Callable[[], None]) -> int:
        """Run it, and return the most bytes it held beside what was held before."""
        before = self._highest = self._total
        run()
        return self._highest - before

    def pulse(self, size: int) -> None:
        """Count what another run of something known needs, as if it were run."""
        number = self._next()
        self.events += [(number, size, self.category), (number, 0, self.category)]
        self._change(size, self.category)
        self._change(-size, self.category)

    def _next(self) -> int:
        self._born += 1
        return self._born

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.untyped_storage().nbytes() // self.block) * self.block

    def _follow(self, tensor: Tensor, category: str) -> None:
        size, key = self._size(tensor), _identity(tensor)
        if not size or key in self._live:
            return
        weakref.finalize(tensor.untyped_storage(), self._forget, key)
        self._live[key] = (0, category, self._next())
        self._resize(key, size)

    def _forget(self, key: int) -> None:
        if self in self._tracing:  # what dies later is no part of what was traced
            self._resize(key, 0)
        del self._live[key]

    def _resize(self, key: int, size: int) -> None:
        former, category, number = self._live[key]
        if size != former:
            self._live[key] = (size, category, number)
            self.events.append((number, size, category))
            self._change(size - former, category)

    def _change(self, more: int, category: str) -> None:
        self.held[category] += more
        if category == HOST:
            self.host_peak_bytes = max(self.host_peak_bytes, self.held[HOST])
            return
        self._total += more
        self._highest = max(self._highest, self._total)
        if self._total > self.peak_bytes:
            self.peak_bytes = self._total
            self.peak = Counter({k: held for k, held in self.held.items() if held and k != HOST})


@contextmanager
def counted_as(category: str) -> Iterator[None]:
    """Within, what is born counts as `category`, for whoever is tracing."""
    tracers = list(StorageTracer._tracing)
    former = [tracer.category for tracer in tracers]
    for tracer in tracers:
        tracer.category = category
    try:
        yield
    finally:
        for tracer, before in zip(tracers, former, strict=True):
            tracer.category = before


def tell_claimed(tensors: Iterable[Tensor], category: str) -> None:
    """Tell whoever is tracing that these tensors count as `category`."""
    for tracer in StorageTracer._tracing:
        tracer.claim(tensors, category)


def tell_crossed(size: int, direction: str) -> None:
    """Tell whoever is tracing that so many bytes are copied between host and device."""
    for tracer in StorageTracer._tracing:
        tracer.crossed[direction] += size


def tell_flops(count: int) -> None:
    """Tell whoever is tracing of products that no operation shows."""
    for tracer in StorageTracer._tracing:
        tracer.flops += count


def tell_resized(tensor: Tensor) -> None:
    """Tell whoever is tracing that the storage of `tensor` was resized."""
    for tracer in StorageTracer._tracing:
        tracer.resized(tensor)


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
