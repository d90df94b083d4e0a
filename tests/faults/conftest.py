"""Micro models and data to spoil; no command may wait for anything."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from command_line import acmsao
from micro.shelf import lm, sdxl, shelf

from acmsao_cli.models.sdxl.convert import export_model

SECONDS = 60  # what hangs would hang for good; a machine under load takes its time


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Micro models lose by more."""
    torch.set_num_threads(1)


@pytest.fixture
def ends() -> Iterator[None]:
    """A test that waits is ended, and fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still going after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def single(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro SDXL as one file, with its settings in the header."""
    return export_model(str(shelf / "sdxl"), tmp_path_factory.mktemp("single"), "single-file")[0]


Spoilt = Callable[[str], Path]


@pytest.fixture
def copied(shelf: Path, single: Path, tmp_path: Path) -> Spoilt:
    """Copies of the models in `./bad`, which is a model's folder, or holds `sdxl.safetensors`."""

    def copy(form: str) -> Path:
        place = tmp_path / "bad"
        if form != "single":
            return Path(shutil.copytree(shelf / form, place))
        place.mkdir()
        shutil.copy(single, place)
        return place

    return copy


__all__ = ["acmsao", "lm", "sdxl", "shelf"]
