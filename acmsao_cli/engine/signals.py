"""Stopping on a signal without losing work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from acmsao_cli.errors import StoppedError


class Interrupted(BaseException):
    """Raised by the signal handler where there is nothing to save.

    Not an Exception: code that answers any failure of a library must not answer this one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVING = signal.SIGUSR1


@dataclass
class Stop:
    """Which signal asked the run to stop, if one did.

    While `stepping`, a signal is only noted: the loop finishes its step, saves, and stops.
    Otherwise there is nothing to save and the signal raises Interrupted on the spot. A second
    signal ends the process at once; the last checkpoint is whole, since checkpoints appear by
    renaming. Another signal asks for a checkpoint now, and the run goes on.
    """

    number: int | None = None
    stepping: bool = False
    saving: bool = False
    closing: bool = False  # all is done: a signal that comes now finds nothing to stop

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.number is not None:
            leave_terminal()
            os._exit(128 + number)
        self.number = number
        if not self.stepping and not self.closing:
            raise Interrupted(number)

    def ask_to_save(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal that asks for a checkpoint: at the end of the coming step."""
        self.saving = True

    def asked_to_save(self) -> bool:
        """Whether a checkpoint was asked for since this was last looked at."""
        asked, self.saving = self.saving, False
        return asked

    def heed(self) -> None:
        """No steps are taken for now; a signal that came while they were is heeded now."""
        self.stepping = False
        if self.number is not None:
            raise Interrupted(self.number)


def leave_terminal() -> None:
    """Say that the process ends at once, below the live lines, and show the cursor again."""
    shown = b"\x1b[?25h" if os.isatty(2) else b""
    with suppress(OSError):
        os.write(2, shown + b"\nstopped at once; checkpoints that were made are whole\n")


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note SIGINT, SIGTERM, SIGHUP and SIGUSR1 instead of dying of them. Raises StoppedError.

    A signal that is ignored already stays so: that is how nohup keeps a run alive.
    """
    stop = Stop()
    handlers = {**dict.fromkeys(STOPPING, stop.handle), SAVING: stop.ask_to_save}
    heard = [number for number in handlers if signal.getsignal(number) != signal.SIG_IGN]
    previous: dict[int, Any] = {}
    try:
        for heeded in heard:
            previous[heeded] = signal.signal(heeded, handlers[heeded])
        yield stop
        stop.closing = True
    except Interrupted as stopped:
        message = "stopped; nothing new had to be saved"
        raise StoppedError(stopped.number, message, hint="the same command goes on") from None
    finally:
        stop.closing = True
        for number, handler in previous.items():
            signal.signal(number, handler)
