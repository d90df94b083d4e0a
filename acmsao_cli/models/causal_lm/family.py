"""Causal language models that transformers knows, from a folder or the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.recipe import Recipe
from acmsao_cli.data.base import Example
from acmsao_cli.models.base import Facts, home_of
from acmsao_cli.models.causal_lm import encode
from acmsao_cli.models.causal_lm.copying import LAYOUTS, copy_model
from acmsao_cli.models.causal_lm.quantized import loading_config, pack_on_meta
from acmsao_cli.models.causal_lm.source import (
    Source,
    build_without_weights,
    context_length,
    count,
    files_of,
    find,
    load,
    load_tokenizer,
    longest,
    read_config,
    read_source,
)
from acmsao_cli.models.causal_lm.trainee import CausalLmTrainee
from acmsao_cli.models.locate import Located
from acmsao_cli.models.quiet import quiet_libraries

logger = logging.getLogger(__name__)


def find_for(recipe: CausalLmRecipe) -> Located:
    """The stored model of a recipe. Raises ModelError."""
    return find(recipe.model.source, recipe.model.revision)


@dataclass(frozen=True)
class CausalLmFamily:
    """See `models.base.ModelFamily` for the contract."""

    name: str = "causal_lm"
    layouts: tuple[str, ...] = LAYOUTS

    def facts(self, recipe: Recipe) -> Facts:
        """What configuration and headers say of the model."""
        assert isinstance(recipe, CausalLmRecipe)
        source = read_source(find_for(recipe))
        model = build_without_weights(source, torch.float32)
        return Facts(
            family=self.name,
            source=recipe.model.source,
            path=source.located.path,
            kind=source.located.kind,
            parameters={"model": count(model)},
            details=_details(recipe, source, type(model).__name__),
        )

    def files(self, recipe: Recipe) -> Mapping[str, Path]:
        """Weights, configuration and tokenizer."""
        assert isinstance(recipe, CausalLmRecipe)
        return files_of(find_for(recipe))

    def open(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> CausalLmTrainee:
        """The model with the recipe's method applied; the tokenizer is tried before any weight."""
        assert isinstance(recipe, CausalLmRecipe)
        source = read_source(find_for(recipe))
        if device.type == "meta":
            sketch = build_without_weights(source, dtype)
            pack_on_meta(sketch, recipe.model.quantize)
            return CausalLmTrainee(recipe, source, sketch)
        quantization = loading_config(recipe.model.quantize, dtype)
        load_tokenizer(source.located)
        if longest(recipe, source.config) < recipe.data.max_length:
            logger.warning("%s", _too_long(recipe, source))
        model = load(source, home_of(recipe, device), dtype, quantization)
        return CausalLmTrainee(recipe, source, model, device)

    def preview(self, recipe: Recipe, examples: Sequence[Example]) -> Iterable[str]:
        """The text of each example, learned tokens between [[ and ]]. Reads no weights."""
        assert isinstance(recipe, CausalLmRecipe)
        located = find_for(recipe)
        limit = longest(recipe, read_config(located))
        tokenizer = load_tokenizer(located)
        encode.prepare_tokenizer(tokenizer, recipe)
        for example in examples:
            with quiet_libraries():
                tokens = encode.tokenize(tokenizer, example, recipe.data)
            fate, item = encode.fit(tokens, limit, recipe.data.over_long)
            if item is None:
                yield f"{example.place}: left out, {fate}: {len(tokens.ids)} tokens"
                continue
            text = "".join(encode.marked_text(tokenizer, item))
            note = "" if fate == encode.WHOLE else f" (cut from {len(tokens.ids)})"
            yield (
                f"{example.place}: trained {item.num_trained} of {len(item.ids)} tokens{note}\n"
                f"{text}"
            )

    def copy(self, source: str, directory: Path, layout: str) -> list[Path]:
        """A transformers folder with the very files of the source."""
        return copy_model(source, directory)


def _details(recipe: CausalLmRecipe, source: Source, architecture: str) -> dict[str, str]:
    config = source.text_config
    stored = {info.dtype for header in source.headers for info in header.tensors.values()}
    details = {
        "architecture": architecture,
        "vocabulary": str(config.vocab_size),
        "context": str(context_length(source.config) or "unbounded"),
        "layers": str(getattr(config, "num_hidden_layers", "?")),
        "stored as": ", ".join(sorted(stored)),
    }
    if longest(recipe, source.config) < recipe.data.max_length:
        details["warning"] = _too_long(recipe, source)
    return details


def _too_long(recipe: CausalLmRecipe, source: Source) -> str:
    return (
        f"data.max_length is {recipe.data.max_length}, but the model reads "
        f"{context_length(source.config)} tokens: that is used"
    )


FAMILY = CausalLmFamily()
