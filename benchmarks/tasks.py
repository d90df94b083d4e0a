"""Small real tasks for comparing optimizers: seconds each on one core, from what ships with the
package and with Python.

A task is opened with a seed, which draws its first weights and its batches; what it is validated on
is the same for every seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pydoc_data import topics
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from acmsao_cli import builtin
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.data.reading import read, require
from acmsao_cli.models import catalog

CPU = torch.device("cpu")
VALIDATION_SEED = 20_000


@dataclass(frozen=True)
class Opened:
    """A task with its weights: losses are means, over what the task counts."""

    parameters: list[tuple[str, nn.Parameter]]
    training_loss: Callable[[], Tensor]  # of the next batch
    validation_loss: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """`open` takes a seed."""

    name: str
    about: str
    unit: str
    steps: int
    open: Callable[[int], Opened]


# Pictures: a small UNet learns to draw, from 15 pictures; 5 are held out.

SIDE, PICTURES_HELD_OUT, LEVELS = 16, 5, 8


@cache
def pictures() -> Tensor:
    """The zoblins at 16 x 16, fp32 (20, 3, 16, 16) in [-1, 1]."""
    files = sorted((builtin.FOLDER / "zoblins").glob("*.png"))
    small = [
        Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for file in files
    ]
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in small])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).div(127.5).sub(1)


def open_pictures(seed: int) -> Opened:
    """Rectified flow: from x_t = (1 - t) x + t n, the network tells n - x (arXiv:2209.03003)."""
    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
    )
    draw = torch.Generator().manual_seed(seed + 1)
    shown, held_out = pictures()[PICTURES_HELD_OUT:], pictures()[:PICTURES_HELD_OUT]

    def loss(clean: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        mix = times.view(-1, 1, 1, 1)
        predicted = model((1 - mix) * clean + mix * noise, times * 1000).sample
        return functional.mse_loss(predicted, noise - clean)

    def training_loss() -> Tensor:
        clean = shown[torch.randint(len(shown), (6,), generator=draw)]
        mirrored = torch.rand(6, 1, 1, 1, generator=draw) < 0.5
        clean = torch.where(mirrored, clean.flip(3), clean)
        times = torch.rand(6, generator=draw)
        return loss(clean, times, torch.randn(clean.shape, generator=draw))

    def validation_loss() -> float:
        fixed = torch.Generator().manual_seed(VALIDATION_SEED)
        clean = held_out.repeat_interleave(LEVELS, 0)
        times = ((torch.arange(LEVELS) + 0.5) / LEVELS).repeat(len(held_out))
        noise = torch.randn(clean.shape, generator=fixed)
        return _evaluated(model, lambda: float(loss(clean, times, noise)))

    return Opened(list(model.named_parameters()), training_loss, validation_loss)


# Text: a small Llama from scratch on Python's own language reference.

CONTEXT, ROWS = 64, 8


@cache
def reference_tokens() -> tuple[Tensor, Tensor]:
    """Token ids of `pydoc_data.topics`, int64 (n,): nine topics of ten, and every tenth."""
    tokenizer = AutoTokenizer.from_pretrained(builtin.FOLDER / "tiny-llm")
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    shown = "\n".join(text for number, text in enumerate(texts) if number % 10)
    held_out = "\n".join(texts[::10])
    shown_ids, held_out_ids = (
        tokenizer(text, verbose=False)["input_ids"] for text in (shown, held_out)
    )
    return torch.tensor(shown_ids), torch.tensor(held_out_ids)


def text_digest() -> str:
    """Which text it was: it comes with Python and changes with its versions."""
    joined = "".join(topics.topics[name] for name in sorted(topics.topics))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def open_text(seed: int) -> Opened:
    """Next-token prediction; two layers of width 64."""
    return open_reader(seed, width=64)


def open_reader(seed: int, width: int) -> Opened:
    """A Llama of two layers with heads of 32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=994,
        hidden_size=width,
        intermediate_size=width * 21 // 8,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        initializer_range=0.05,  # at the usual 0.02 so small a model idles for a hundred steps
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(seed + 1)
    shown, held_out = reference_tokens()

    def loss(rows: Tensor) -> Tensor:
        logits = model(rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def training_loss() -> Tensor:
        starts = torch.randint(len(shown) - CONTEXT - 1, (ROWS,), generator=draw)
        return loss(torch.stack([shown[start : start + CONTEXT + 1] for start in starts]))

    def validation_loss() -> float:
        starts = torch.linspace(0, len(held_out) - CONTEXT - 1, 48).long()
        rows = torch.stack([held_out[start : start + CONTEXT + 1] for start in starts])
        return _evaluated(model, lambda: float(loss(rows)))

    return Opened(list(model.named_parameters()), training_loss, validation_loss)


# LoRA: the tiny chat model learns to talk like a pirate, through the package's own trainee.

CHATS, CHATS_HELD_OUT = 8, 30


def open_lora(seed: int) -> Opened:
    """Rank 8 on every linear layer; the loss is of the answers' tokens."""
    settings = ("model.dtype=fp32", f"training.seed={seed}")
    recipe = resolve(Request("quickstart-llm", None, settings)).recipe
    trainee = catalog.family("causal_lm").open(recipe, CPU, torch.float32)
    items = trainee.encode(require(read(recipe.data)))
    draw = torch.Generator().manual_seed(seed + 1)
    held_out, shown = items[:CHATS_HELD_OUT], items[CHATS_HELD_OUT:]

    def loss(chosen: Sequence[Any]) -> Tensor:
        batch = trainee.collate(chosen, [])
        return trainee.loss(batch) / batch.weight

    def training_loss() -> Tensor:
        picks = torch.randint(len(shown), (CHATS,), generator=draw)
        return loss([shown[int(pick)] for pick in picks])

    def validation_loss() -> float:
        return _evaluated(trainee.modules()["model"], lambda: float(loss(held_out)))

    groups = trainee.parameter_groups()
    parameters = [pair for group in groups for pair in group.parameters]
    return Opened(parameters, training_loss, validation_loss)


@torch.no_grad()
def _evaluated(model: nn.Module, measure: Callable[[], float]) -> float:
    model.eval()
    value = measure()
    model.train()
    return value


TASKS = {
    task.name: task
    for task in (
        Task(
            "pictures",
            "a UNet of 0.2M parameters draws zoblins at 16 x 16 (rectified flow), from scratch",
            "mean squared error on 5 held-out pictures at 8 noise levels",
            150,
            open_pictures,
        ),
        Task(
            "text",
            "a Llama of 0.2M parameters reads Python's language reference, from scratch",
            "cross-entropy per token on every tenth topic",
            260,
            open_text,
        ),
        Task(
            "lora",
            "LoRA of rank 8 on builtin:tiny-llm (2.1M parameters) learns builtin:pirate",
            "cross-entropy per answer token on 30 held-out chats",
            60,
            open_lora,
        ),
    )
}
