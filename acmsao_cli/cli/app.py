"""The program: its commands, and the one place where an error becomes text and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from acmsao_cli import __version__
from acmsao_cli.cli import (
    ablate,
    compare,
    data,
    models,
    optimizers,
    plan,
    presets,
    recipes,
    resume,
    schema,
    train,
    validate,
)
from acmsao_cli.cli.console import error_event, print_error, print_json
from acmsao_cli.cli.fault import write_report
from acmsao_cli.cli.outlet import lead_nowhere, open_what_is_closed
from acmsao_cli.errors import AcmsaoError, ConfigError, OutputError

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = 130  # 128 + SIGINT
ENDING = (signal.SIGTERM, signal.SIGHUP)
PIPE_CLOSED = 141  # 128 + SIGPIPE: what a program in C would have ended with

# In the order of `acmsao --help`: a function is a command, an app is a group of commands. They
# import what they need when they run: pydantic alone would take help half of its time.
COMMANDS: tuple[tuple[str, Callable[..., None] | typer.Typer], ...] = (
    ("train", train.train),
    ("resume", resume.resume),
    ("plan", plan.plan),
    ("validate", validate.validate),
    ("recipes", recipes.app),
    ("presets", presets.app),
    ("data", data.app),
    ("models", models.app),
    ("optimizers", optimizers.app),
    ("compare", compare.compare),
    ("ablate", ablate.ablate),
    ("schema", schema.schema),
)


class InOrder(TyperGroup):
    """Lists the commands as COMMANDS does; typer would put all groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names."""
        return [name for name, _ in COMMANDS]


app = typer.Typer(
    cls=InOrder,
    name="acmsao",
    help="Fine-tune SDXL and causal language models on small GPUs from a shell.",
    epilog="Start here: acmsao train quickstart",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: twice as fast, and the same on every terminal
)


for command_name, command in COMMANDS:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=command_name)
    else:
        app.command(command_name)(command)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"acmsao {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options that come before any command."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; errors go to stderr, and with --json to stdout as well."""
    argv = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    open_what_is_closed()
    try:
        with ended_by_signals():
            require_current_folder()
            code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = PIPE_CLOSED
    except AcmsaoError as error:
        code = _tell(error, argv)
    except typer.TyperException as error:
        code = _tell(_usage(error), argv)
    except Exception as error:
        code = _tell(_unforeseen(error, argv), argv)
    _leave_stdout_quietly()
    sys.exit(code)


def _run(argv: list[str]) -> int:
    """Run a command without typer's own handling of errors; return the exit code."""
    root = typer.main.get_command(app)
    try:
        with root.make_context("acmsao", argv) as context:
            root.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def require_current_folder() -> None:
    """Raise ConfigError where the folder that commands start from has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used: {error.strerror}",
            hint="cd to one that is there",
        ) from None


def _tell(error: AcmsaoError, argv: Sequence[str]) -> int:
    # Nobody may read us, or the disk of a log be full: the code still tells.
    if "--json" in argv:
        with suppress(OSError):
            print_json(error_event(error))
    with suppress(OSError):
        print_error(error)
    return error.exit_code


def _usage(error: typer.TyperException) -> ConfigError:
    """Put a mistake in the arguments as one of ours."""
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "acmsao"
    if not message or "\n" in message:  # typer gives the whole help where the command is missing
        message = f"`{command}` needs a command"
    return ConfigError(
        message[:1].lower() + message[1:], hint=f"`{command} --help` shows how to call it"
    )


def _unforeseen(error: Exception, argv: Sequence[str]) -> AcmsaoError:
    """Put anything else as a full disk, or as a fault of ours with a report file."""
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return OutputError(f"the disk is full: {error}", hint="make room and run it again")
    path = write_report(error, argv)
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    if path is None:
        return AcmsaoError(f"unexpected fault: {what}")
    return AcmsaoError(f"unexpected fault: {what}", hint=f"this is a bug; details are in {path}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the process at once with the code that shells give them.

    A run that can save something has handlers of its own meanwhile. What is ignored stays so.
    SIGUSR1, which asks for a checkpoint, does nothing where there is none to make.
    """
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, _: None)
    ended = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in ended:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    try:
        yield
    finally:
        for number in ended:
            signal.signal(number, signal.SIG_DFL)


def _leave_stdout_quietly() -> None:
    """Keep the interpreter from complaining when its last flush finds nobody there."""
    try:
        sys.stdout.flush()
    except OSError:
        lead_nowhere(sys.stdout)
