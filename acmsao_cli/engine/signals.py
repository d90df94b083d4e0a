"""Stopping on a signal without losing work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from acmsao_cli.errors import StoppedError


class Interrupted(BaseException):
    """Raised by the signal handler where there is nothing to save.

    Not an Exception: code that answers any failure of a library must not answer this one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Stop:
    """Which signal asked the run to stop, if one did.

    While `stepping`, a signal is only noted: the loop finishes its step, saves, and stops.
    Otherwise there is nothing to save and the signal raises Interrupted on the spot. A second
    signal ends the process at once; the last checkpoint is whole, since checkpoints appear by
    renaming.
    """

    number: int | None = None
    stepping: bool = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if not self.stepping:
            raise Interrupted(number)

    def begin_again(self) -> None:
        """No steps are taken until the run is assembled anew; a signal that came is heeded now."""
        self.stepping = False
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying of them. Raises StoppedError.

    A signal that is ignored already stays so: that is how nohup keeps a run alive.
    """
    stop = Stop()
    heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop.handle) for number in heard}
    try:
        yield stop
    except Interrupted as stopped:
        message = "stopped; nothing new had to be saved"
        raise StoppedError(stopped.number, message) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
