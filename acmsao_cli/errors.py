"""Every way a run can end, as one tree; the number is the exit code.

AcmsaoError                     1   unexpected fault
├── ConfigError                 2   bad request or recipe
│   └── OptimizerError          2   an optimizer that cannot be composed or continued as asked
├── InputError                  3   unusable input
│   ├── ModelError              3
│   └── DataError               3
├── RunLockedError              4   the run folder is in use
├── CheckpointError             5   checkpoint unusable, or not of this recipe, model or data
├── OutputError                 6   disk full, read-only, or an export that does not load back
├── DivergedError               7   loss or weights are no longer finite
├── DoesNotFitError             8   planned or real memory exceeds what there is
│   └── MemoryRanOutError       8   it ran out while steps were taken
├── WorkerError                 9   a data worker died
└── StoppedError            128+n   stopped by signal n after saving

An error is a value: a message that says what and where, a hint that says how to mend it. Only
`cli/app.py` prints errors and turns them into exit codes.
"""

from __future__ import annotations

import signal


class AcmsaoError(Exception):
    """What went wrong and where (`message`), and how to mend it (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"help: {hint}")  # a traceback shows it; the program prints it itself


class ConfigError(AcmsaoError):
    """The request or the recipe is wrong; nothing was loaded."""

    exit_code = 2


class OptimizerError(ConfigError):
    """An optimizer that cannot be composed, or cannot continue the state it was given."""


class InputError(AcmsaoError):
    """A model or a data set that cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """A model that is missing, malformed or refused."""


class DataError(InputError):
    """A data set that is missing, malformed or refused."""


class RunLockedError(AcmsaoError):
    """Another process is writing to the run folder."""

    exit_code = 4


class CheckpointError(AcmsaoError):
    """A checkpoint that is damaged, or not of this recipe, model or data."""

    exit_code = 5


class OutputError(AcmsaoError):
    """A file could not be written, or does not load back."""

    exit_code = 6


class DivergedError(AcmsaoError):
    """The loss or the weights stopped being finite."""

    exit_code = 7


class DoesNotFitError(AcmsaoError):
    """The run needs more memory than there is."""

    exit_code = 8


class MemoryRanOutError(DoesNotFitError):
    """Memory ran out while steps were taken; `early`: among the first ones of this process."""

    def __init__(self, message: str, *, early: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.early = early


class WorkerError(AcmsaoError):
    """A data worker died."""

    exit_code = 9


class StoppedError(AcmsaoError):
    """A signal stopped the run after its state was saved; exit code 128 + signal number."""

    def __init__(self, number: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
