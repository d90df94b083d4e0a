"""What a safetensors file says of itself, read and checked without reading a single weight.

The format: eight bytes give the length of a JSON header; the header gives each tensor's dtype,
shape and byte range; the ranges fill the rest of the file without gap or overlap.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from acmsao_cli.errors import ModelError

# Far above any real model (SDXL: 2515 tensors, 0.4 MB), far below what would stall a machine.
MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 100_000
OFFSETS = b'"data_offsets"'

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"})

# How files that only bear the name begin, and what they are.
IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page saved under this name: download the file again",
    b"PK\x03\x04": "a pickled PyTorch file with another name, which could run code when opened",
    b"\x80\x02}": "a pickled PyTorch file with another name, which could run code when opened",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """All tensors of a file, by name, and the free text its writer left."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    def main_dtype(self, prefix: str = "") -> str:
        """The dtype of most elements among the tensors whose names begin with `prefix`."""
        elements: Counter[str] = Counter()
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                elements[tensor.dtype] += tensor.num_elements
        return elements.most_common(1)[0][0]


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file at `path`. Raises ModelError naming the file."""
    with _open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = _header_length(path, file.read(64), file_bytes)
        file.seek(8)
        entries = _parse(path, file.read(header_bytes))
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    ranges = {name: _entry(path, name, entry) for name, entry in entries.items()}
    _check_ranges(path, ranges, file_bytes - 8 - header_bytes)
    return Header(path, {name: info for name, (info, _, _) in ranges.items()}, metadata)


def _open_regular(path: Path) -> BinaryIO:
    """Open for reading; a pipe or device is refused instead of waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a sound safetensors file: {reason}",
        hint="it may be cut short or not what its name says; download or export it again",
    )


def _header_length(path: Path, start: bytes, file_bytes: int) -> int:
    for prefix, kind in IMPOSTORS.items():
        # A length may begin with any byte, but the header behind it is a table.
        if start.startswith(prefix) and start[8:9] != b"{":
            raise ModelError(f"{path} is not a safetensors file: it is {kind}")
    if file_bytes < 10:
        raise _damaged(path, f"it has only {file_bytes} bytes")
    length = int.from_bytes(start[:8], "little")
    if length > file_bytes - 8:
        raise _damaged(path, f"a header of {length} bytes does not fit in {file_bytes} bytes")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    _check_count(path, text.count(OFFSETS))  # parsing them all would take its time
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({error})") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a table of tensors")
    _check_count(path, len(entries))
    return entries


def _check_count(path: Path, listed: int) -> None:
    if listed > MAX_TENSORS:
        raise _damaged(path, f"it lists {listed} tensors; at most {MAX_TENSORS} are read")


def _metadata(path: Path, found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise _damaged(path, "its metadata are not texts")
    return found


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """The tensor's info, begin and end."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if all(
            map(_natural, [*shape, begin, end])
        ):
            if dtype not in DTYPE_BYTES:
                raise _damaged(path, f"{name!r} has the unknown dtype {dtype!r}")
            info = TensorInfo(dtype, tuple(shape))
            if info.num_bytes != end - begin:
                raise _damaged(path, f"{name!r} has a shape and a byte range that differ")
            return info, begin, end
    raise _damaged(path, f"the entry of {name!r} is malformed")


def _check_ranges(
    path: Path, ranges: Mapping[str, tuple[TensorInfo, int, int]], data_bytes: int
) -> None:
    position = 0
    for name, (_, begin, end) in sorted(ranges.items(), key=lambda item: item[1][1:]):
        if begin != position:
            raise _damaged(path, f"the bytes of {name!r} overlap others or leave a gap")
        position = end
    if position > data_bytes:
        raise _damaged(path, f"it should have {position} bytes of weights but has {data_bytes}")
    if position < data_bytes:
        raise _damaged(path, f"{data_bytes - position} bytes follow its last tensor")
