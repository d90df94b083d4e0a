"""Which layers of a language model get an adapter."""

from __future__ import annotations

from typing import Any

from acmsao_cli.config.sections import Lora
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.lora import ADAPTABLE, split_targets


def target_endings(model: Any, method: Lora) -> tuple[str, ...]:
    """Endings of the layers' names that `method.targets` stands for.

    attention: the projections inside attention blocks; all-linear: every linear layer but the one
    that makes the logits. Raises ConfigError if there is no such layer.
    """
    if isinstance(method.targets, tuple):
        return split_targets(method.targets, {"model": model})["model"]
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ADAPTABLE) and module is not head
    ]
    chosen = _attention(linear) if method.targets == "attention" else _short(linear)
    if not chosen:
        raise ConfigError(
            f"method.targets={method.targets} names no layer of this {type(model).__name__}",
            hint="name the layers by their endings: method.targets=[in_proj, out_proj]",
        )
    return tuple(dict.fromkeys(chosen))


def _short(names: list[str]) -> list[str]:
    """Last parts of names; whole names where that part is only a number."""
    lasts = [name.rsplit(".", 1)[-1] for name in names]
    return [name if last.isdigit() else last for name, last in zip(names, lasts, strict=True)]


def _attention(names: list[str]) -> list[str]:
    """With the block's name, since a GPT-2 has a c_proj in attention and another after it."""
    blocks = [name.split(".")[-2:] for name in names]
    return [".".join(block) for block in blocks if "attn" in block[0] or "attention" in block[0]]
