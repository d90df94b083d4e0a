"""Workers change nothing but the time; a worker that ends badly, and an item that turns bad after
it was looked at, are told by the item's name.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command_line import acmsao
from micro.shelf import sdxl, shelf
from safetensors.torch import load_file

from acmsao_cli.data import pictures, workers
from acmsao_cli.data.workers import AHEAD, Job, in_order
from acmsao_cli.engine import loop
from acmsao_cli.errors import WorkerError
from acmsao_cli.memory import choose
from acmsao_cli.memory.planner import MemoryPlan, plan
from acmsao_cli.models.sdxl.trainee import SdxlTrainee

__all__ = ["acmsao", "sdxl", "shelf"]

SKIP = ("-s", "data.on_bad=skip", "-s", "data.max_bad=0.2")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Micro models lose by more."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_orphans() -> Iterator[None]:
    """However a test ends, no worker is left."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def job(place: str, code: str) -> Job[Any]:
    """An expression for a worker, which knows no modules of the tests."""
    return Job(place, partial(eval, code))


def imported(module: str) -> str:
    return f"__import__({module!r})"


OS, TIME = imported("os"), imported("time")


def die(number: int) -> str:
    return f"{OS}.kill({OS}.getpid(), {number})"


# The pool


def test_results_come_in_order_and_no_more_are_begun_than_may_wait(tmp_path: Path) -> None:
    """The first takes longest, and what is not taken holds up the rest."""
    code = "open({file!r}, 'w').close() or {time}.sleep({pause}) or {n}"
    jobs = [
        job("", code.format(file=str(tmp_path / f"{n}"), time=TIME, pause=0.2 * (not n), n=n))
        for n in range(12)
    ]
    with in_order(jobs, 2) as results:
        assert next(results) == 0
        time.sleep(0.2)
        assert len(list(tmp_path.iterdir())) <= 2 * AHEAD
        assert list(results) == list(range(1, 12))


def test_what_a_terminal_sends_to_all_does_not_end_a_worker(capfd: Any) -> None:
    """Neither before it has begun nor later."""
    with in_order([job("", "5"), job("", "6")], 1) as results:
        for again in (False, True):
            for child in psutil.Process().children():
                for number in workers.SHARED_SIGNALS:
                    child.send_signal(number)
            assert next(results) == 5 + again
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (die(signal.SIGKILL), "was killed by signal 9, likely out of memory"),
        (die(signal.SIGSEGV), "was killed by signal 11"),
        (f"{imported('sys')}.exit(3)", "ended with exit code 3"),
        (f"{TIME}.sleep(60)", "gave no answer for 1 seconds"),
    ],
    ids=["killed", "crashed", "left", "hangs"],
)
def test_a_worker_that_fails_is_told_with_the_item_it_had(
    monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    jobs = [job("a.png", "1"), job("b.png", code), *[job("later.png", "1")] * 3]
    said = rf"^b\.png: the data worker that ha[ds] it {words}"
    with in_order(jobs, 2) as results, pytest.raises(WorkerError, match=said) as failed:
        list(results)
    assert failed.value.exit_code == 9
    assert "nothing is lost" in str(failed.value.hint)


def test_what_nobody_foresaw_is_raised_where_the_results_are_taken() -> None:
    with in_order([job("a.png", "1 / 0")], 1) as results, pytest.raises(RuntimeError) as error:
        next(results)
    assert "ZeroDivisionError: division by zero" in str(error.value)
    assert "Traceback" in error.value.__notes__[0]


ORPHANS = f"""
from functools import partial
import psutil
from acmsao_cli.data.workers import Job, in_order
code = {f"{TIME}.sleep(60)"!r}
with in_order([Job(str(n), partial(eval, code)) for n in range(2)], 2) as results:
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    next(results)
"""


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["at their start", "at work"])
def test_workers_end_with_their_parent_however_it_ended(seconds: float) -> None:
    """Even those that hang."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(word)) for word in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(seconds)
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


# A run with workers


@pytest.fixture
def short(sdxl: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose data may be spoilt, for runs that are planned once and that end with their
    last checkpoint: these two take most of a micro run.
    """
    plans: list[MemoryPlan] = []

    def planned(*arguments: Any) -> MemoryPlan:
        if not plans:
            plans.append(plan(*arguments))
        return plans[0]

    monkeypatch.setattr(choose, "plan", planned)
    monkeypatch.setattr(loop, "finish", lambda *rest: {})
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in (shelf / "pictures").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    recipe = json.loads(sdxl.read_text())
    recipe["data"]["source"] = "pictures"
    recipe["samples"] = {}
    sdxl.write_text(json.dumps(recipe))
    return sdxl


def weights_of(run: str) -> dict[str, torch.Tensor]:
    """The trained weights of a run's last checkpoint."""
    newest = sorted(Path(run, "checkpoints").iterdir())[-1]
    return dict(load_file(newest / "weights.safetensors"))


def assert_same_bits(one: str, other: str) -> None:
    found = weights_of(other)
    for name, value in weights_of(one).items():
        assert torch.equal(value, found[name]), name


def refused(outcome: Any, code: int, *words: str) -> None:
    """The outcome is an error of this code that says these words, without a traceback."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in " ".join(outcome.err.split()), outcome.err


def test_workers_change_no_bit_of_a_run_that_was_stopped_within_an_epoch_and_goes_on(
    acmsao: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("train", str(short), "-s", "data.flip=true")
    assert acmsao(*options, "-o", "alone").code == 0
    advance, two = loop.advance, ("-o", "helped", "-s", "data.workers=2")

    def interrupted(run: Any, *rest: Any) -> Any:
        if run.step == 1:
            assert run.stream.batches_per_epoch > 2
            signal.raise_signal(signal.SIGTERM)
        return advance(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "advance", interrupted)
        refused(acmsao(*options, *two), 143, "stopped at step 2 of 4")
    resumed = acmsao(*options, *two[:2], "-s", "data.workers=1")
    assert resumed.code == 0, resumed.err
    assert "continuing at step 2" in resumed.out
    assert "data.workers: 2 -> 1" in resumed.out
    assert_same_bits("alone", "helped")


def test_a_worker_that_is_killed_ends_the_run_with_the_picture_and_the_remedy(
    acmsao: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(opener: Any, path: Path, place: str, stamp: Any) -> Any:
        known = partial(opener, path, place, stamp)
        return partial(eval, die(signal.SIGKILL)) if path.name == "3.png" else known

    monkeypatch.setattr(pictures, "partial", deadly)
    outcome = acmsao("train", str(short), "-s", "data.workers=2")
    refused(outcome, 9, "pictures/3.png: the data worker", "signal 9", "--set data.workers=0")
    assert not Path("runs").exists()


def test_the_keyboard_ends_a_run_with_its_workers_and_nothing_is_said_of_them(
    acmsao: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a terminal sends, it sends to all of them."""
    gather = workers.Crew.gather

    def interrupted(self: Any, seconds: float) -> bool:
        for child in psutil.Process().children():
            child.send_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return gather(self, seconds)

    monkeypatch.setattr(workers.Crew, "gather", interrupted)
    outcome = acmsao("train", str(short), "-s", "data.workers=2")
    told = "error: stopped; nothing new had to be saved\n  help: the same command goes on\n"
    assert outcome.err == told
    assert outcome.code == 130


# Items that turn bad after they were looked at


def spoil(patch: pytest.MonkeyPatch, name: str, change: Callable[[Path], None]) -> None:
    """Change a picture between the look at all of them and their encoding."""
    encode = SdxlTrainee.encode

    def spoilt(self: SdxlTrainee, *rest: Any) -> Any:
        change(Path("pictures", name))
        return encode(self, *rest)

    patch.setattr(SdxlTrainee, "encode", spoilt)


def test_a_picture_that_changes_while_the_run_starts_ends_it(
    acmsao: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "3.png", Path.unlink)
    said = "pictures/3.png: changed since it was looked at: it is gone"
    refused(acmsao("train", str(short)), 3, said, "nothing writes to the data")


def test_a_run_that_lost_a_picture_is_as_one_that_never_had_it_and_goes_on_so(
    acmsao: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path("pictures/3.png").read_bytes()
    options = ("train", str(short), *SKIP, "-s", "data.workers=1", "-o")
    with monkeypatch.context() as patch:
        spoil(patch, "3.png", Path.unlink)
        lost = acmsao(*options, "lost", "-s", "training.steps=2")
    assert lost.code == 0, lost.err
    assert "1 bad item is left out:" in lost.out
    assert "pictures/3.png: changed" in "".join(lost.out.split("\n"))
    kept = json.loads(Path("lost/data.json").read_text())
    assert "3.png" in kept["left_out"][0]
    assert len(kept["items"]) == 5

    Path("pictures/3.png").write_bytes(there)
    with monkeypatch.context() as patch:
        spoil(patch, "4.png", Path.touch)
        unable = acmsao(*options, "lost")
        refused(unable, 5, "pictures/4.png: changed", "cannot go on without it")
    resumed = acmsao(*options, "lost")
    assert resumed.code == 0, resumed.err
    assert json.loads(Path("lost/data.json").read_text())["left_out"] == kept["left_out"]
    for suffix in ("png", "txt"):
        Path(f"pictures/3.{suffix}").unlink()
    assert acmsao(*options, "never").code == 0
    assert_same_bits("never", "lost")
