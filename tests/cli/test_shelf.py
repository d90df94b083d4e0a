"""Recipes and presets from the shelf: listed, shown, copied and validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.locate import shipped

Acmsao = Callable[..., Any]


@pytest.mark.parametrize("kind", ["recipe", "preset"])
def test_listed_is_everything_with_what_it_is_for(acmsao: Acmsao, kind: str) -> None:
    names = [file.name for file in shipped(kind)]  # type: ignore[arg-type]
    lines = acmsao(f"{kind}s", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 3 for line in lines)
    listed = json.loads(acmsao(f"{kind}s", "list", "--json").out)
    assert [entry["name"] for entry in listed] == names
    assert all(entry["about"] for entry in listed)


@pytest.mark.parametrize("kind", ["recipe", "preset"])
def test_shown_and_copied_is_the_file_with_its_comments(
    acmsao: Acmsao, kind: str, tmp_path: Path
) -> None:
    file = shipped(kind)[0]  # type: ignore[arg-type]
    text = file.path.read_text()
    assert "#" in text
    assert acmsao(f"{kind}s", "show", file.name).out == text
    assert acmsao(f"{kind}s", "copy", file.name, "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text() == text
    assert acmsao(f"{kind}s", "copy", file.name, "new/folder/").code == 0
    assert (tmp_path / "new" / "folder" / file.path.name).read_text() == text


def test_a_copy_overwrites_only_by_force(acmsao: Acmsao, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("precious")
    outcome = acmsao("recipes", "copy", "quickstart", "mine.yaml")
    assert (outcome.code, mine.read_text()) == (2, "precious")
    assert "mine.yaml exists already" in outcome.err
    assert acmsao("recipes", "copy", "quickstart", "mine.yaml", "--force").code == 0
    assert mine.read_text() != "precious"


def test_a_copy_that_cannot_be_written_is_told(acmsao: Acmsao, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = acmsao("recipes", "copy", "quickstart", "file/below.yaml")
    assert outcome.code == 6
    assert "file/below.yaml cannot be written: File exists" in outcome.err


def test_a_copy_is_a_recipe_of_its_own(acmsao: Acmsao) -> None:
    acmsao("recipes", "copy", "quickstart", "mine.yaml")
    assert "mine.yaml is valid" in acmsao("validate", "mine.yaml").out


def test_resolved_shows_every_value_with_its_origin(acmsao: Acmsao, tmp_path: Path) -> None:
    outcome = acmsao(
        *("recipes", "show", "sdxl-full", "--resolved"),
        *("--preset", "16gb", "--set", "optimizer.lr=2e-5"),
    )
    lines = {line.split(":")[0].strip(): line for line in outcome.out.splitlines()}
    assert lines["lr"].endswith("# --set optimizer.lr=2e-5")
    assert "2.0e-05" in lines["lr"]
    assert "# preset " in lines["fused_backward"]
    assert lines["betas"].endswith("# default")
    (tmp_path / "again.yaml").write_text(outcome.out)
    first = resolve(Request("sdxl-full", "16gb", ("optimizer.lr=2e-5",)))
    assert resolve(Request("again.yaml")).recipe == first.recipe


def test_overrides_that_would_not_show_are_refused(acmsao: Acmsao) -> None:
    outcome = acmsao("recipes", "show", "quickstart", "--preset", "cpu")
    assert outcome.code == 2
    assert "add --resolved" in outcome.err


def test_valid_recipes_are_summed_up(acmsao: Acmsao) -> None:
    outcome = acmsao("validate", "sdxl-full", "--preset", "16gb")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "sdxl-full is valid under preset 16gb"
    assert "at most 15.2 GB" in outcome.out
    event = json.loads(acmsao("validate", "quickstart", "--json").out)
    assert event["event"] == "valid"
    assert event["origins"]["optimizer.betas"] == "default"
    assert event["values"]["method"]["kind"] == "lora"


def test_the_schema_is_printed_for_one_family_or_for_all(acmsao: Acmsao) -> None:
    both = json.loads(acmsao("schema").out)
    one = json.loads(acmsao("schema", "--family", "causal_lm").out)
    assert len(both["anyOf"]) == 2
    assert "max_length" in json.dumps(one)
    assert "resolution" not in json.dumps(one["$defs"])
