"""The command line called in this process, on models and data that lie in somebody's home."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import acmsao
from micro.shelf import lm, sdxl, shelf
from security.canaries import HOME, KEY, TOKEN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Micro models lose by more."""
    torch.set_num_threads(1)


@pytest.fixture
def home(acmsao: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder whose path stands nowhere else, and tokens in the environment.

    The current folder is another one.
    """
    home, elsewhere = tmp_path / HOME, tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SOME_API_KEY", KEY)
    return home


@pytest.fixture
def lived_in(home: Path, shelf: Path, sdxl: Path, lm: Path) -> Path:
    """The home with models, data, and recipes for them as `picture.yaml` and `chat.yaml`."""
    for recipe in (sdxl, lm):
        sections = json.loads(recipe.read_text())
        for section in ("model", "data"):
            there = Path(sections[section]["source"])
            mine = home / there.name
            if there.is_dir():
                shutil.copytree(there, mine, dirs_exist_ok=True)
            else:
                shutil.copy(there, mine)
            sections[section]["source"] = f"./{there.name}"
        (home / recipe.name).write_text(json.dumps(sections))
        recipe.unlink()
    return home


__all__ = ["acmsao", "lm", "sdxl", "shelf"]
