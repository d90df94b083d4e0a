"""A sound header is read as written; a damaged file is refused by name, quickly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from acmsao_cli.errors import ModelError
from acmsao_cli.models.safetensors_header import TensorInfo, read_header


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


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


DAMAGED = {
    "empty": b"",
    "short": b"\x01\x02",
    "length beyond the file": (2**63).to_bytes(8, "little") + b"{}",
    "not JSON": with_header(b"{{{"),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "deep": with_header(b"[" * 100_000),
    "a list": with_header([1, 2]),
    "twice the same name": with_header(b'{"a": 1, "a": 2}'),
    "metadata not text": with_header({"__metadata__": {"a": 1}}),
    "unknown dtype": with_header({"a": entry(0, 4, [1], "F7")}, b"1234"),
    "no offsets": with_header({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "negative size": with_header({"a": entry(0, 4, [-1])}, b"1234"),
    "shape and range differ": with_header({"a": entry(0, 4, [2])}, b"1234"),
    "overlap": with_header({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234"),
    "gap": with_header({"a": entry(4, 8, [1])}, b"12345678"),
    "cut short": with_header({"a": entry(0, 4, [1])}, b"12"),
    "trailing bytes": with_header({"a": entry(0, 4, [1])}, b"12345"),
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "zipped pickle": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("length", [ord("<"), ord("<") + 256 * ord("h")])
def test_a_length_that_looks_like_a_web_page_is_a_length(tmp_path: Path, length: int) -> None:
    file = tmp_path / "fine.safetensors"
    text = json.dumps({"a": entry(0, 4, [1], "F32")}).encode()
    padded = text + b" " * (length - len(text))
    file.write_bytes(len(padded).to_bytes(8, "little") + padded + b"1234")
    assert read_header(file).num_parameters == 1


def make_directory(path: Path) -> None:
    path.mkdir()


def make_nothing(path: Path) -> None:
    """Leave it absent."""


@pytest.mark.parametrize("make", [make_directory, make_nothing, os.mkfifo])
def test_what_is_no_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "odd.safetensors"
    make(path)
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        read_header(path)
