"""Micro models and tokenizers that behave like the families they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.data.base import Message, TextExample

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# The mark leaves the end of turn out, as many published templates do.
CHATML_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Writes BOS itself, ends answers with EOS.
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)


# No mark at all where an answer ends.
BARE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


# Says of earlier answers only how long they were.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content | length }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TEMPLATES = {
    "chatml": CHATML,
    "chatml-marked": CHATML_MARKED,
    "llama2": LLAMA2,
    "bare": BARE,
    "forgetful": FORGETFUL,
    "none": None,
}


CORPUS = ["what colour is the sky? the sky is blue. hello world, how are you?\n"] * 4


SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def build_tokenizer(
    template: str = "chatml", *, bos: bool = False, pad: str | None = "<pad>"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 300 tokens; with `bos` plain texts begin with <s>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", SPECIALS.index("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        chat_template=TEMPLATES[template],
    )


def build_model(kind: str) -> Any:
    """A two-layer model of the kind with random weights, without dropout."""
    torch.manual_seed(0)
    size = {
        "vocab_size": 328,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=False))
    if kind == "llama-tied":
        return LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=True))
    if kind == "llama-dynamic":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        return LlamaForCausalLM(LlamaConfig(**size, rope_parameters=rope))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**size, tie_word_embeddings=True))
    if kind == "gemma2":
        return Gemma2ForCausalLM(
            Gemma2Config(**size, head_dim=8, final_logit_softcapping=5.0, sliding_window=32)
        )
    if kind == "qwen3-moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
        config = Qwen3MoeConfig(**size, **experts, head_dim=8, tie_word_embeddings=False)
        return Qwen3MoeForCausalLM(config)
    assert kind == "gpt2"
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=328, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
            eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
        )
    )  # fmt: skip


def build_recipe(source: Path | str, **parts: dict[str, Any]) -> CausalLmRecipe:
    """A recipe with a few values changed: build_recipe(path, data={"max_length": 16})."""
    base: dict[str, dict[str, Any]] = {
        "model": {"family": "causal_lm", "source": str(source)},
        "method": {"kind": "full"},
        "data": {"source": "unused", "max_length": 64},
        "training": {"steps": 1, "seed": 3},
    }
    for name, values in parts.items():
        base[name] = values if name == "method" else {**base.get(name, {}), **values}
    return CausalLmRecipe.model_validate(base)


def build_chat(*turns: str, system: str | None = None, place: str = "a.jsonl:1") -> TextExample:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [Message(roles[number % 2], turn) for number, turn in enumerate(turns)]
    first = [Message("system", system)] if system else []
    return TextExample(place, messages=(*first, *messages))
