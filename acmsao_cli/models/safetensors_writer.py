"""Writing safetensors one tensor at a time: no second copy of a model in memory.

Beside that: the file appears whole, and can carry the hash of its own weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acmsao_cli.writing import HashedFile, staged

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# Stands in metadata for the SHA-256 of all weights, in hex, which is known only at the end.
HASH = "0" * 64


@dataclass(frozen=True)
class Entry:
    """A tensor to be: `load` gives it, on any device, when its turn has come."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def entry(tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
    """A tensor that is there already, to be cast when written."""
    return Entry(tuple(tensor.shape), dtype or tensor.dtype, lambda: tensor)


def write_safetensors(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> None:
    """Write `entries` and `metadata` to `path`, replacing HASH in the metadata.

    Raises OutputError; then nothing is left under `path` that was not there before.
    """
    header, names = _header(entries, metadata)
    with staged(path) as stage, stage.open("xb") as file:
        file.write(header)
        weights = HashedFile(file)
        _write_weights(weights, [entries[name] for name in names])
        if HASH.encode() in header:
            file.seek(0)
            file.write(header.replace(HASH.encode(), weights.digest.encode()))


def write_tensors(file: HashedFile, tensors: Mapping[str, Tensor]) -> None:
    """Write these tensors, on any device, as a whole safetensors file. Raises OSError."""
    entries = {name: entry(tensor) for name, tensor in tensors.items()}
    header, names = _header(entries, {})
    file.write(header)
    _write_weights(file, [entries[name] for name in names])


def _header(
    entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, Sequence[str]]:
    """The file's beginning, and the order in which the weights follow.

    Widest dtypes first, so that every tensor is aligned; padded to eight bytes.
    """
    names = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        one = entries[name]
        begin, end = end, end + one.num_bytes
        table[name] = {
            "dtype": DTYPE_NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    padded = text + b" " * (-len(text) % 8)
    return len(padded).to_bytes(8, "little") + padded, names


@torch.no_grad()
def _write_weights(file: HashedFile, entries: Sequence[Entry]) -> None:
    for one in entries:
        tensor = one.load().detach().to("cpu", one.dtype).contiguous()
        assert tuple(tensor.shape) == one.shape
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
