"""The benchmarks are scripts beside each other: importable here, and forgotten afterwards."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, threads = set(sys.modules), torch.get_num_threads()
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
