"""Where a model lies: shipped with the package, a folder or file here, or a hub id.

Only safetensors are ever opened. Pickled weights can run any code when they are opened, so they
are refused by name, and hub downloads leave them out.
"""

from __future__ import annotations

import difflib
import json
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acmsao_cli import builtin
from acmsao_cli.errors import ConfigError, ModelError

PICKLE_SUFFIXES = frozenset({".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle"})
# Far above any tokenizer or index of shards, far below what would stall a machine.
MAX_TEXT_BYTES = 128 * 2**20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Located:
    """A model on this machine; `kind` says how to read `path`."""

    source: str
    path: Path
    kind: Literal["folder", "single-file"]


def locate(
    source: str, revision: str | None, *, single_file_allowed: bool, patterns: Sequence[str]
) -> Located:
    """Find `source`, downloading a hub id's files that match `patterns` if they are not cached.

    Raises ModelError with what was looked for, and ConfigError for a revision of something that
    has none.
    """
    path = Path(source).expanduser()
    inside = builtin.name_in(source)
    if inside is not None:
        _refuse_revision(source, revision)
        return Located(source, _builtin(inside), "folder")
    if path.exists():
        _refuse_revision(source, revision)
        return _local(source, path, single_file_allowed)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _pickled(source)
    if _looks_like_path(source):
        raise _absent(source, path)
    return Located(source, _from_hub(source, revision, patterns), "folder")


def _refuse_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"model.revision is {revision!r}, but model.source is {source!r}",
            hint="only a hub id has revisions; drop model.revision",
        )


def _builtin(name: str) -> Path:
    if name in builtin.MODELS:
        return builtin.FOLDER / name
    close = difflib.get_close_matches(name, builtin.MODELS, n=1)
    raise ModelError(
        f"no model `{builtin.PREFIX}{name}` is shipped with acmsao",
        hint=f"did you mean `{builtin.PREFIX}{close[0]}`?"
        if close
        else f"shipped: {', '.join(builtin.PREFIX + one for one in builtin.MODELS)}",
    )


def _pickled(source: str | Path) -> ModelError:
    return ModelError(
        f"{source} holds pickled weights, which can run any code when they are opened: refused",
        hint="get the model as .safetensors; most are published in that form too",
    )


def _local(source: str, path: Path, single_file_allowed: bool) -> Located:
    if path.is_dir():
        return Located(source, path.resolve(), "folder")
    path = path.absolute()  # not resolved: in the hub's cache only links have the name's ending
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _pickled(path)
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path} is neither a folder nor a .safetensors file")
    if not single_file_allowed:
        raise ModelError(
            f"{path} is a single file; this model family is read from a folder",
            hint="give the folder that holds config.json, the weights and the tokenizer",
        )
    return Located(source, path, "single-file")


def _looks_like_path(source: str) -> bool:
    return (
        source.startswith(("/", ".", "~"))
        or source.lower().endswith(".safetensors")
        or not HUB_ID.fullmatch(source)
    )


def _absent(source: str, path: Path) -> ModelError:
    """What is missing, and what lies there under similar names."""
    parent, missing = path.absolute().parent, path.name
    while not parent.is_dir():
        parent, missing = parent.parent, parent.name
    try:
        neighbours = [entry.name for entry in parent.iterdir()]
    except OSError:
        neighbours = []
    close = difflib.get_close_matches(missing, neighbours, n=3, cutoff=0.5)
    return ModelError(
        f"there is no model at {source}",
        hint=f"did you mean {' or '.join(str(parent / name) for name in close)}?"
        if close
        else f"{parent} has nothing of that name; a hub id looks like owner/name",
    )


def _from_hub(source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot folder of a hub id, through the hub library's own cache and offline switches."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"`{source}`" + (f" at revision `{revision}`" if revision else "")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ModelError(
            f"the hub keeps {wanted} behind a licence that this account has not accepted",
            hint="accept it on the model's page, then log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"the hub has no {wanted}", hint="check model.revision") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{wanted} is neither a file or folder here nor a model on the hub",
            hint="check the spelling; a private model needs `hf auth login`",
        ) from error
    except Exception as error:  # The hub's HTTP library, and so what it raises, has changed twice.
        raise ModelError(
            f"{wanted} is not a file or folder here, not complete in the hub cache "
            f"({constants.HF_HUB_CACHE}), and the hub cannot be reached",
            hint=f"give model.source a local folder, or run `hf download {source}` where there is "
            "a network (HF_HOME says where the cache is)",
        ) from error


def require_plain_files(folder: Path, patterns: Sequence[str]) -> None:
    """Refuse what the libraries would wait for or never finish: pipes, devices, endless texts.

    Looks at what `patterns` name in `folder`. Raises ModelError naming the file.
    """
    for path in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        try:
            found = path.stat()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ModelError(f"{path} is not a regular file")
        if path.suffix != ".safetensors" and found.st_size > MAX_TEXT_BYTES:
            raise ModelError(
                f"{path} has {found.st_size} bytes; at most {MAX_TEXT_BYTES} are read",
                hint="it is not what its name says; download the model again",
            )


def read_json(path: Path) -> dict[str, object]:
    """A model's JSON file. Raises ModelError naming it."""
    require_plain_files(path.parent, [path.name])
    try:
        with path.open(encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not sound JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object")
    return found


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of one model in `folder`: `stem`.safetensors, or the shards its index names.

    Raises ModelError if there are none, telling pickled weights apart, or if the index names a
    file outside the folder.
    """
    single, index = folder / f"{stem}.safetensors", index_of(folder, stem)
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(folder, index)
    pickled = [file for file in _files(folder) if file.suffix.lower() in PICKLE_SUFFIXES]
    if pickled:
        raise _pickled(pickled[0])
    raise ModelError(f"{folder} has no {stem}.safetensors")


def index_of(folder: Path, stem: str) -> Path:
    """The file that names the shards of one model in `folder`."""
    return folder / f"{stem}.safetensors.index.json"


def by_name(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Those of the files that are there, by their names relative to `folder`."""
    return {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _shards(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise ModelError(f"{index} names {name!r}, which is not a safetensors file beside it")
        if not (folder / name).is_file():
            raise ModelError(f"{index} names {name}, which is not there: the model is incomplete")
    return [folder / name for name in names]
