"""The command line grows on purpose only: `--help` of every command is kept in help/.

After a change that is meant, run this file with Python to write them anew.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from acmsao_cli.cli.app import COMMANDS, app, main

KEPT = Path(__file__).parent / "help"


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of every command and group, the program itself first."""

    def visit(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit(inner, (*words, name))

    yield from visit(typer.main.get_command(app), ())


def file_of(words: tuple[str, ...]) -> Path:
    return KEPT / f"{'-'.join(('acmsao', *words))}.txt"


def help_of(words: tuple[str, ...]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_help_is_as_it_was(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # Line breaks are the help library's to choose; the words are ours.
    assert help_of(words).split() == file_of(words).read_text(encoding="utf-8").split()


def test_no_help_is_kept_of_a_command_that_is_gone() -> None:
    assert {file.name for file in KEPT.iterdir()} == {file_of(w).name for w in every_command()}


def test_commands_are_listed_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listing = help_of(()).partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listing.splitlines()] == [name for name, _ in COMMANDS]


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    for kept in KEPT.iterdir():
        kept.unlink()
    for found in every_command():
        file_of(found).write_text(help_of(found), encoding="utf-8")
