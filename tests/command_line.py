"""The command line, called as a shell would."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from acmsao_cli.cli.app import main

# What a terminal obeys instead of showing it.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LONGEST = 4000


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Acmsao = Callable[..., Outcome]


def refused(outcome: Outcome, code: int, *words: str) -> None:
    """The outcome is an error of this code that says these words in a few lines that a terminal
    shows as they are, without a traceback.
    """
    assert outcome.code == code, outcome.err
    assert "error: " in outcome.err
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    for word in words:
        assert word in said, outcome.err
    assert len(outcome.err) < LONGEST, outcome.err[:LONGEST]
    for text in (outcome.out, outcome.err):
        assert not UNSEEN.search(text), ascii(text)


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
