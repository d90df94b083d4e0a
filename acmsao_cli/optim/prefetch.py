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
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Pieces, State
from acmsao_cli.optim.storage.offloaded import Offloaded, bring_home
from acmsao_cli.optim.storage.policy import AtHand

# Bytes of a turn's cells that are brought as a whole. Those of a turn with more cross block by
# block, as they are asked for and without being fetched ahead.
LIMIT: Final = 128 << 20

_Version: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Turn:
    """Members of a batch that are stepped together, their state, and the step they come to."""

    members: Sequence[Member]
    batch: Batch
    numbers: Tensor
    state: State
    step: int

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for the same turn of the same step."""
        return self.members[0].number, len(self.members), self.step


@dataclass
class _Crossing:
    """A turn's cells at home and on the device."""

    turn: Turn
    home: State
    here: State
    versions: list[_Version]  # of `home` when it was copied
    arrived: torch.cuda.Event | None

    def is_of(self, turn: Turn) -> bool:
        """Whether these are that turn's cells, unchanged since they were copied."""
        home = {cell: turn.state[cell] for cell in self.home}
        return self.turn.key == turn.key and self.versions == _versions(home)


class Ferry:
    """Brings the cells that turns ask for.

    On CUDA everything crosses on one side stream, which waits for a step before its cells go home:
    what it frees is used again only after that, and a cell is never fetched before it came home.
    Elsewhere the same copies are made at once.
    """

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines = pipelines
        self._away = [_cells_away(pipeline) for pipeline in pipelines]
        self._at_hand: dict[tuple[int, frozenset[str]], Pipeline] = {}
        self._ahead: _Crossing | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @contextlib.contextmanager
    def carrying(self, turn: Turn, following: Turn | None) -> Iterator[tuple[Pipeline, State]]:
        """Give the pipeline and the state to step `turn` with; fetch for `following` meanwhile.

        `following` may turn out to be another, or may have changed by then: it is fetched anew.
        """
        crossing, self._ahead = self._ahead, None
        if crossing is None or not crossing.is_of(turn):
            crossing = self._fetch(turn)
        if following is not None:
            self._ahead = self._fetch(following)
        if crossing is None:
            yield self._pipelines[turn.batch.layer], turn.state
            return
        if crossing.arrived is not None:
            torch.cuda.current_stream(turn.batch.device).wait_event(crossing.arrived)
        fetched = _versions(crossing.here)
        yield self._pipeline_at_hand(turn, crossing), turn.state | crossing.here
        self._bring_home(crossing, fetched)

    def settle(self) -> None:
        """Drop what was fetched ahead, and wait until everything is home."""
        self._ahead = None
        for stream in self._streams.values():
            stream.synchronize()

    def _fetch(self, turn: Turn) -> _Crossing | None:
        """Begin to copy what the turn asks for, if there is anything."""
        away = self._away[turn.batch.layer]
        due = {cell: codec for cell, slot, codec in away if turn.step % slot.visits == 0}
        home = {cell: turn.state[cell] for cell in due}
        if not due or sum(piece.nbytes for piece in _pieces(home)) > LIMIT:
            return None
        device = turn.batch.device
        with self._aside(device) as stream:
            here = {cell: codec.stage(home[cell], device) for cell, codec in due.items()}
            arrived = None if stream is None else stream.record_event()
        return _Crossing(turn, home, here, _versions(home), arrived)

    def _bring_home(self, crossing: _Crossing, fetched: list[_Version]) -> None:
        """Copy the pieces that were written."""
        ahead = self._ahead
        unchanged = ahead is not None and ahead.is_of(ahead.turn)
        device = crossing.turn.batch.device
        written = [
            pair
            for pair, before in zip(
                zip(_pieces(crossing.home), _pieces(crossing.here), strict=True),
                fetched,
                strict=True,
            )
            if _version(pair[1]) != before
        ]
        with self._aside(device) as stream:
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(device))
