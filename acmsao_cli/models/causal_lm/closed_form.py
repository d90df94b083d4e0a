"""What a step of a language model keeps of its activations, by formula: to search, not to decide.

For decoders of the usual kind (two norms, grouped attention, a gated MLP), t tokens, hidden width
h, MLP width f, queries q and keys kv wide, n heads, vocabulary V:

    a layer keeps      t (16 h + 4 q + 4 kv + 8 f + 4 n) bytes in bf16; 8 h and 6 f if it is frozen
    norms of q and k   t 6 (q + kv) more; 4 (q + kv) if they are frozen
    each adapter       t (4 inputs + 4 rank) more, in fp32
    checkpointing      t 2 h for each layer, and one layer's own at a time, with what backward adds:
                       4 h and 6 f; 10 h and 6 f if it is frozen
    quantized          one matrix of the MLP as it computes
    the loss head      min(chunk, t) 4 V, the gradient of a trained head, and fp32 slices
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.models.causal_lm.loss import SLICE_ENTRIES
from acmsao_cli.models.lora import ADAPTER, adapted_layers


def activation_bytes(trainee: Any, tokens: int, *, checkpointed: bool, offloaded: bool) -> int:
    """The most of activations, temporaries and loss head at any moment of a step."""
    config, size = trainee.source.text_config, trainee.dtype.itemsize
    hidden, vocabulary = config.hidden_size, config.vocab_size
    blocks, full = trainee.blocks(), trainee.recipe.method.kind == "full"
    normed = any(hasattr(one, "q_norm") for block in blocks[:1] for one in block.modules())
    layer = tokens * _layer_bytes(config, full, normed) * size // 2
    layer += (
        tokens
        * sum(_adapter_bytes(one) for _, one in adapted_layers(trainee.model))
        // max(len(blocks), 1)
    )
    entry = tokens * hidden * size
    ends = 4 * tokens * hidden * size
    chunk = min(trainee.at_once or tokens, tokens)
    whole_head = full and not trainee.recipe.memory.slice_head
    trained_head = vocabulary * hidden * size if whole_head else 0
    logits = chunk * vocabulary
    head = logits * 2 * size + trained_head + 8 * min(SLICE_ENTRIES, logits)
    kept = len(blocks) * (entry if checkpointed else layer)
    if offloaded:
        kept = 2 * entry
    within = (
        layer + _backward_bytes(config, full) * tokens * size // 2 if checkpointed else 2 * entry
    )
    tied = trained_head if full and config.tie_word_embeddings else 0
    if trainee.recipe.model.quantize != "none":
        within += _inner(config) * hidden * size
    within += tied or -_left_by_the_head(trainee.recipe, trained_head)
    return int(max(kept + ends + head, kept + within, 3 * tied))


def _left_by_the_head(recipe: CausalLmRecipe, trained_head: int) -> int:
    """Of gradients that wait since earlier micro-batches: stepped before the layers begin."""
    fused = recipe.optimizer.fused_backward and recipe.training.planned_portions > 1
    return trained_head if fused else 0


def _backward_bytes(config: Any, full: bool) -> int:
    """Of a token, in bf16: what a layer that is computed again holds beside what it keeps.

    Of the MLP 4 f: the gradients of its product and of one factor, or, where both are not there
    yet, an adapter's answer in fp32 before and after it is scaled, without the next one's input.
    The allocator takes 2 f more: so wide a tensor fits no hole that narrower ones left.
    Of the states 4 h: gradients of what came out. A frozen layer has one in fp32, for an adapter,
    and waits for the MLP with its residual.
    """
    return int((4 if full else 10) * config.hidden_size + 6 * _inner(config))


def _layer_bytes(config: Any, full: bool, normed: bool) -> int:
    """Of a token, in bf16; `normed` where queries and keys have norms of their own."""
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or hidden // heads
    queries = heads * width
    keys = (getattr(config, "num_key_value_heads", None) or heads) * width
    inner = _inner(config)
    attention = 4 * (queries + keys) + 4 * heads
    if normed:
        attention += (6 if full else 4) * (queries + keys)
    return int((16 if full else 8) * hidden + (8 if full else 6) * inner + attention)


def _inner(config: Any) -> int:
    return getattr(config, "intermediate_size", None) or 4 * int(config.hidden_size)


def _adapter_bytes(layer: Any) -> int:
    """Of a token: the fp32 copy of the input, and what lies between down and up."""
    down: Tensor = layer.lora_A[ADAPTER].weight
    return 4 * sum(down.shape)
