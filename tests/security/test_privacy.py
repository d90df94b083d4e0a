"""Neither tokens nor the path of the home folder are in anything that a run leaves or says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from security.canaries import CANARIES, HOME, KEY, TOKEN, told

from acmsao_cli import privacy
from acmsao_cli.config import layers
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.engine import loop
from acmsao_cli.privacy import at_home, private, private_values

RUNS = {
    "pictures, lora": ("picture.yaml", {}, ()),
    "pictures, full": ("picture.yaml", {"method": {"kind": "full"}}, ("-s", "training.steps=1")),
    "chats, lora, merged": (
        "chat.yaml",
        {"method": {"kind": "lora", "rank": 2}, "output": {"formats": ["peft", "merged"]}},
        (),
    ),
    "chats, full": ("chat.yaml", {}, ("-s", "training.steps=2")),
}


@pytest.mark.parametrize(("name", "sections", "options"), RUNS.values(), ids=list(RUNS))
def test_no_file_and_no_line_of_a_run_tells_of_the_home_or_a_token(
    acmsao: Any, lived_in: Path, name: str, sections: dict[str, Any], options: tuple[str, ...]
) -> None:
    recipe = lived_in / name
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | sections))
    output = str(lived_in / "out")
    done = acmsao("train", str(recipe), "-o", output, "--json", *options)
    assert done.code == 0, done.err
    assert told(CANARIES, lived_in / "out", done.out, done.err) == []
    assert "~/out/final" in done.err
    assert json.loads(done.out.splitlines()[-1])["folder"] == "~/out"


def test_a_run_yaml_is_a_recipe_anywhere_and_the_run_goes_on_from_it(
    acmsao: Any, lived_in: Path
) -> None:
    short = ("-s", "training.steps=2")
    assert acmsao("train", str(lived_in / "chat.yaml"), "-o", "~/out", *short).code == 0
    written = lived_in / "out" / "run.yaml"
    assert 'source: "~/lm"' in written.read_text()
    shutil.copy(written, "mine.yaml")
    longer = ("-s", "training.steps=3")
    on = acmsao("train", "mine.yaml", "--resume", "~/out", *longer)
    assert on.code == 0, on.err
    assert "continuing at step 2" in on.out
    assert json.loads((lived_in / "out" / "summary.json").read_text())["model"] == "~/lm"


def test_an_adapter_names_its_base_below_the_home_as_people_do(
    acmsao: Any, lived_in: Path, shelf: Path
) -> None:
    recipe = lived_in / "chat.yaml"
    sections = json.loads(recipe.read_text()) | {"method": {"kind": "lora", "rank": 2}}
    recipe.write_text(json.dumps(sections))
    options = ("-s", "training.steps=1")
    for source, named in ((lived_in / "lm", "~/lm"), (shelf / "lm", str(shelf / "lm"))):
        output = ("-o", str(lived_in / f"out{len(named)}"))
        done = acmsao("train", str(recipe), *output, "-s", f"model.source={source}", *options)
        assert done.code == 0, done.err
        adapter = Path(output[1]) / "final" / "peft"
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == named
        assert f"| base model | {named} |" in (adapter / "README.md").read_text()


HELD = {
    "a hub token": f"about={TOKEN}",
    "a token within a text": f"samples.prompts=[say {TOKEN} please]",
    "a token in an address": f"data.source=https://host/x?token={TOKEN[3:]}",
    "a name and a password": "model.source=https://me:canary-of-mine@host/model",
    "a password for data": "data.source=https://me:canary-of-mine@host/data",
    "a value of the environment": f"about={KEY}",
    "an unknown key": f"hub.token={TOKEN}",
    "a value of another type": f"training.steps={TOKEN}",
    "no setting at all": f"{TOKEN} ",
    "a comment": f"about=x #{TOKEN}",
}


@pytest.mark.parametrize("setting", HELD.values(), ids=list(HELD))
def test_a_secret_in_a_setting_is_refused_and_not_repeated(
    acmsao: Any, lm: Path, home: Path, setting: str
) -> None:
    for more in ((), ("--json",)):
        refused = acmsao("train", str(lm), "-s", setting, "-o", "out", *more)
        assert refused.code == 2
        assert told((TOKEN, TOKEN[3:], KEY, "canary-of-mine"), refused.out, refused.err) == []
    assert not Path("out").exists()


def test_a_secret_in_a_recipe_is_refused_with_its_line(acmsao: Any, lm: Path, home: Path) -> None:
    sections = {"about": f"my {TOKEN}"} | json.loads(lm.read_text())
    lm.write_text(json.dumps(sections, indent=1))
    for command in ("train", "validate", "plan"):
        refused = acmsao(command, str(lm))
        assert refused.code == 2
        assert "`about` has an access token or a password in it in " in refused.err
        assert "chat.yaml:2" in refused.err
        assert TOKEN not in refused.out + refused.err


def test_a_fault_report_tells_neither_the_home_nor_a_token(
    acmsao: Any, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError(f"{home}/models/x by {TOKEN} of {KEY}")

    monkeypatch.setattr(layers, "resolve", fail)
    inside = home / "work"
    inside.mkdir()
    monkeypatch.chdir(inside)
    failed = acmsao("validate", str(home / "r.yaml"), "-s", f"hub.token={TOKEN}")
    assert failed.code == 1
    (report,) = inside.glob("acmsao-fault-*.txt")
    assert told(CANARIES, report, failed.out, failed.err) == []
    assert "~/models/x by *** of ***" in report.read_text()
    assert "~/work/acmsao-fault-" in failed.err


def test_a_traceback_through_the_home_folder_names_no_home(tmp_path: Path) -> None:
    """As of a package that is installed there."""
    home = tmp_path / HOME
    home.mkdir()
    (home / "mine.py").write_text("def fail():\n    raise KeyError('x')\n")
    code = (
        "from acmsao_cli.cli.fault import write_report; import mine\n"
        "try: mine.fail()\n"
        "except KeyError as error: print(write_report(error, ['train', 'x']).read_text())"
    )
    path = os.pathsep.join([str(home), str(Path(privacy.__file__).parents[1])])
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": path},
        cwd=home,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert 'File "~/mine.py", line 2, in fail' in said
    assert HOME not in said


def test_a_stopped_run_says_how_to_go_on_in_words_a_shell_takes(
    acmsao: Any, lived_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: Any, *_: Any) -> Any:
        raise loop.stopped(15, run, loop.RunFolder(lived_in / "out"))

    monkeypatch.setattr(loop, "advance", stop)
    stopped = acmsao("train", str(lived_in / "chat.yaml"), "-o", str(lived_in / "out"))
    assert stopped.code == 143
    assert "continue with --resume ~/out\n" in stopped.err


@pytest.fixture(params=["plain", "by a link"])
def other_home(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that is called by its own name, or by a link's."""
    home = tmp_path / "me"
    home.mkdir()
    called = home
    if request.param == "by a link":
        called = tmp_path / "linked"
        called.symlink_to(home)
    monkeypatch.setenv("HOME", str(called))
    return called


def test_paths_below_the_home_are_told_from_those_beside_it(other_home: Path) -> None:
    for home in (other_home, other_home.resolve()):
        assert at_home(str(home)) == "~"
        assert at_home(f"{home}/models/x") == "~/models/x"
        assert at_home(f"{home}2/models") == f"{home}2/models"
        assert private(f"in {home}: no") == "in ~: no"
        assert private(f"'{home}/a b', {home}/c") == "'~/a b', ~/c"
        assert private(f"{home}-old/x and /mnt{home}/y") == f"{home}-old/x and /mnt{home}/y"


@pytest.mark.parametrize("home", ["/", "", "relative"])
def test_where_there_is_no_home_folder_paths_stay(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert private("/usr/bin and relative/x") == "/usr/bin and relative/x"


def test_plain_values_keep_their_kind(other_home: Path) -> None:
    values = {"a": [other_home / "x", 1, None, 0.5, True], str(other_home): (str(other_home),)}
    assert private_values(values) == {"a": [Path("~/x"), 1, None, 0.5, True], "~": ("~",)}


WORDS = ("hf_", "hf_x", "a https://host/path", "https://host/a@b", "c:/x y@z", "1e-4", "token=1")


@pytest.mark.parametrize("text", WORDS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert private(text) == text


def test_every_value_that_is_a_path_is_read_from_the_home_as_it_is_written_there(
    home: Path, tmp_path: Path
) -> None:
    for name in ("m", "d", "c"):
        (home / name).mkdir()
    recipe = tmp_path / "r.yaml"
    sources = {"source": str(home / "m"), "family": "sdxl", "config": str(home / "c")}
    sections = {"model": sources, "data": {"source": str(home / "d")}, "method": {"kind": "lora"}}
    recipe.write_text(json.dumps(sections | {"training": {"steps": 1}}))
    config = resolve(Request(str(recipe)))
    written = config.as_dict()
    assert (written["model"]["source"], written["model"]["config"]) == ("~/m", "~/c")
    assert written["data"]["source"] == "~/d"
    recipe.write_text(json.dumps(written))
    again = resolve(Request(str(recipe)))
    assert again.recipe == config.recipe
    assert again.recipe.model.source == str(home / "m")
