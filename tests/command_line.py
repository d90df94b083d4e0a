"""The command line, called as a shell would."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from acmsao_cli.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Acmsao = Callable[..., Outcome]


@pytest.fixture
def acmsao(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Acmsao:
    """Run a command in an empty folder, on a terminal of 80 columns, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: str) -> Outcome:
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(stop.value.code, captured.out, captured.err)

    return run
