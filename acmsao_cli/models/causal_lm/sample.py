"""What the model answers to a few prompts, always in the same way, so that runs can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from acmsao_cli.data.base import Message, TextExample
from acmsao_cli.models.base import Sample
from acmsao_cli.models.causal_lm.chat import as_dicts, end_of_turn, render
from acmsao_cli.models.causal_lm.source import context_length
from acmsao_cli.models.quiet import quiet_libraries


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> Iterator[Sample]:
    """The most likely continuation of each prompt, up to an end mark.

    The model is in training mode again before each is handed out.
    """
    for prompt in prompts:
        with evaluating(model), torch.no_grad(), quiet_libraries():
            text = answer(model, tokenizer, prompt, max_new_tokens)
        yield Sample(prompt, text=text)


def answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    """The most likely continuation of one prompt, without what marks its end."""
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    room = (context_length(model.config) or ids.shape[1] + max_new_tokens) - ids.shape[1]
    if room < 1:
        return "[the prompt fills the model's whole context]"
    ends = stop_ids(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=min(max_new_tokens, room),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # one sequence at a time: nothing is padded
        use_cache=True,
    )
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    text: str = tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
    return text.strip()


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as a chat's first turn, or as it is where the tokenizer knows no chats."""
    if tokenizer.chat_template:
        chat = TextExample("samples.prompts", (Message("user", prompt),))
        text = render(tokenizer, chat, as_dicts(chat.messages or ()), prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    ids = tokenizer(prompt)["input_ids"]
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ended else ids


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the model's, the tokenizer's EOS, the template's end of turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own_ids = own if isinstance(own, list) else [own]
    turn_end = end_of_turn(tokenizer) if tokenizer.chat_template else None
    vocabulary = model.config.get_text_config().vocab_size
    found = [token for token in (*own_ids, tokenizer.eos_token_id, turn_end) if token is not None]
    return sorted({token for token in found if token < vocabulary})


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode within; every module's own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
