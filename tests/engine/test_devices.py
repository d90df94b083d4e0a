"""What `auto` means on machines that are not this one, and memory that runs out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.errors import ConfigError, DoesNotFitError
from acmsao_cli.memory.advise import out_of_memory_named


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, of which the second computes in bf16 and the first only emulates it."""
    current = [0]

    @contextlib.contextmanager
    def device(wanted: torch.device) -> Any:
        before, current[0] = current[0], wanted.index or 0
        yield
        current[0] = before

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or current[0] == 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)


@pytest.mark.usefixtures("two_cards")
def test_auto_takes_the_card_and_the_dtype_it_computes_in() -> None:
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype("auto", torch.device("cuda", 0)) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 1)) is torch.bfloat16
    assert resolve_dtype("bf16", torch.device("cuda", 0)) is torch.bfloat16
    with pytest.raises(ConfigError, match="torch sees 2"):
        resolve_device("cuda:2")


def test_without_a_card_auto_is_the_cpu_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(ConfigError, match="torch sees 0"):
        resolve_device("cuda")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_is_told_with_advice(make_config: Any, error: Exception) -> None:
    recipe = make_config().recipe
    with pytest.raises(DoesNotFitError, match="out of memory") as told, out_of_memory_named(recipe):
        raise error
    assert "training.gradient_checkpointing=true" in str(told.value.hint)
