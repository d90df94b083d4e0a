"""What lives in host memory, brought to the device before its step and home after it.

While one turn is stepped, the cells that the next will ask for are already on their way: one turn
ahead and no further, so that the device never holds the copies of more than two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.optim.batches import Batch, Member
from acmsao_cli.optim.in_rows import GradientInRows
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Codec, State
from acmsao_cli.optim.storage.policy import AtHand
from acmsao_cli.optim.tracing import FROM_DEVICE, tell_crossed

# Bytes of a turn's cells that are brought as a whole. Those of a turn with more cross block by
# block, as they are asked for and without being fetched ahead.
LIMIT: Final = 128 << 20

_Version: TypeAlias = tuple[int, int]  # where a tensor lies, and how often it was written


@dataclass(frozen=True)
class Turn:
    """Members of a batch that are stepped together, their state, and the step they come to."""

    members: Sequence[Member]
    batch: Batch
    numbers: Tensor
    state: State
    step: int
    gradient: GradientInRows | None = None  # where it is not the parameter's own

    @property
    def gradient_dtypes(self) -> tuple[torch.dtype, ...]:
        """By member."""
        if self.gradient is not None:
            return (self.gradient.dtype,)
        return tuple(member.gradient.dtype for member in self.members)

    @property
    def key(self) -> tuple[int, int, int]:
        """Equal for the same turn of the same step."""
        return self.members[0].number, len(self.members), self.step


@dataclass
class _Fetched:
    """Cells of a turn on the device, beside what they are copies of."""

    key: tuple[int, int, int]
    home: State
    here: State
    arrived: torch.cuda.Event | None
    copied: list[_Version]  # versions of `home` that `here` holds

    def is_of(self, turn: Turn) -> bool:
        """Whether these are that turn's cells, and nobody wrote to them since."""
        home = {cell: turn.state[cell] for cell in self.home}
        return self.key == turn.key and self.copied == _versions(home)


class Ferry:
    """Brings the cells that turns ask for.

    On CUDA everything crosses on one side stream, in order: no cell is fetched before it came home.
    It waits for a step before that step's cells go home and their memory is used again. Elsewhere
    the same copies are made at once.
    """

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines = pipelines
        self._away = [tuple(_away(pipeline)) for pipeline in pipelines]
        self._at_hand: dict[tuple[int, frozenset[str]], Pipeline] = {}
        self._ahead: _Fetched | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def carries(self, layer: int) -> bool:
        """Whether any cell of this layer's pipeline lives in host memory."""
        return bool(self._away[layer])

    @contextlib.contextmanager
    def carrying(self, turn: Turn, following: Turn | None) -> Iterator[tuple[Pipeline, State]]:
        """Give pipeline and state to step a turn with; meanwhile fetch for the one that follows.

        If another follows, or someone writes to its cells before, that was in vain: no harm.
        """
        fetched, self._ahead = self._ahead, None
        if fetched is None or not fetched.is_of(turn):
            fetched = self._fetch(turn)
        if following is not None:
            self._ahead = self._fetch(following)
        layer, device = turn.batch.layer, turn.batch.device
        if fetched is None:
            yield self._pipelines[layer], turn.state
            return
        if fetched.arrived is not None:
            torch.cuda.current_stream(device).wait_event(fetched.arrived)
        before = _versions(fetched.here)
        yield self._with_at_hand(layer, fetched.here), turn.state | fetched.here
        self._bring_home(fetched, before, device)

    def settle(self) -> None:
        """Forget what was fetched ahead, and wait until everything is home."""
        self._ahead = None
        for stream in self._streams.values():
            stream.synchronize()

    def _fetch(self, turn: Turn) -> _Fetched | None:
        """Begin to copy what the turn asks for, if that is anything."""
        away = self._away[turn.batch.layer]
        due = {cell: codec for cell, slot, codec in away if turn.step % slot.visits == 0}
        home, device = {cell: turn.state[cell] for cell in due}, turn.batch.device
        if not due:
            return None
        if sum(piece.nbytes for piece in _pieces(home)) > LIMIT:
            if device in self._streams:  # what came home on an earlier step may be read now
                torch.cuda.current_stream(device).wait_stream(self._streams[device])
            return None
        with self._aside(device) as stream:
            here = {cell: codec.stage(home[cell], device) for cell, codec in due.items()}
            arrived = None if stream is None else stream.record_event()
        return _Fetched(turn.key, home, here, arrived, _versions(home))

    def _bring_home(self, fetched: _Fetched, before: list[_Version], device: torch.device) -> None:
        """Copy the pieces that are no longer of the versions they were fetched with."""
        ahead = self._ahead
        unchanged = ahead is not None and ahead.copied == _versions(ahead.home)
        pairs = zip(_pieces(fetched.home), _pieces(fetched.here), before, strict=True)
        with self._aside(device) as stream:
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(device))
            for home, here, version in pairs:
                if _version(here) != version:
                    tell_crossed(home.nbytes, FROM_DEVICE)
                    home.copy_(here, non_blocking=stream is not None)
        if ahead is not None and unchanged:  # a neighbour in a stack has the same versions as this
            ahead.copied = _versions(ahead.home)

    def _with_at_hand(self, layer: int, here: State) -> Pipeline:
        """The pipeline that finds these cells on the device."""
        key = layer, frozenset(slot.name for cell, slot, _ in self._away[layer] if cell in here)
        if key not in self._at_hand:
            pipeline = self._pipelines[layer]
            storage = AtHand(pipeline.storage, key[1])
            self._at_hand[key] = replace(pipeline, storage=storage)
        return self._at_hand[key]

    @contextlib.contextmanager
    def _aside(self, device: torch.device) -> Iterator[torch.cuda.Stream | None]:
        """What is done within is done on the side stream, where there are streams."""
        if device.type != "cuda":
            yield None
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(self._streams[device]):
            yield self._streams[device]


def _away(pipeline: Pipeline) -> Iterator[tuple[str, Slot, Codec]]:
    """The cells in host memory."""
    for cell, slot in pipeline.cells():
        codec = pipeline.storage.codec(slot)
        if codec.offloaded:
            yield cell, slot, codec


def _pieces(state: State) -> list[Tensor]:
    return [piece for pieces in state.values() for piece in pieces.values()]


def _versions(state: State) -> list[_Version]:
    return [_version(piece) for piece in _pieces(state)]


def _version(tensor: Tensor) -> _Version:
    return tensor.data_ptr(), tensor._version
