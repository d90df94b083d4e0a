"""Recipes written to a folder, and what the command would say of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.errors import ConfigError

SDXL = """\
model:
  family: sdxl
  source: builtin:tiny-sdxl
method:
  kind: lora
data:
  source: builtin:zoblins
training:
  steps: 10
"""
CAUSAL_LM = """\
model: {family: causal_lm, source: builtin:tiny-llm}
method: {kind: full}
data: {source: builtin:pirate}
training: {steps: 10}
"""


@pytest.fixture
def sdxl() -> str:
    """A recipe of nine lines that is right."""
    return SDXL


@pytest.fixture
def causal_lm() -> str:
    """Another, of four."""
    return CAUSAL_LM


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(here: Path) -> Callable[[str], str]:
    """Write r.yaml and return its path as a user would give it."""

    def write(text: str) -> str:
        (here / "r.yaml").write_text(text, encoding="utf-8")
        return "./r.yaml"

    return write


@pytest.fixture
def refusal(recipe: Callable[[str], str]) -> Callable[..., ConfigError]:
    """The error that a recipe with settings, perhaps under a preset, is refused with."""

    def refuse(text: str, *settings: str, preset: str | None = None) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            resolve(Request(recipe(text), preset, settings))
        return caught.value

    return refuse
