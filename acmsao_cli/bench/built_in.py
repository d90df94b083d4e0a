"""The openers of the built-in tasks: models, batches and what they are validated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from acmsao_cli import builtin
from acmsao_cli.bench.opened import Opened, evaluated
from acmsao_cli.bench.recipe_task import load
from acmsao_cli.bench.tasks import reference_texts
from acmsao_cli.config.layers import Request, resolve

VALIDATION_SEED = 20_000


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
    from diffusers import UNet2DModel

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
        return evaluated(model, lambda: float(loss(clean, times, noise)))

    return Opened(list(model.named_parameters()), training_loss, validation_loss)


# Text as tokens: a small Llama from scratch.

CONTEXT, ROWS = 64, 8


@cache
def reference_tokens() -> tuple[Tensor, Tensor]:
    """Token ids of the two texts, int64 (n,)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin.FOLDER / "tiny-llm", trust_remote_code=False)
    shown, held_out = (
        torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for text in reference_texts()
    )
    return shown, held_out


def open_reader(seed: int, width: int = 64) -> Opened:
    """A Llama of two layers with heads of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

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
        return loss(windows(shown, random_starts(shown, ROWS, draw)))

    def validation_loss() -> float:
        return evaluated(model, lambda: float(loss(windows(held_out, even_starts(held_out, 48)))))

    return Opened(list(model.named_parameters()), training_loss, validation_loss)


def random_starts(text: Tensor, rows: int, draw: torch.Generator) -> Tensor:
    """Where `rows` windows begin, int64 (rows,)."""
    return torch.randint(len(text) - CONTEXT - 1, (rows,), generator=draw)


def even_starts(text: Tensor, rows: int) -> Tensor:
    """Where `rows` windows begin, spread over the whole text."""
    return torch.linspace(0, len(text) - CONTEXT - 1, rows).long()


def windows(text: Tensor, starts: Tensor) -> Tensor:
    """Windows of CONTEXT symbols and the one after: int64 (len(starts), CONTEXT + 1)."""
    return text[starts.view(-1, 1) + torch.arange(CONTEXT + 1)]


# Text as bytes: a decoder of few operations, so that thousands of steps take seconds.

BYTES, WIDTH, HEADS, LAYERS = 256, 64, 2, 2


def normal(x: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1; no weights of its own."""
    return functional.layer_norm(x, (WIDTH,))


class Layer(nn.Module):
    """Causal self-attention and a perceptron, each added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attended = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, WIDTH) to the same."""
        batch, length, _ = x.shape
        mixed = self.queries_keys_values(normal(x))
        q, k, v = mixed.view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attended(heads.transpose(1, 2).reshape(batch, length, WIDTH))
        inner = self.up(normal(x))
        x = x + self.down(functional.relu(inner))
        return x


class ByteDecoder(nn.Module):
    """Predicts the next byte; 0.135M weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(BYTES, WIDTH)
        self.positions = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.lm_head = nn.Linear(WIDTH, BYTES, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.5 / math.sqrt(WIDTH))

    def forward(self, symbols: Tensor) -> Tensor:
        """Bytes as int64 (batch, CONTEXT) to logits (batch, CONTEXT, BYTES)."""
        x = self.embed_tokens(symbols) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(normal(x))
        return logits


@cache
def reference_bytes() -> tuple[Tensor, Tensor]:
    """The two texts in UTF-8, int64 (n,)."""
    shown, held_out = (torch.tensor(list(text.encode())) for text in reference_texts())
    return shown, held_out


def open_bytes(seed: int, rows: int) -> Opened:
    """Next-byte prediction from scratch, `rows` windows a step."""
    torch.manual_seed(seed)
    model = ByteDecoder()
    draw = torch.Generator().manual_seed(seed + 1)
    shown, held_out = reference_bytes()

    def loss(symbols: Tensor) -> Tensor:
        logits = model(symbols[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), symbols[:, 1:].flatten())

    def training_loss() -> Tensor:
        return loss(windows(shown, random_starts(shown, rows, draw)))

    def validation_loss() -> float:
        symbols = windows(held_out, even_starts(held_out, 256))
        return evaluated(model, lambda: float(loss(symbols)))

    return Opened(list(model.named_parameters()), training_loss, validation_loss)


# LoRA: the tiny chat model learns to talk like a pirate, through the package's own trainee.

CHATS, CHATS_HELD_OUT = 8, 30


def open_lora(seed: int) -> Opened:
    """Rank 8 on every linear layer; the loss is of the answers' tokens."""
    loaded = load(resolve(Request("quickstart-llm", None, ("model.dtype=fp32",))), seed)
    draw = torch.Generator().manual_seed(seed + 1)
    held_out, shown = loaded.items[:CHATS_HELD_OUT], loaded.items[CHATS_HELD_OUT:]

    def loss(chosen: Sequence[Any]) -> Tensor:
        return loaded.loss(loaded.trainee.collate(chosen, []))

    def training_loss() -> Tensor:
        picks = torch.randint(len(shown), (CHATS,), generator=draw)
        return loss([shown[int(pick)] for pick in picks])

    def validation_loss() -> float:
        return loaded.evaluate(lambda: float(loss(held_out)))

    return Opened(loaded.parameters, training_loss, validation_loss)
