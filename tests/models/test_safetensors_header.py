"""A sound header is read as written; a damaged file is refused by name, quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from acmsao_cli.models.safetensors_header import TensorInfo, read_header


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_names_shapes_dtypes_and_counts_are_those_saved(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.0),
        "v_pred": torch.zeros(0),
    }
    save_file(tensors, tmp_path / "m.safetensors", {"note": "hello"})
    header = read_header(tmp_path / "m.safetensors")
    assert header.tensors == {
        "weight": TensorInfo("BF16", (3, 4)),
        "scalar": TensorInfo("F32", ()),
        "v_pred": TensorInfo("F32", (0,)),
    }
    assert header.num_parameters == 13
    assert header.metadata == {"note": "hello"}


@pytest.mark.parametrize("length", [ord("<"), ord("<") + 256 * ord("h")])
def test_a_length_that_looks_like_a_web_page_is_a_length(tmp_path: Path, length: int) -> None:
    file = tmp_path / "fine.safetensors"
    text = json.dumps({"a": entry(0, 4, [1], "F32")}).encode()
    padded = text + b" " * (length - len(text))
    file.write_bytes(len(padded).to_bytes(8, "little") + padded + b"1234")
    assert read_header(file).num_parameters == 1
