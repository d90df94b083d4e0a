"""What processes and machines do to a run: disks, locks, logs, clocks, signals, launchers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from command_line import acmsao
from micro.shelf import chat_recipe, lm, shelf
from safetensors.torch import load_file

import acmsao_cli
from acmsao_cli.checkpoint.store import open_checkpoint
from acmsao_cli.cli.app import main
from acmsao_cli.engine import loop
from acmsao_cli.engine.folder import LOCK, RunFolder
from acmsao_cli.errors import RunLockedError

__all__ = ["acmsao", "lm", "shelf"]

ROOT = str(Path(acmsao_cli.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
# What cannot be read: whoever is refused for another reason did not look.
NOTHING = ("-s", "model.source=./nowhere", "-s", "data.source=./nowhere")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Micro models lose by more."""
    torch.set_num_threads(1)


def bits(run: Path) -> dict[str, bytes]:
    """Everything that a run computed, as bytes: weights, state and figures."""
    newest = max((run / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [(row["step"], row["loss"], row["gradient_norm"], row["lr"]) for row in rows]
    found = {"figures": json.dumps(figures).encode(), "step": newest.name.encode()}
    for file in newest.glob("*.safetensors"):
        for name, value in load_file(file).items():
            found[f"{file.stem} {name}"] = value.reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def steps_saved(run: Path) -> list[int]:
    """The steps of the checkpoints, each of which is whole."""
    return sorted(open_checkpoint(path).step for path in (run / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def calm(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to, with every checkpoint."""
    place = tmp_path_factory.mktemp("calm")
    recipe = chat_recipe(shelf, place)
    with pytest.raises(SystemExit) as stop:
        main(("train", str(recipe), "-o", str(place / "out"), "-s", "checkpoint.keep=3"))
    assert stop.value.code == 0
    return place / "out"


@pytest.fixture(scope="module")
def whole(calm: Path) -> dict[str, bytes]:
    """What it computes."""
    return bits(calm)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has something happen once, before the step after so many."""
    advance = loop.advance

    def install(step: int, do: Callable[[], object]) -> None:
        waiting = [do]

        def happening(run: Any, *rest: Any) -> Any:
            if run.step == step and waiting:
                waiting.pop()()
            return advance(run, *rest)

        monkeypatch.setattr(loop, "advance", happening)

    return install


# Disks


def mounted(*arguments: str) -> bool:
    """Whether something could be mounted: only by root, and not in every container."""
    return subprocess.run(("mount", *arguments), check=False, capture_output=True).returncode == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, by root neither."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
    elif mounted("--bind", str(folder), str(folder)):
        mounted("-o", "remount,ro,bind", str(folder))
        yield folder
        subprocess.run(("umount", str(folder)), check=True)
    else:
        subprocess.run(("chattr", "+i", str(folder)), check=True)
        yield folder
        subprocess.run(("chattr", "-i", str(folder)), check=True)


UNWRITABLE = {"a run": "read-only", "a run in it": "read-only/runs/one"}


@pytest.mark.parametrize("output", UNWRITABLE.values(), ids=list(UNWRITABLE))
def test_a_place_that_is_read_only_is_found_before_data_and_model(
    acmsao: Any, lm: Path, read_only: Path, output: str
) -> None:
    refused = acmsao("train", str(lm), "-o", output, *NOTHING)
    assert refused.code == 6
    assert f"cannot write to {output}: " in refused.err
    assert "help: " in refused.err


def test_runs_that_cannot_be_made_here_are_refused(
    acmsao: Any, lm: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(read_only)
        refused = acmsao("train", str(lm), *NOTHING)
    assert refused.code == 6
    assert "cannot write to runs: " in refused.err


def test_a_place_that_is_read_only_is_found_before_anything_slow_is_loaded(
    lm: Path, read_only: Path
) -> None:
    """Within two seconds, of which the imports of torch would take more."""
    code = (
        "import sys; from acmsao_cli.__main__ import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code, "train", str(lm), "-o", str(read_only / "out")],
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 6, refused.stderr
    assert "cannot write to" in refused.stderr


def test_a_disk_that_does_not_keep_what_is_written_is_found_at_the_start(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(lambda name: ".probe" in name))
    refused = acmsao("train", str(lm), "-o", "out", *NOTHING)
    assert refused.code == 6
    assert "Input/output error" in refused.err
    assert not list(Path("out").glob(".probe*"))


def failing(when: Callable[[str], bool]) -> Callable[[int], None]:
    """An fsync that answers EIO for files of some names."""
    fsync = os.fsync

    def failing_fsync(descriptor: int) -> None:
        if when(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    return failing_fsync


@dataclass(frozen=True)
class Disk:
    """A disk that can be filled, and be given space again."""

    path: Path
    fill: Callable[[], object]
    free: Callable[[], object]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of its own where mounting is allowed, else a bound on the size of files."""
    path = tmp_path / "disk"
    path.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def bound(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    quota = Disk(path, lambda: bound(1), lambda: bound(soft))
    if not mounted("-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)):
        yield quota
        quota.free()
        return
    filler = path / "filler"

    def fill() -> None:
        with filler.open("wb") as stream:
            stream.write(bytes(shutil.disk_usage(path).free))

    yield Disk(path, fill, filler.unlink)
    subprocess.run(("umount", str(path)), check=True)


def test_a_disk_that_fills_up_keeps_the_older_checkpoint_and_the_run_goes_on_with_space(
    acmsao: Any, lm: Path, disk: Disk, whole: dict[str, bytes], at_step: Any
) -> None:
    at_step(3, disk.fill)
    command = ("train", str(lm), "-o", str(disk.path / "out"))
    full = acmsao(*command)
    disk.free()
    assert full.code == 6, full.err
    assert "Traceback" not in full.err
    assert steps_saved(disk.path / "out") == [2]
    on = acmsao(*command)
    assert on.code == 0, on.err
    assert "continuing at step 2" in on.out
    assert bits(disk.path / "out") == whole


def test_a_disk_that_is_full_from_the_start_is_refused_before_a_step(
    acmsao: Any, lm: Path, disk: Disk
) -> None:
    disk.fill()
    full = acmsao("train", str(lm), "-o", str(disk.path / "out"))
    disk.free()
    assert full.code == 6, full.err
    assert not (disk.path / "out" / "metrics.jsonl").exists()


def test_a_save_whose_bytes_may_not_have_reached_the_disk_has_failed(
    acmsao: Any, lm: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(lambda name: "step-00000004" in name))
        done = acmsao("train", str(lm), "-o", "once")
    assert done.code == 0, done.err
    assert "no checkpoint at step 4" in done.out
    assert steps_saved(Path("once")) == [2, 6]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(lambda name: "step-00000006" in name))
        failed = acmsao("train", str(lm), "-o", "last")
    assert failed.code == 6
    assert "Input/output error" in failed.err
    assert steps_saved(Path("last")) == [2, 4]
    assert acmsao("train", str(lm), "-o", "last").code == 0
    assert bits(Path("once")) == bits(Path("last")) == whole


# Logs


def unread() -> IO[str]:
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def on_a_full_disk() -> IO[str]:
    """A file that takes nothing."""
    return Path("/dev/full").open("w")


@pytest.fixture
def lost_log(request: Any) -> Iterator[IO[str]]:
    """A stream that takes nothing any more."""
    log: IO[str] = request.param()
    yield log
    with suppress(OSError):
        log.close()


LOST = [
    (unread, "stdout", ()),
    (unread, "stdout", ("--json",)),
    (on_a_full_disk, "stdout", ("--json",)),
    (on_a_full_disk, "stderr", ("--json",)),
]


@pytest.mark.parametrize(("lost_log", "stream", "options"), LOST, indirect=["lost_log"])
def test_a_run_goes_on_without_its_log(
    acmsao: Any,
    lm: Path,
    whole: dict[str, bytes],
    lost_log: IO[str],
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
    options: tuple[str, ...],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, stream, lost_log)
        done = acmsao("train", str(lm), "-o", "out", *options)
    assert done.code == 0, done.err
    if stream == "stdout":
        assert done.err.count("the run goes on without it") == 1
    else:
        assert json.loads(done.out.splitlines()[-1])["event"] == "finished"
    assert bits(Path("out")) == whole


@pytest.mark.parametrize("lost_log", [unread, on_a_full_disk], indirect=True)
def test_an_error_is_told_where_it_can_be_and_its_code_stays(
    acmsao: Any, lm: Path, lost_log: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", lost_log)
        refused = acmsao("train", str(lm), *NOTHING, "--json")
    assert refused.code == 3
    assert "error: " in refused.err


# Clocks


def test_no_clock_decides_which_checkpoint_is_taken(
    acmsao: Any, lm: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(calm, "out")
    Path("out/summary.json").unlink()
    shutil.rmtree("out/checkpoints/step-00000006")
    ages = {2: 4070908800, 4: 915148800}  # the older one of 2099, the newer one of 1999
    for step, age in ages.items():
        folder = Path(f"out/checkpoints/step-{step:08d}")
        for path in (*folder.iterdir(), folder):
            os.utime(path, (age, age))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    on = acmsao("train", str(lm), "-o", "out")
    assert on.code == 0, on.err
    assert "continuing at step 4" in on.out
    assert bits(Path("out")) == bits(calm)


# Locks

HOLDER = """
import os, signal, sys, time
from pathlib import Path
from acmsao_cli.engine.lock import held
with held(Path(sys.argv[1]), sys.argv[2]):
    orphan = os.fork()
    if orphan == 0:
        time.sleep(60)
        os._exit(0)
    print(orphan, flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_with_who_has_it_and_is_free_once_they_died(
    acmsao: Any, lm: Path
) -> None:
    """That is so although a child that they forked lives on."""
    words = [sys.executable, "-c", HOLDER, "out", LOCK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env=ENVIRONMENT, text=True, **pipes) as holder:
        assert holder.stdout is not None
        orphan = int(holder.stdout.readline())
        try:
            refused = acmsao("train", str(lm), "-o", "out", *NOTHING)
            assert refused.code == 4
            by = rf"out is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d"
            assert re.search(by, refused.err), refused.err
            holder.kill()
            holder.wait()
            os.kill(orphan, 0)  # it lives
            done = acmsao("train", str(lm), "-o", "out", "-s", "training.steps=1")
            assert done.code == 0, done.err
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_of_two_that_begin_at_the_same_instant_one_has_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    together = threading.Barrier(2, timeout=30)
    outcomes: list[str] = []

    def begin() -> None:
        together.wait()
        try:
            with folder.locked():
                outcomes.append("has it")
                together.wait()
        except RunLockedError:
            outcomes.append("is refused")
            together.wait()

    for _ in range(50):
        outcomes.clear()
        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["has it", "is refused"]
        assert not folder.path.exists()  # nothing came into it


def test_of_many_that_come_and_go_one_has_the_folder_at_a_time(tmp_path: Path) -> None:
    """Each takes the folder away when it leaves, and another may have opened the lock before."""
    folder = RunFolder(tmp_path / "runs" / "one")
    inside, most = [0], [0]

    def come_and_go() -> None:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            with suppress(RunLockedError), folder.locked():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_file_system_without_locks_is_told(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    refused = acmsao("train", str(lm), "-o", "out", *NOTHING)
    assert refused.code == 6
    assert "out cannot be locked: No locks available" in refused.err
    assert "a local disk" in refused.err


# Signals

STOPPED_IN_A_SAVE = """
import os, signal, sys, time, torch
torch.set_num_threads(1)
from acmsao_cli.checkpoint import store
from acmsao_cli.cli.app import main
put = store.CheckpointStore._put_in_place
def stopped(self, temporary, target):
    if target.name == "step-00000004":
        print("in a save", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)  # the thread that saves may be stopped a little later than it was told
    put(self, temporary, target)
store.CheckpointStore._put_in_place = stopped
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_was_suspended_in_a_save_goes_on(
    lm: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    words = [sys.executable, "-c", STOPPED_IN_A_SAVE, "train", str(lm), "-o", "out"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with subprocess.Popen(words, env=ENVIRONMENT, **options) as run:
        assert run.stdout is not None
        while "in a save" not in (line := run.stdout.readline()):
            assert line, "the run ended"
        _, status = os.waitpid(run.pid, os.WUNTRACED)
        meanwhile = steps_saved(tmp_path / "out")
        run.send_signal(signal.SIGCONT)
        run.stdout.read()
    assert os.WIFSTOPPED(status)
    assert meanwhile == [2]
    assert run.returncode == 0
    assert bits(tmp_path / "out") == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_libraries_are_loaded_ends_the_run_with_its_code(
    lm: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "acmsao_cli", "train", str(lm), "-o", "out"]
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with subprocess.Popen(words, env=ENVIRONMENT, **options) as run:
        assert run.stderr is not None
        while "pydantic" not in (line := run.stderr.readline()):
            assert line, "the run ended"
        run.send_signal(number)
        said = run.stderr.read()
    assert run.returncode == 128 + number
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


# Launchers

LAUNCHED = (
    {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
    {"WORLD_SIZE": "4"},
    {"LOCAL_RANK": "0"},
)


@pytest.mark.parametrize("variables", LAUNCHED, ids=str)
@pytest.mark.parametrize(
    "words",
    [("train", "chat.yaml"), ("train", "chat.yaml", "--resume", "out"), ("resume", "out")],
    ids=" ".join,
)
@pytest.mark.usefixtures("lm")
def test_a_process_of_several_is_refused(
    acmsao: Any,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: tuple[str, ...],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = acmsao(*words)
    assert refused.code == 2
    assert "one of several" in refused.err
    assert next(f"{name}={value}" for name, value in variables.items()) in refused.err
    assert not Path("runs").exists()


def test_a_launcher_that_starts_one_process_is_no_matter(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert acmsao("train", str(lm), "--dry-run").code == 0


@pytest.mark.parametrize("name", ["summary.json", "data.json", "model.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(acmsao: Any, lm: Path, name: str) -> None:
    options = ("train", str(lm), "-o", "out", "-s", "training.steps=2")
    assert acmsao(*options).code == 0
    Path("out/summary.json").unlink()
    Path("out", name).unlink(missing_ok=True)
    os.mkfifo(Path("out", name))
    again = acmsao(*options)
    assert again.code in (0, 5), again.err
    assert "Traceback" not in again.err


def test_a_folder_that_is_gone_is_told(
    acmsao: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused = acmsao("validate", "quickstart")
    assert refused.code == 2
    assert "the current folder cannot be used" in refused.err
    with RunFolder(tmp_path / "run").locked():
        shutil.rmtree(tmp_path / "run")


def test_a_damaged_account_of_a_run_is_not_taken_for_no_run(acmsao: Any, lm: Path) -> None:
    options = ("train", str(lm), "-o", "out", "-s", "training.steps=2")
    assert acmsao(*options).code == 0
    Path("out/run.yaml").write_text("garbage: [")
    refused = acmsao("resume", "out")
    assert refused.code == 5
    assert "is not what the run wrote" in refused.err
    assert "--output out" in refused.err
    Path("out/metrics.jsonl").unlink()
    longer = acmsao(*options[:-1], "training.steps=3")
    assert longer.code == 0, longer.err
    assert "lacks the lines of 2 of the 2 steps done" in " ".join(longer.out.split())
