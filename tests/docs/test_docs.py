"""What README and docs say is so: tables are current, commands exist, examples are valid."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from acmsao_cli.cli.app import app
from acmsao_cli.config.layers import Request, resolve

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def docs_tables() -> ModuleType:
    path = ROOT / "scripts" / "docs_tables.py"
    spec = importlib.util.spec_from_file_location("docs_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_tables_are_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert docs_tables().refreshed(text) == text, "run scripts/docs_tables.py"


def commands() -> Iterator[tuple[str, str]]:
    """Each `acmsao ...` line of a console block, and each in backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    if part.strip().startswith("acmsao "):
                        yield page.name, part.partition(" # ")[0].strip()
        for inline in re.findall(r"`(acmsao [^`]+)`", text.replace("\n", " ")):
            yield page.name, inline


def parsed(command: str) -> None:
    """Walk the command line as far as options, without running it."""
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    group: Any = typer.main.get_command(app)
    while words and hasattr(group, "commands"):
        name = words.pop(0)
        if name.startswith("-"):
            return
        assert name in group.commands, f"no command `{name}`"
        group = group.commands[name]
    known = {option for parameter in group.params for option in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"`{group.name}` has no {word}"


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_commands_exist(page: str, command: str) -> None:
    parsed(command)


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipe_in_the_docs_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)  # later ones add sections
    file = tmp_path / "mine.yaml"
    file.write_text("".join(blocks), encoding="utf-8")
    assert resolve(Request(str(file))).recipe.method.kind == "lora"


def test_settings_in_the_docs_are_valid() -> None:
    settings = [
        setting
        for page in PAGES
        for setting in re.findall(r"--set ([\w.]+=[^\s`]+)", page.read_text(encoding="utf-8"))
        if not setting.startswith("key=")
    ]
    assert settings
    for setting in settings:
        if setting.startswith("data.format"):
            continue
        if setting.startswith("optimizer.fused_backward"):
            setting_pair = (setting, "training.clip_norm=null")
            resolve(Request("sdxl-full", None, setting_pair))
        else:
            resolve(Request("sdxl-lora", None, (setting,)))


def test_the_figures_in_the_readme_are_measured() -> None:
    results = ROOT / "benchmarks" / "results"
    pictures = json.loads((results / "builtin-tiny-sdxl.json").read_text())["right"]
    answers = json.loads((results / "builtin-tiny-llm.json").read_text())["right"]
    measured = [pictures["colour"], pictures["shape"], pictures["colour_and_shape"], answers]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.findall(r"([\d.]+) %", readme)
    assert found == [f"{100 * share:g}" for share in measured]
