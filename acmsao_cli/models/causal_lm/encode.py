"""Examples as token ids with the tokens to be learned marked, and batches of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acmsao_cli.config.causal_lm import CausalLmRecipe, TextData
from acmsao_cli.data.base import Example, TextExample, Unusable, refused
from acmsao_cli.errors import DataError, ModelError
from acmsao_cli.models.base import Batch, Progress
from acmsao_cli.models.causal_lm.chat import Tokens, chat_tokens, plain_template, with_eos
from acmsao_cli.models.causal_lm.loss import IGNORED
from acmsao_cli.models.quiet import quiet_libraries

logger = logging.getLogger(__name__)


# Of a token: an int32 and a bool.
TOKEN_BYTES = 5


@dataclass(frozen=True)
class Item:
    """One example: `ids` (length,) int32, `trained` (length,) bool, on the CPU."""

    ids: Tensor
    trained: Tensor

    @property
    def num_trained(self) -> int:
        """Tokens that are learned."""
        return int(self.trained.sum())


def prepare_tokenizer(tokenizer: Any, recipe: CausalLmRecipe) -> None:
    """Give instructions a plain template where the tokenizer has no chat template."""
    if recipe.data.format == "instruction" and not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)


def tokenize(tokenizer: Any, example: Example, data: TextData) -> Tokens:
    """The whole example, however long. Raises DataError, and ModelError where all would fail."""
    assert isinstance(example, TextExample)
    if example.messages is None:
        ids = tokenizer(example.text)["input_ids"]
        return with_eos(tokenizer, Tokens(ids, [True] * len(ids)))
    if not tokenizer.chat_template:
        raise ModelError(
            f"{example.place} is a chat, but the model's tokenizer has no chat template",
            hint="set data.format=instruction for single questions with answers, use plain texts, "
            "or start from a model that was tuned for chat",
        )
    return chat_tokens(tokenizer, example, everything=data.train_on == "everything")


def encode(
    tokenizer: Any,
    examples: Sequence[Example],
    data: TextData,
    limit: int,
    progress: Progress,
    unusable: Unusable = refused,
) -> list[Item]:
    """Items of at most `limit` tokens that have something to learn; what was lost is logged.

    What cannot be made into tokens is told to `unusable`.

    Raises DataError if nothing is left, and ModelError for ids the model has no embedding for.
    """
    items, lost = [], Counter[str]()
    with quiet_libraries():
        for number, example in enumerate(examples, 1):
            progress(number, len(examples))
            try:
                tokens = tokenize(tokenizer, example, data)
            except DataError as error:
                unusable(example, error)
                continue
            fate, item = fit(tokens, limit, data.over_long)
            lost[fate] += 1
            if item is not None:
                items.append(item)
    _tell(lost, len(examples), limit)
    if not items:
        raise DataError(
            f"none of the {len(examples)} examples has a token to learn within {limit} tokens",
            hint="raise data.max_length, or set data.train_on=everything",
        )
    return items


WHOLE, CUT, TOO_LONG, NOTHING = "whole", "cut", "too long", "nothing to learn"


def fit(tokens: Tokens, limit: int, over_long: str) -> tuple[str, Item | None]:
    """What becomes of an example under the length limit, and the item that is left of it."""
    too_long = len(tokens.ids) > limit
    if too_long and over_long == "drop":
        return TOO_LONG, None
    trained = torch.tensor(tokens.trained[:limit], dtype=torch.bool)
    trained[:1] = False  # nothing comes before the first token, so nothing predicts it
    item = Item(torch.tensor(tokens.ids[:limit], dtype=torch.int32), trained)
    if not item.num_trained:
        return NOTHING, None
    return (CUT if too_long else WHOLE), item


def _tell(lost: Counter[str], total: int, limit: int) -> None:
    messages = {
        CUT: f"were cut at {limit} tokens (data.over_long=truncate)",
        TOO_LONG: f"have more than {limit} tokens and were left out (data.over_long=drop)",
        NOTHING: f"have nothing to learn within {limit} tokens and were left out",
    }
    for fate, message in messages.items():
        if lost[fate]:
            logger.warning("%d of %d examples %s", lost[fate], total, message)


def check_ids(items: Sequence[Item], vocabulary: int) -> None:
    """Raise ModelError if the tokenizer writes ids that the model has no embedding for."""
    largest = max(int(item.ids.max()) for item in items)
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer writes token {largest}, but the model has only {vocabulary} embeddings",
            hint="the tokenizer belongs to another model",
        )


def collate(items: Sequence[Item], filler: int, device: torch.device) -> Batch:
    """Items padded on the right to the longest.

    input_ids (batch, length); attention_mask, only where something is padded, since without one
    attention takes the faster causal kernel; kept (k,), the positions, counted row after row, that
    predict a trained token; targets (k,), the token each of them predicts. The weight is k.
    """
    length = max(len(item.ids) for item in items)
    ids = torch.full((len(items), length), filler)
    present = torch.zeros(len(items), length, dtype=torch.long)
    targets = torch.full((len(items), length), IGNORED)
    for row, item in enumerate(items):
        end = len(item.ids)
        ids[row, :end], present[row, :end] = item.ids.long(), 1
        targets[row, : end - 1] = torch.where(item.trained[1:], item.ids[1:].long(), IGNORED)
    kept = (targets.flatten() != IGNORED).nonzero()[:, 0]
    inputs = {"input_ids": ids, "targets": targets.flatten()[kept], "kept": kept}
    if not present.all():
        inputs["attention_mask"] = present
    return Batch(float(len(kept)), {name: value.to(device) for name, value in inputs.items()})


def largest_batch(batch_size: int, length: int, device: torch.device) -> Batch:
    """A full batch in which every token is trained, as `collate` would give it, all zeros."""
    count = batch_size * (length - 1)
    inputs = {
        "input_ids": torch.zeros(batch_size, length, dtype=torch.long, device=device),
        "targets": torch.zeros(count, dtype=torch.long, device=device),
        "kept": torch.zeros(count, dtype=torch.long, device=device),
    }
    return Batch(float(count), inputs)


def marked_text(tokenizer: Any, item: Item) -> Iterator[str]:
    """The item's text in pieces, trained ones between [[ and ]]."""
    start, trained = 0, item.trained.tolist()
    for end in range(1, len(trained) + 1):
        if end == len(trained) or trained[end] != trained[start]:
            piece = tokenizer.decode(item.ids[start:end].tolist(), skip_special_tokens=False)
            yield f"[[{piece}]]" if trained[start] else piece
            start = end
