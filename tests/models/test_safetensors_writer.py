"""What is written is what safetensors reads; a failed write leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from acmsao_cli.errors import OutputError
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.safetensors_writer import HASH, Entry, entry, write_safetensors


def test_tensors_come_back_with_their_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(2, 3).to(torch.bfloat16),
        "turned": torch.randn(3, 4).t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0),
    }
    file = tmp_path / "m.safetensors"
    write_safetensors(file, {name: entry(one) for name, one in tensors.items()}, {})
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert set(read_header(file).tensors) == set(tensors)


def test_a_dtype_can_be_asked_for(tmp_path: Path) -> None:
    weight = torch.randn(5)
    write_safetensors(tmp_path / "m", {"w": entry(weight, torch.float16)}, {})
    assert torch.equal(load_file(tmp_path / "m")["w"], weight.half())


def test_the_hash_in_the_header_is_that_of_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    write_safetensors(file, {"w": entry(torch.randn(7))}, {"hash": f"0x{HASH}", "note": "é"})
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    content = file.read_bytes()
    weights = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata == {"hash": f"0x{hashlib.sha256(weights).hexdigest()}", "note": "é"}


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "m", {"w": entry(torch.zeros(1))}, {})
    finally:
        os.umask(mask)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("before")

    def fail() -> Tensor:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_safetensors(tmp_path / "m", {"w": Entry((1,), torch.float32, fail)}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_text() == "before"
