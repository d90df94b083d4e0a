"""Models are found where they are, and what cannot be used is refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from acmsao_cli import builtin
from acmsao_cli.errors import ConfigError, ModelError
from acmsao_cli.models.locate import locate, weight_files


def find(source: str | Path, revision: str | None = None, single: bool = True) -> Path:
    return locate(str(source), revision, single_file_allowed=single, patterns=["*.json"]).path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_folder_and_a_single_file_are_found(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert find(tmp_path) == tmp_path
    assert find(file) == file


def test_a_single_file_is_refused_where_a_folder_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="read from a folder"):
        find(file, single=False)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".PKL"])
@pytest.mark.parametrize("there", [True, False])
def test_pickled_weights_are_refused_with_the_reason(
    tmp_path: Path, suffix: str, there: bool
) -> None:
    file = tmp_path / f"model{suffix}"
    if there:
        file.write_bytes(b"\x80\x02}")
    with pytest.raises(ModelError, match="run any code"):
        find(file)


def test_a_folder_with_only_pickled_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="run any code"):
        weight_files(tmp_path, "model")


def test_a_misspelt_path_gets_near_matches(tmp_path: Path) -> None:
    (tmp_path / "juggernaut-xl").mkdir()
    with pytest.raises(ModelError) as caught:
        find(tmp_path / "jugernaut-xl")
    assert str(tmp_path / "juggernaut-xl") in (caught.value.hint or "")


def test_everything_listed_as_built_in_is_there_and_nothing_else() -> None:
    listed = {*builtin.MODELS, *builtin.DATA.values()}
    there = {path.name for path in builtin.FOLDER.iterdir() if not path.name.startswith("__")}
    assert there == listed
    assert all(find(f"{builtin.PREFIX}{name}").is_dir() for name in builtin.MODELS)


def test_an_unknown_builtin_is_refused() -> None:
    with pytest.raises(ModelError, match="builtin:no-such-model"):
        find("builtin:no-such-model")
    with pytest.raises(ModelError):
        find("builtin:../../etc")


def test_a_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.revision"):
        find(tmp_path, revision="main")


def test_without_network_the_error_says_what_was_looked_for_and_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(str(hub_cache))) as caught:
        find("owner/some-model", revision="v2")
    assert "owner/some-model" in caught.value.message
    assert "v2" in caught.value.message
    assert "local folder" in (caught.value.hint or "")
    assert "hf download owner/some-model" in (caught.value.hint or "")


def test_a_cached_hub_model_is_found_without_network(hub_cache: Path) -> None:
    repo, commit = hub_cache / "models--owner--some-model", "a" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert find("owner/some-model") == snapshot


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(b"")
    weight_map = {"a": "model-2.safetensors", "b": "model-1.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert [file.name for file in weight_files(tmp_path, "model")] == sorted(weight_map.values())
