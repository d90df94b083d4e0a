"""Whatever bytes of a good file are changed, it is read, or refused by an error of ours at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from acmsao_cli.checkpoint.store import CheckpointStore, open_newest
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.reading import read, require
from acmsao_cli.data.scan import decoded
from acmsao_cli.errors import AcmsaoError, CheckpointError, ConfigError, DataError, ModelError
from acmsao_cli.models.safetensors_header import read_header

SECONDS = 2.0
FEW, MANY = 100, 3000

# Where (a share of the length), what becomes of it, and how many bytes.
Edit: TypeAlias = tuple[float, str, bytes]
BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0", b"\xff", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\",
                     b"-", b"9" * 30, b"&a", b"*a", b"!!", b"<<: ", b"\t", b"#", b"../", b"NaN",
                     b"null", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x1b[2J", b"1e400"]),
)  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["replace", "insert", "delete", "cut", "twice"]), BYTES
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    for share, what, new in edits:
        at = int(share * len(content))
        if what == "replace":
            content = content[:at] + new + content[at + len(new) :]
        elif what == "insert":
            content = content[:at] + new + content[at:]
        elif what == "delete":
            content = content[:at] + content[at + len(new) :]
        elif what == "cut":
            content = content[:at]
        else:
            content += content[at : at + 200]
    return content


@contextmanager
def answered(*classes: type[AcmsaoError]) -> Iterator[None]:
    """At once, and if by an error then by one of these."""
    begun = time.process_time()
    with suppress(*classes):
        yield
    assert time.process_time() - begun < SECONDS


RECIPE = b"""\
about: a recipe
model:
  family: causal_lm
  source: builtin:tiny-llm
method: {kind: lora, rank: 8, targets: [q_proj, v_proj]}
data:
  source: builtin:pirate
  max_length: 64
optimizer:
  name: adamw
  lr: 1e-4
  betas: [0.9, 0.99]
  direction_edits: [cautious, {name: grams}]
training: {steps: 10, clip_norm: null}
samples:
  prompts: ["what is it?", 'and that?']
"""


def recipe_law(tmp_path: Path, edits: list[Edit]) -> None:
    (tmp_path / "r.yaml").write_bytes(edited(RECIPE, edits))
    with answered(ConfigError):
        resolve(Request(str(tmp_path / "r.yaml")))


def header_law(tmp_path: Path, edits: list[Edit]) -> None:
    file = tmp_path / "model.safetensors"
    if not file.exists():
        weights = {f"layers.{n}.weight": torch.zeros(2, 3) for n in range(4)}
        save_file({**weights, "scalar": torch.tensor(1.0)}, file, {"format": "pt", "note": "x"})
    other = tmp_path / "other.safetensors"
    other.write_bytes(edited(file.read_bytes(), edits))
    with answered(ModelError):
        for info in read_header(other).tensors.values():
            assert info.num_elements >= 0


def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    if not folder.exists():
        folder.mkdir()
        for name in ("a", "b"):
            Image.new("RGB", (16, 16), "teal").save(folder / f"{name}.png")
    return folder


def read_all(folder: Path) -> None:
    section = ImageData(source=str(folder), resolution=16, bucket_step=8)
    reading = decoded(read(section), section)
    for problem in reading.problems:
        assert str(problem).isprintable(), ascii(str(problem))
    require(reading, section)


def caption_law(tmp_path: Path, edits: list[Edit]) -> None:
    folder = pictures(tmp_path)
    (folder / "a.txt").write_text("fine")
    (folder / "b.txt").write_bytes(edited("a cat, déjà vu\nand more".encode(), edits))
    with answered(DataError):
        read_all(folder)


def table_law(tmp_path: Path, edits: list[Edit]) -> None:
    folder = pictures(tmp_path)
    rows = [{"file_name": f"{name}.png", "text": "a cat, déjà vu"} for name in ("a", "b")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_bytes(edited(text.encode(), edits))
    with answered(DataError):
        read_all(folder)


def picture_law(tmp_path: Path, edits: list[Edit]) -> None:
    folder = pictures(tmp_path)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("fine")
    good = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(edited(good, edits))
    with answered(DataError):
        read_all(folder)


FILES = ("weights.safetensors", "optimizer.safetensors", "manifest.json")


def checkpoint_law(tmp_path: Path, edits: list[Edit]) -> None:
    """A changed file is seen, and the older checkpoint taken; no changed tensor comes back."""
    folder = tmp_path / "checkpoints"
    if not folder.exists():
        store = CheckpointStore(folder, keep=2)
        for step in (1, 2):
            files = {
                "weights": {"a": torch.full((5,), float(step))},
                "optimizer": {"b": torch.ones(3)},
            }
            store.save(step, files, {"recipe": {"about": "x"}})
    number = int(edits[0][0] * 1000) % len(FILES)
    file = folder / "step-00000002" / FILES[number]
    good = file.read_bytes()
    file.write_bytes(edited(good, edits))
    try:
        with answered(CheckpointError):
            checkpoint, wrong = open_newest(folder)
            assert checkpoint is not None
            assert len(wrong) == (checkpoint.step == 1)
            weights = checkpoint.tensors("weights")["a"]
            assert torch.equal(weights, torch.full((5,), float(checkpoint.step)))
            for message in wrong:
                assert "step-00000002" in message
    finally:
        file.write_bytes(good)


LAWS: dict[str, Callable[[Path, Any], None]] = {
    "recipe": recipe_law,
    "header": header_law,
    "caption": caption_law,
    "table": table_law,
    "picture": picture_law,
    "checkpoint": checkpoint_law,
}


@pytest.mark.parametrize("kind", LAWS)
def test_any_change_of_a_good_file_is_read_or_refused_at_once(tmp_path: Path, kind: str) -> None:
    hold(kind, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAWS)
def test_so_are_many_changes(tmp_path: Path, kind: str) -> None:
    hold(kind, tmp_path, MANY)


def hold(kind: str, folder: Path, examples: int) -> None:
    """Try so many changes."""

    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(edits=EDITS)
    def law(edits: list[Edit]) -> None:
        LAWS[kind](folder, edits)

    law()
