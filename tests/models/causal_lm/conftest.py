"""Fixtures of micro models and tokenizers that behave like the families they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_chat, build_model, build_recipe, build_tokenizer
from transformers import (
    PreTrainedTokenizerFast,
)

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.data.base import TextExample


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["llama", "llama-tied", "llama-dynamic", "qwen2", "gemma2", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of model in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of models with their tokenizers, each built once; treat them as read-only."""
    made: dict[tuple[Any, ...], Path] = {}

    def folder(kind: str = "llama", template: str = "chatml", **tokenizer: Any) -> Path:
        key = (kind, template, *sorted(tokenizer.items()))
        if key not in made:
            path = tmp_path_factory.mktemp(kind)
            build_model(kind).save_pretrained(path)
            build_tokenizer(template, **tokenizer).save_pretrained(path)
            made[key] = path
        return made[key]

    return folder


@pytest.fixture
def recipe() -> Callable[..., CausalLmRecipe]:
    return build_recipe


@pytest.fixture
def tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return build_tokenizer


@pytest.fixture
def model() -> Callable[[str], Any]:
    return build_model


@pytest.fixture
def chat() -> Callable[..., TextExample]:
    return build_chat


@pytest.fixture
def text() -> Callable[[str], TextExample]:
    return lambda words: TextExample("a.txt", text=words)
