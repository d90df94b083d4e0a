"""What the text encoders make of a caption: the UNet's two text conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from acmsao_cli.models.quiet import quiet_libraries


class TextCondition(NamedTuple):
    """`embeds` [n, tokens, width of both encoders], `pooled` [n, width of the projection]."""

    embeds: Tensor
    pooled: Tensor


def token_ids(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> Tensor:
    """int64 [n, 77]: cut or padded to the tokenizer's length, as the pipeline does."""
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


def count_tokens(tokenizer: PreTrainedTokenizerBase, caption: str) -> int:
    """How long the caption is before it is cut, start and end marks included."""
    with quiet_libraries():
        return len(tokenizer(caption).input_ids)


def num_cut(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> int:
    """How many captions `token_ids` cuts."""
    most = tokenizer.model_max_length
    return sum(count_tokens(tokenizer, caption) > most for caption in captions)


def condition(first: nn.Module, second: nn.Module, ids: Tensor, ids_2: Tensor) -> TextCondition:
    """Both encoders' last hidden states but one, side by side; the second's projected text."""
    out = first(ids, output_hidden_states=True)
    out_2 = second(ids_2, output_hidden_states=True)
    embeds = torch.cat([out.hidden_states[-2], out_2.hidden_states[-2]], dim=-1)
    return TextCondition(embeds, out_2.text_embeds)
