"""Text for people and lines for programs, as they leave the commands."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from acmsao_cli.errors import AcmsaoError
from acmsao_cli.privacy import private, private_values

# What could move a terminal's cursor or turn its text around, when a file name or a key is echoed.
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

WIDEST, NARROWEST = 120, 30


def print_error(error: AcmsaoError) -> None:
    """Say on stderr what went wrong and how to mend it."""
    first, *rest = error.message.splitlines() or [type(error).__name__]
    lines = [f"error: {first}", *rest]
    if error.hint:
        opening, *more = error.hint.splitlines()
        lines += [f"  help: {opening}", *(f"    {line.strip()}" for line in more)]
    print(safe("\n".join(lines)), file=sys.stderr, flush=True)


def error_event(error: AcmsaoError) -> dict[str, Any]:
    """Return the last line that --json prints of a command that failed."""
    return {
        "event": "error",
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def print_json(event: Any) -> None:
    """Print one line for a program."""
    print(json.dumps(private_values(event)), flush=True)


def print_table(rows: Iterable[Sequence[str]], *, indent: int = 0, wrap: bool = False) -> None:
    """Print rows with their columns aligned; the last is as wide as it is, or wrapped to fit."""
    rows = [[safe(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        start = " " * indent + "  ".join([*cells, ""])
        room = terminal_width() - len(start)
        lines = textwrap.wrap(row[-1], max(room, NARROWEST)) if wrap else [row[-1]]
        print(f"{start}{lines[0] if lines else ''}".rstrip())
        for line in lines[1:]:
            print(" " * len(start) + line)


def print_text(text: str, *, indent: int = 0) -> None:
    """Print paragraphs wrapped to fit; one laid out in columns is only split between them."""
    margin = " " * indent
    room = max(terminal_width() - indent, NARROWEST)
    for number, paragraph in enumerate(safe(text).split("\n\n")):
        if number:
            print()
        if "  " in paragraph.strip() or "<-" in paragraph:
            lines = [part for line in paragraph.splitlines() for part in _columns(line, room)]
            print(textwrap.indent("\n".join(lines), margin))
        else:
            print(textwrap.indent(textwrap.fill(paragraph, room), margin))


def _columns(line: str, room: int) -> list[str]:
    """The line, or where it does not fit its columns below each other."""
    return [line] if len(line) <= room else re.split(r" {2,}", line)


def terminal_width() -> int:
    """Columns to write in; no wider than can be read."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def safe(text: str) -> str:
    """Return private text in which control characters are seen rather than obeyed."""
    return UNSAFE.sub(lambda found: f"\\x{ord(found.group()):02x}", private(text))
