"""A log that may be lost: a run goes on without whoever read it, or the disk it was kept on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any


class Outlet:
    """A text stream of which the first failure is told to `lost`, once; then all goes nowhere.

    Stands in for the stream where text is written to it; all else is the stream's.
    """

    def __init__(self, stream: IO[str], lost: Callable[[str], None]) -> None:
        self.stream = stream
        self.lost = lost
        self.is_lost = False

    def write(self, text: str) -> int:
        """Write, if that can still be done."""
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if that can still be done."""
        self._attempt(self.stream.flush)

    def _attempt(self, do: Callable[[], object]) -> None:
        if self.is_lost:
            return
        try:
            do()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.is_lost = True
            lead_nowhere(self.stream)
            reason = getattr(error, "strerror", None) or str(error)
            self.lost(f"{self.name} cannot be written ({reason}); the run goes on without it")

    @property
    def name(self) -> str:
        """The stream's name, as people say it."""
        return str(getattr(self.stream, "name", "a log")).strip("<>")

    def __getattr__(self, attribute: str) -> Any:
        """What a terminal is asked for."""
        return getattr(self.stream, attribute)


def outlet(stream: IO[str]) -> Outlet:
    """An outlet to stdout or stderr; that stdout is lost is said on stderr."""

    def lost(message: str) -> None:
        if stream is not sys.stderr:  # stdout may belong to a program
            with suppress(OSError, ValueError):
                print(f"note: {message}", file=sys.stderr, flush=True)

    return Outlet(stream, lost)


def lead_nowhere(stream: IO[str]) -> None:
    """Let what the stream still holds be written to nowhere: it could not be closed otherwise."""
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def open_what_is_closed() -> None:
    """Give the process a stdout and a stderr that lead nowhere where it was started without.

    The next file to be opened would otherwise take their number, and what libraries print.
    """
    for number in (1, 2):
        with suppress(OSError):
            os.fstat(number)
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
