"""A language model written out as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from acmsao_cli.errors import ModelError, OutputError
from acmsao_cli.models.causal_lm.source import FILES, Source, find, load_tokenizer, read_source
from acmsao_cli.models.locate import Located
from acmsao_cli.writing import staged, vacant

LAYOUTS: tuple[str, ...] = ("transformers",)
PROBE = "One text is enough: 12 words, cut in pieces and numbered."


def copy_model(source: str, directory: Path) -> list[Path]:
    """Copy the files that training reads, and read tokenizer and headers back.

    Raises ModelError for a source that cannot be trained, OutputError for what is there already,
    cannot be written, or does not come back.
    """
    place = vacant(directory)
    original = read_source(find(source, None))
    files = {file for pattern in FILES for file in original.located.path.glob(pattern)}
    with staged(place) as stage:
        stage.mkdir()
        for file in sorted(files):
            shutil.copyfile(file, stage / file.name)
        _check(original, stage)
    return [place]


def _check(original: Source, copy: Path) -> None:
    try:
        again = _summary(read_source(Located(str(copy), copy, "folder")))
    except ModelError as error:
        raise OutputError(f"the copy of {original.located.path} fails: {error.message}") from error
    for part, value in _summary(original).items():
        if again[part] != value:
            raise OutputError(f"the copy of {original.located.path} has another {part}")


def _summary(source: Source) -> dict[str, Any]:
    """What tells two models apart without reading their weights."""
    tokenizer = load_tokenizer(source.located)
    return {
        "configuration": type(source.config),
        "list of weights": [header.tensors for header in source.headers],
        "vocabulary": tokenizer.get_vocab(),
        "tokenizer": tokenizer(PROBE)["input_ids"],
        "chat template": tokenizer.chat_template,
    }
