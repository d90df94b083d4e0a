"""How commands end: one line that says what is wrong, one that helps, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import acmsao_cli
from acmsao_cli import __version__, errors
from acmsao_cli.cli.console import safe
from acmsao_cli.config import layers
from acmsao_cli.errors import AcmsaoError, DoesNotFitError, StoppedError

Acmsao = Callable[..., Any]

USAGE = {
    "unknown command": (("trian",), "no such command 'trian'"),
    "near command": (("validat",), "Did you mean 'validate'"),
    "unknown option": (("validate", "quickstart", "--prest", "cpu"), "no such option: --prest"),
    "missing argument": (("validate",), "missing argument 'RECIPE'"),
    "missing value": (("validate", "quickstart", "--set"), "option '--set' requires an argument"),
    "too many": (("validate", "quickstart", "16gb"), "unexpected extra argument"),
    "no choice": (("schema", "--family", "sd15"), "'sd15' is not one of 'sdxl', 'causal_lm'"),
    "no command of a group": (("recipes",), "`acmsao recipes` needs a command"),
}


@pytest.mark.parametrize(("arguments", "says"), USAGE.values(), ids=list(USAGE))
def test_a_mistake_in_the_arguments_is_one_line_and_one_of_help(
    acmsao: Acmsao, arguments: tuple[str, ...], says: str
) -> None:
    outcome = acmsao(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    first, second = outcome.err.splitlines()
    assert first.startswith("error: ")
    assert says in first
    assert second.startswith("  help: `acmsao")


def all_errors(root: type[AcmsaoError] = AcmsaoError) -> Iterator[type[AcmsaoError]]:
    yield root
    for inner in root.__subclasses__():
        yield from all_errors(inner)


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind is not StoppedError])
def test_every_error_ends_with_its_own_exit_code(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch, kind: type[AcmsaoError]
) -> None:
    monkeypatch.setattr(layers, "resolve", raising(kind("it broke", hint="mend it")))
    outcome = acmsao("validate", "quickstart")
    assert outcome.code == kind.exit_code
    assert outcome.err == "error: it broke\n  help: mend it\n"


def test_the_exit_codes_are_those_drawn_at_the_top_of_the_errors() -> None:
    lines = (errors.__doc__ or "").splitlines()
    for kind in all_errors():
        words = next(line.split() for line in lines if f"{kind.__name__} " in line)
        assert ("128+n" if kind is StoppedError else str(kind.exit_code)) in words


def test_a_stopped_run_ends_with_the_signals_code(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 15):
        monkeypatch.setattr(layers, "resolve", raising(StoppedError(number, "stopped")))
        assert acmsao("validate", "quickstart").code == 128 + number


def test_long_errors_keep_their_lines(acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch) -> None:
    error = DoesNotFitError(
        "this run needs 20.1 GB; preset 16gb allows 15.2 GB\n  weights 5.1   gradients 5.1",
        hint="any one of these fits\n--set training.batch_size=1   saves 3.0 GB",
    )
    monkeypatch.setattr(layers, "resolve", raising(error))
    assert acmsao("validate", "quickstart").err == (
        "error: this run needs 20.1 GB; preset 16gb allows 15.2 GB\n"
        "  weights 5.1   gradients 5.1\n"
        "  help: any one of these fits\n"
        "    --set training.batch_size=1   saves 3.0 GB\n"
    )


@pytest.mark.parametrize("arguments", [("validate", "nope"), ("validate", "--nope"), ("nope",)])
def test_with_json_an_error_is_also_a_line_for_programs(
    acmsao: Acmsao, arguments: tuple[str, ...]
) -> None:
    outcome = acmsao(*arguments, "--json")
    event = json.loads(outcome.out)
    assert event["event"] == "error"
    assert event["exit_code"] == outcome.code == 2
    assert outcome.err == f"error: {event['message']}\n  help: {event['hint']}\n"


def test_a_fault_leaves_a_report_and_no_traceback(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layers, "resolve", raising(ZeroDivisionError("nothing to share")))
    outcome = acmsao("validate", "quickstart")
    assert outcome.code == 1
    (report,) = tmp_path.glob("acmsao-fault-*.txt")
    assert outcome.err == (
        "error: unexpected fault: ZeroDivisionError: nothing to share\n"
        f"  help: this is a bug; details are in {report}\n"
    )
    text = report.read_text()
    assert "Traceback" in text
    assert "command: acmsao validate quickstart" in text
    assert f"acmsao {__version__}" in text


def test_where_nothing_can_be_written_a_report_goes_among_temporary_files(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(layers, "resolve", raising(ZeroDivisionError()))
    monkeypatch.setattr("acmsao_cli.cli.fault.Path.cwd", lambda: tmp_path / "gone")
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    assert acmsao("validate", "quickstart").code == 1
    assert list(spare.glob("acmsao-fault-*.txt"))


def test_an_interrupted_command_says_nothing(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "resolve", raising(KeyboardInterrupt()))
    outcome = acmsao("validate", "quickstart")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    child = command("schema", stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        child = command("schema", stdout=full, stderr=subprocess.PIPE, cwd=tmp_path)
        _, said = child.communicate()
    assert said.startswith(b"error: the disk is full")
    assert child.returncode == 6


def test_without_arguments_the_help_is_shown(acmsao: Acmsao) -> None:
    outcome = acmsao()
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: acmsao ")


def test_the_version_is_told(acmsao: Acmsao) -> None:
    outcome = acmsao("--version")
    assert (outcome.code, outcome.out) == (0, f"acmsao {__version__}\n")


def test_what_a_file_says_cannot_move_the_cursor(acmsao: Acmsao, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        'model: {family: sdxl, "a\\e[2Jb\\u202e": 1}\nmethod: {kind: full}\n'
    )
    said = acmsao("validate", "./r.yaml").err
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "a\\x1b[2Jb\\x202e" in said
    assert safe("plain, é 漢\nnext") == "plain, é 漢\nnext"


def test_arguments_that_are_no_text_are_refused(tmp_path: Path) -> None:
    child = command(
        "validate", "quickstart", "--set", "about=\udcff", stderr=subprocess.PIPE, cwd=tmp_path
    )
    _, said = child.communicate()
    assert said.startswith(b"error: a control character in --set about=")
    assert child.returncode == 2


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def command(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    root = str(Path(acmsao_cli.__file__).parents[1])
    words = [sys.executable, "-m", "acmsao_cli", *arguments]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": root}, **options)
