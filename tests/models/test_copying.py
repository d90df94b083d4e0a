"""A model is written out with all that training reads of it, loaded back, over nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from micro.causal_lm import build_model, build_tokenizer
from micro.hub import fetched, serve
from micro.sdxl import Widths, micro_pipeline
from transformers import AutoTokenizer

from acmsao_cli.errors import ConfigError, OutputError
from acmsao_cli.models.causal_lm import copying
from acmsao_cli.models.copying import export_model
from acmsao_cli.models.quiet import quiet_libraries


@pytest.fixture
def old_style(tmp_path: Path) -> Path:
    """A model whose tokenizer is a vocabulary and a list of merges."""
    folder = tmp_path / "model"
    build_model("gpt2").save_pretrained(folder)
    build_tokenizer("none").save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(words["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_tokenizer_of_vocabulary_and_merges_comes_along(old_style: Path, tmp_path: Path) -> None:
    (folder,) = export_model(str(old_style), tmp_path / "copy", None)
    with quiet_libraries():
        ours, theirs = (AutoTokenizer.from_pretrained(one) for one in (folder, old_style))
    assert ours("hello world")["input_ids"] == theirs("hello world")["input_ids"]
    assert (folder / "model.safetensors").read_bytes() == (
        old_style / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("lost", ["*.txt", "*.json", "model*.safetensors"])
def test_a_copy_that_does_not_come_back_is_not_left(
    old_style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(copying, "FILES", [name for name in copying.FILES if name != lost])
    with pytest.raises(OutputError, match="the copy of"):
        export_model(str(old_style), tmp_path / "copy", None)
    assert not (tmp_path / "copy").exists()


def test_of_a_hub_id_only_what_training_reads_is_fetched(
    old_style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {file.name for file in old_style.iterdir()}
    (old_style / "onnx").mkdir()
    for name in ("consolidated.safetensors", "onnx/decoder.safetensors", "pytorch_model.bin"):
        (old_style / name).write_bytes(b"large")
    cache = tmp_path / "cache"
    serve(old_style, cache, monkeypatch)
    (folder,) = export_model("owner/name", tmp_path / "copy", None)
    assert fetched(cache) == fetched(folder) == read


def test_nothing_is_copied_over_what_is_there(old_style: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        export_model(str(old_style), tmp_path / "copy", None)
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["mine"]


def test_a_layout_of_another_family_is_refused(old_style: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no single-file layout"):
        export_model(str(old_style), tmp_path / "copy", "single-file")
    with quiet_libraries():
        micro_pipeline(Widths()).save_pretrained(tmp_path / "sdxl")
    with pytest.raises(ConfigError, match="no transformers layout") as caught:
        export_model(str(tmp_path / "sdxl"), tmp_path / "copy", "transformers")
    assert caught.value.hint == "--format diffusers or --format single-file"
