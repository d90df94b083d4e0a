"""A causal language model under training."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.rules import formats_of
from acmsao_cli.config.sections import Lora
from acmsao_cli.data.base import Example, Unusable, refused
from acmsao_cli.data.randomness import Draw
from acmsao_cli.models.base import (
    Batch,
    Exported,
    ParameterGroup,
    Progress,
    Sample,
    TrainingFacts,
    silent,
)
from acmsao_cli.models.causal_lm import encode as encoding
from acmsao_cli.models.causal_lm.closed_form import activation_bytes
from acmsao_cli.models.causal_lm.export import WRITERS, Work
from acmsao_cli.models.causal_lm.head import Left, positions_at_once, summed_loss
from acmsao_cli.models.causal_lm.sample import answers
from acmsao_cli.models.causal_lm.source import Source, load_tokenizer, longest
from acmsao_cli.models.causal_lm.targets import target_endings
from acmsao_cli.models.lora import attach_lora


class CausalLmTrainee:
    """A transformers model with LoRA or full training applied (a `models.base.Trainee`)."""

    def __init__(
        self, recipe: CausalLmRecipe, source: Source, model: Any, device: torch.device | None = None
    ) -> None:
        """Apply the recipe's method to `model`, which is changed in place.

        `device` is where it is to compute, if it is not there yet.
        """
        self.recipe, self.source, self.model = recipe, source, model
        self.device: torch.device = device or model.device
        self.dtype: torch.dtype = model.dtype
        self.length = longest(recipe, source.config)
        vocabulary = source.text_config.vocab_size
        self.at_once = positions_at_once(recipe.memory.loss_chunk, vocabulary)
        self._left: Left | None = [] if recipe.memory.slice_head else None
        _apply(recipe, model)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; the planner never asks for it."""
        tokenizer = load_tokenizer(self.source.located)
        encoding.prepare_tokenizer(tokenizer, self.recipe)
        return tokenizer

    def parameter_groups(self) -> list[ParameterGroup]:
        """All that is trained, in the model's order; weights that two layers share stand once."""
        trained = [
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        ]
        return [ParameterGroup(tuple(trained))]

    def modules(self) -> Mapping[str, nn.Module]:
        """The one model."""
        return {"model": self.model}

    def blocks(self) -> Sequence[nn.Module]:
        """The decoder's layers; none where it has no list of them."""
        count = getattr(self.source.text_config, "num_hidden_layers", None)
        lists = [m for m in self.model.get_decoder().modules() if isinstance(m, nn.ModuleList)]
        return next((list(found) for found in lists if len(found) == count), ())

    def activation_bytes(self, batch_size: int, *, checkpointed: bool, offloaded: bool) -> int:
        """By formula, of the longest examples."""
        tokens = batch_size * self.length
        return activation_bytes(self, tokens, checkpointed=checkpointed, offloaded=offloaded)

    def at_rest(self) -> Sequence[nn.Module]:
        """Everything takes part."""
        return ()

    @property
    def item_bytes(self) -> int:
        """A number and a flag for each token."""
        return self.length * encoding.TOKEN_BYTES

    def encode(
        self,
        examples: Sequence[Example],
        progress: Progress = silent,
        unusable: Unusable = refused,
    ) -> list[encoding.Item]:
        """Token ids with what is learned marked. Raises DataError if nothing is left to learn."""
        items = encoding.encode(
            self.tokenizer, examples, self.recipe.data, self.length, progress, unusable
        )
        encoding.check_ids(items, self.source.text_config.vocab_size)
        return items

    def group_key(self, item: encoding.Item) -> Hashable:
        """Any items go together: they are padded."""
        return None

    def collate(self, items: Sequence[encoding.Item], draws: Sequence[Draw]) -> Batch:
        """Items padded on the right; nothing about them is random."""
        return encoding.collate(items, filler=0, device=self.device)

    def meta_batch(self, batch_size: int) -> Batch:
        """`batch_size` rows of the greatest length, every token trained."""
        return encoding.largest_batch(batch_size, self.length, self.device)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over the batch's trained tokens.

        Only positions that predict something are projected to the vocabulary, a chunk at a time, by
        the model's own forward, which knows its scales and caps.
        """
        inputs = dict(batch.inputs)
        targets, kept = inputs.pop("targets"), inputs.pop("kept")
        with _unpacked(self.device):
            return summed_loss(self.model, inputs, kept, targets, self.at_once, self._left)

    def gradients_in_rows(self) -> Left:
        """The head's, where `memory.slice_head` keeps it from being taken whole."""
        if not self._left:
            return []
        found, self._left = self._left, []
        return found

    def sample(self) -> Iterator[Sample]:
        """The answers to the recipe's prompts."""
        wanted = self.recipe.samples
        return answers(self.model, self.tokenizer, wanted.prompts, wanted.max_new_tokens)

    def export(self, directory: Path, facts: TrainingFacts) -> list[Exported]:
        """The recipe's formats: PEFT adapter, transformers folder. Raises OutputError."""
        work = Work(self.recipe, self.model, self.tokenizer, self.source, facts)
        return [WRITERS[name](work, directory) for name in formats_of(self.recipe)]


def _apply(recipe: CausalLmRecipe, model: Any) -> None:
    if isinstance(recipe.method, Lora):
        endings = target_endings(model, recipe.method)
        attach_lora(model, recipe.method, endings, recipe.training.seed, "model")
    else:
        model.requires_grad_(True)
        _own_memory(model)
    if recipe.training.gradient_checkpointing:
        # The first name is the library's newer one; both take the same keywords.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.train()


def _own_memory(model: nn.Module) -> None:
    """Copy weights that are still the mapped file: what is trained must not hang on an input."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


@contextlib.contextmanager
def _unpacked(device: torch.device) -> Iterator[None]:
    """On the meta device, keep transformers from asking a tensor whether several texts share a row.

    They never do here, and a meta tensor has no answer.
    """
    ask = masking_utils.find_packed_sequence_indices
    if device.type == "meta":
        masking_utils.find_packed_sequence_indices = lambda *_: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = ask
