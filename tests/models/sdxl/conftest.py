"""Fixtures of a micro SDXL, which has every path that the real one has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from micro.sdxl import RecipeFor, Widths, micro_pipeline

from acmsao_cli.models.quiet import quiet_libraries


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks lose by more, and other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Widths], Path]:
    """The diffusers folder of a micro SDXL, written once for each set of widths."""
    written: dict[Widths, Path] = {}

    def write(widths: Widths) -> Path:
        if widths not in written:
            written[widths] = tmp_path_factory.mktemp("micro")
            with quiet_libraries():
                micro_pipeline(widths).save_pretrained(written[widths])
        return written[widths]

    return write


@pytest.fixture(scope="session")
def micro(folder_of: Callable[[Widths], Path]) -> Path:
    """The folder of the plain micro SDXL."""
    return folder_of(Widths())


@pytest.fixture
def recipe_for() -> RecipeFor:
    """A recipe of 64 pixels, a LoRA of rank 4, one step."""
    return RecipeFor()
