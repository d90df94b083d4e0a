"""Which folder a run takes under --output and --resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from acmsao_cli.checkpoint.store import CheckpointStore
from acmsao_cli.engine.folder import MARK, RunFolder, choose_place, look_again
from acmsao_cli.errors import CheckpointError, ConfigError, RunLockedError


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to the current folder's runs/."""
    monkeypatch.chdir(tmp_path)


def start(path: Path, step: int | None = None) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.recipe.write_text(f"{MARK}`quick`\n")
    if step is not None:
        CheckpointStore(folder.checkpoints, 2).save(step, {"weights": {"w": torch.ones(1)}}, {})
    return folder


def test_without_output_runs_are_numbered_and_an_unfinished_one_is_continued() -> None:
    assert choose_place("quick", None, "auto").folder.path == Path("runs/quick-001")
    folder = start(Path("runs/quick-001"), step=4)
    place = choose_place("quick", None, "auto")
    assert place.folder == folder
    assert place.step == 4
    assert choose_place("quick", None, "never").folder.path == Path("runs/quick-002")
    assert choose_place("quick-llm", None, "auto").folder.path == Path("runs/quick-llm-001")
    folder.finish({"status": "finished"})
    place = choose_place("quick", None, "auto")
    assert place.folder.path == Path("runs/quick-002")
    assert not place.finished


def test_with_output_a_finished_run_is_already_done() -> None:
    out = Path("out")
    assert not choose_place("quick", out, "auto").finished
    folder = start(out, step=3)
    place = choose_place("quick", out, "auto")
    assert place.step == 3
    with pytest.raises(ConfigError, match="already holds a run"):
        choose_place("quick", out, "never")
    folder.finish({"status": "finished"})
    assert choose_place("quick", out, "auto").finished


def test_a_folder_that_is_not_a_run_is_refused() -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("words")
    with pytest.raises(ConfigError, match="not a run folder"):
        choose_place("quick", Path("mine"), "auto")
    with pytest.raises(ConfigError, match="not a run folder"):
        choose_place("quick", Path("mine/thesis.txt"), "auto")


def test_files_that_only_look_like_a_run_are_left_alone() -> None:
    Path("mine").mkdir()
    Path("mine/run.yaml").write_text("about: a recipe of my own\n")
    with pytest.raises(ConfigError, match="not a run folder"):
        choose_place("quick", Path("mine"), "auto")
    backup = Path("home/backup/step-00000200")
    backup.mkdir(parents=True)
    (backup / "manifest.json").write_text("{}")
    for path in (backup, Path("home"), Path("home/backup")):
        with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
            choose_place("quick", None, str(path))


def test_a_checkpoint_named_from_within_its_folder_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = start(Path("out"), step=3)
    home = folder.path.resolve()
    monkeypatch.chdir(folder.checkpoints)
    place = choose_place("quick", None, "step-00000003")
    assert place.folder.path == home


def test_a_finished_run_can_go_on_from_an_older_checkpoint_and_is_then_unfinished() -> None:
    folder = start(Path("out"), step=3)
    CheckpointStore(folder.checkpoints, 2).save(6, {"weights": {"w": torch.ones(1)}}, {})
    folder.finish({"status": "finished"})
    place = look_again(choose_place("quick", None, "out/checkpoints/step-00000003"))
    assert (place.step, place.finished) == (3, False)
    folder.reopen()
    assert not choose_place("quick", Path("out"), "auto").finished


def test_another_process_that_finished_meanwhile_is_noticed() -> None:
    folder = start(Path("out"), step=3)
    place = choose_place("quick", Path("out"), "auto")
    folder.finish({"status": "finished"})
    assert look_again(place).finished


def test_resume_takes_a_run_or_one_of_its_checkpoints() -> None:
    folder = start(Path("out"), step=3)
    CheckpointStore(folder.checkpoints, 2).save(6, {"weights": {"w": torch.ones(1)}}, {})
    place = choose_place("quick", None, "out")
    assert (place.folder, place.step) == (folder, 6)
    place = choose_place("quick", None, "out/checkpoints/step-00000003")
    assert place.folder.path.resolve() == Path("out").resolve()
    assert place.step == 3
    with pytest.raises(CheckpointError, match="no such folder"):
        choose_place("quick", None, "nowhere")
    with pytest.raises(ConfigError, match="is not the run"):
        choose_place("quick", Path("elsewhere"), "out")


def test_a_folder_is_held_by_one_process_and_let_go_when_it_dies(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    holder = (
        "import sys; from pathlib import Path; from acmsao_cli.engine.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunLockedError, match=f"process {process.pid}"), folder.locked():
            pass
        process.kill()
    with folder.locked():
        pass


def test_a_folder_that_nothing_came_into_is_taken_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError), folder.locked():
        raise ConfigError("the model does not exist")
    assert not folder.path.exists()
