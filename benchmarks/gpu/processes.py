"""Cases in processes of their own: what one does to the allocator does not reach the next."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch
from cases import SLOWDOWN_AIM, Case
from measuring import FAILED, Asked, Row, measure

from acmsao_cli.memory.cards import CONTEXT_BYTES, GIB

IN_TURNS, IN_SEQUENCE = "in alternation, step by step", "one after the other"


@dataclass(frozen=True)
class Ready:
    """A process is about to step; `free` is what its device has left, None where nobody says."""

    free: int | None


class Child:
    """A case in a fresh process, seen from the one that started it."""

    def __init__(self, case: Case, asked: Asked, limit: float) -> None:
        """Start it; it will wait before its first step."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(case, asked, theirs), daemon=True)
        self._limit, self._row = limit, Row(model=case.model, cap_gib=case.cap_gib)
        self._process.start()
        theirs.close()

    def hear(self) -> Ready | Row:
        """Its row, or that it waits for its turn; a row, too, if it died or was silent too long."""
        heard: Ready | Row
        try:
            if self._pipe.poll(self._limit):
                heard = self._pipe.recv()
            else:
                self._process.terminate()
                heard = self._lost(f"silent for {self._limit:.0f} s, and stopped")
        except (EOFError, OSError):
            self._process.join()
            heard = self._lost(f"its process ended with exit code {self._process.exitcode}")
        if not isinstance(heard, Ready):
            self._process.join()
        return heard

    def step(self) -> Ready | Row:
        """Let it take a step."""
        with suppress(OSError):  # it died: that is heard next
            self._pipe.send(None)
        return self.hear()

    def finish(self, heard: Ready | Row) -> Row:
        """Let it take all its steps."""
        while isinstance(heard, Ready):
            heard = self.step()
        return heard

    def _lost(self, why: str) -> Row:
        return self._row | {"status": FAILED, "message": why}


def work(case: Case, asked: Asked, pipe: Connection) -> None:
    """What the process does."""

    def turn() -> None:
        on_gpu = torch.cuda.is_initialized()
        pipe.send(Ready(torch.cuda.mem_get_info()[0] if on_gpu else None))
        pipe.recv()

    pipe.send(measure(case, asked, turn))


def alone(case: Case, asked: Asked, limit: float) -> Row:
    """The case by itself."""
    child = Child(case, asked, limit)
    return child.finish(child.hear())


def beside(case: Case, reference: Case, asked: Asked, limit: float) -> dict[str, Row]:
    """Both rows: stepping in turns where the device holds both, else one after the other."""
    first = Child(reference, replace(asked, alone=False), limit)
    heard = first.hear()
    if not isinstance(heard, Ready) or not has_room(case, heard.free):
        rows = {reference.name: first.finish(heard), case.name: alone(case, asked, limit)}
        return with_ratio(rows, case, reference, IN_SEQUENCE)
    second = Child(case, replace(asked, alone=False), limit)
    other = second.hear()
    while isinstance(heard, Ready) and isinstance(other, Ready):
        heard, other = first.step(), second.step()
    rows = {reference.name: first.finish(heard), case.name: second.finish(other)}
    return with_ratio(rows, case, reference, IN_TURNS)


def has_room(case: Case, free: int | None) -> bool:
    """Whether the case fits beside what is on the device."""
    return free is None or (case.cap_gib or 0.0) * GIB + 2 * CONTEXT_BYTES < free


def with_ratio(rows: dict[str, Row], case: Case, reference: Case, how: str) -> dict[str, Row]:
    """Both rows, the case's with its step time in the reference's, where both have one."""
    seconds, unit = (rows[one.name].get("seconds_per_step") for one in (case, reference))
    if seconds is None or unit is None:
        return rows
    ratio = round(seconds / unit, 3)
    rows[case.name]["ratio"] = {
        "to": reference.name,
        "of step times": ratio,
        "aim": SLOWDOWN_AIM,
        "met": ratio <= SLOWDOWN_AIM,
        "measured": how,
        "same losses": rows[case.name]["losses"] == rows[reference.name]["losses"],
    }
    return rows
