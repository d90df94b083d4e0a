"""A micro SDXL: a third of a million weights, and still every path that the real one has."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.data.base import ImageExample
from acmsao_cli.models.quiet import quiet_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")


WORDS = ["red", "blue", "round", "square"]


@dataclass(frozen=True)
class Widths:
    """What distinguishes one micro SDXL from another."""

    unet: tuple[int, ...] = (8, 16, 32)
    transformers: tuple[int, ...] = (1, 1, 1)
    text: tuple[int, int] = (16, 24)
    projection: int = 24
    vae: tuple[int, ...] = (8, 8, 8, 8)
    groups: int = 4
    prediction: str = "epsilon"
    force_zeros: bool = True
    heads: tuple[int, ...] = (1, 2, 4)
    layers: int = 1


def micro_tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """Single letters, and the test's few words from merges."""
    letters = [chr(code) for code in range(33, 127)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        units = [*word[:-1], word[-1] + "</w>"]
        while len(units) > 1:
            merges.append((units[0], units[1]))
            units[:2] = [units[0] + units[1]]
    merges = list(dict.fromkeys(merges))
    tokens = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    more = {} if pad is None else {"pad_token": pad}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **more)


def micro_pipeline(widths: Widths = Widths(), seed: int = 0) -> StableDiffusionXLPipeline:
    """An untrained pipeline; its weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = micro_tokenizer(), micro_tokenizer("!")
        common: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=widths.text[0], intermediate_size=32, hidden_act="quick_gelu", **common
            )
        )
        text_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=widths.text[1],
                intermediate_size=48,
                hidden_act="gelu",
                projection_dim=widths.projection,
                **common,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=widths.unet,
            layers_per_block=widths.layers,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=list(widths.transformers),
            attention_head_dim=list(widths.heads),
            cross_attention_dim=sum(widths.text),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + widths.projection,
            norm_num_groups=widths.groups,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths.vae),
            up_block_types=("UpDecoderBlock2D",) * len(widths.vae),
            block_out_channels=widths.vae,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
            prediction_type=widths.prediction,
        )
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=text,
            text_encoder_2=text_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=widths.force_zeros,
            add_watermarker=False,
        )


@dataclass(frozen=True)
class Painted:
    """Opens a picture of one colour with a gradient across."""

    width: int
    height: int
    colour: tuple[int, int, int]

    def __call__(self) -> Image.Image:
        shade = Image.linear_gradient("L").rotate(90).resize((self.width, self.height))
        flat = Image.new("RGB", (self.width, self.height), self.colour)
        return Image.composite(flat, Image.new("RGB", flat.size), shade)


def examples() -> list[ImageExample]:
    """Three pictures: two square, one wide."""
    return [
        ImageExample("a.png", "red round", Painted(64, 64, (200, 30, 30))),
        ImageExample("b.png", "blue square", Painted(80, 80, (30, 30, 200))),
        ImageExample("c.png", "blue round", Painted(160, 80, (30, 90, 200))),
    ]


@dataclass(frozen=True)
class RecipeFor:
    """Builds a recipe for a model from a few overrides by section."""

    defaults: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "model": {"family": "sdxl"},
            "method": {"kind": "lora", "rank": 4},
            "data": {"source": "unused", "resolution": 64, "bucket_step": 16},
            "training": {"steps": 1},
        }
    )

    def __call__(self, source: Path | str, **sections: dict[str, Any]) -> SdxlRecipe:
        merged: dict[str, dict[str, Any]] = {
            name: {**self.defaults.get(name, {}), **sections.get(name, {})}
            for name in {*self.defaults, *sections}
        }
        if merged["method"]["kind"] == "full":
            merged["method"].pop("rank", None)
        merged["model"]["source"] = str(source)
        return SdxlRecipe.model_validate(merged)
