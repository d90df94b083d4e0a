"""Who hears what a run tells: a terminal, and with --json a program."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from acmsao_cli import builtin
from acmsao_cli.cli.display import (
    Display,
    both,
    json_lines,
    kept_private,
    open_console,
    warnings_as_notices,
)
from acmsao_cli.engine.events import Finished, Listener
from acmsao_cli.privacy import HOME


def listen(stack: ExitStack, json: bool) -> Listener:
    """The display, and with --json the lines beside it."""
    display = stack.enter_context(Display(open_console(to_stderr=json), next_command))
    listener = kept_private(both(display, json_lines(sys.stdout)) if json else display)
    stack.enter_context(warnings_as_notices(listener))
    return listener


def next_command(event: Finished) -> str:
    """What a user types next: from the quickstarts to a recipe of their own, else to the result."""
    summary = event.summary
    if builtin.name_in(str(summary.get("model", ""))) is not None:
        recipe = "sdxl-lora" if summary.get("family") == "sdxl" else "llm-lora"
        return f"acmsao recipes copy {recipe} my-{recipe}.yaml"
    return f"ls {quoted(event.folder / 'final')}"


def quoted(path: Path) -> str:
    """The path for a shell, which knows `~` only where it is not quoted."""
    home, slash, rest = str(path).partition("/")
    if home == HOME and slash:
        return f"{HOME}/{shlex.quote(rest)}"
    return shlex.quote(str(path))
