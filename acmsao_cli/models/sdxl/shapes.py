"""The configuration of an SDXL single file, as far as the shapes of its weights tell.

They tell all widths and depths. What they leave open is taken from SDXL, on which its relatives
agree: attention heads of 64, norms of 32 groups, the latents' scale, the activations. A width that
those do not divide is not SDXL's kin and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acmsao_cli.errors import ModelError
from acmsao_cli.models.sdxl.clip_tokenizer import VOCABULARY_SIZE
from acmsao_cli.models.sdxl.components import Config
from acmsao_cli.models.sdxl.layout import PREFIXES, Shape

HEAD_WIDTH = 64
NORM_GROUPS = 32
LATENT_SCALE = 0.13025

Shapes = Mapping[str, Shape]


def derive_configs(shapes: Shapes, place: Path) -> dict[str, Config]:
    """A configuration for each component. Raises ModelError if `shapes` are not SDXL's kin."""
    inside = {
        component: {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
        for component, prefix in PREFIXES.items()
    }
    try:
        text_2 = _open_clip(inside["text_encoder_2"])
        return {
            "unet": _unet(inside["unet"], text_2["projection_dim"]),
            "vae": _vae(inside["vae"]),
            "text_encoder": _clip(inside["text_encoder"]),
            "text_encoder_2": text_2,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"{place}: the shapes of its weights do not tell its configuration ({error})",
            hint="name a diffusers folder that describes it, --set model.config=FOLDER, or put one "
            f"beside the file, named {place.stem}; its small files are enough",
        ) from error


def _count(shapes: Shapes, pattern: str) -> int:
    """How many of `pattern`.format(0), (1), ... begin a name."""
    number = 0
    while any(name.startswith(pattern.format(number)) for name in shapes):
        number += 1
    return number


def _divided(width: int, by: int, what: str) -> int:
    if width % by:
        raise ValueError(f"{what} of {by} do not divide a width of {width}")
    return width // by


def _unet(shapes: Shapes, pooled: int) -> dict[str, Any]:
    layers, channels, depths = _down_blocks(shapes)
    for width in channels:
        _divided(width, NORM_GROUPS, "norm groups")
    attended = [depth > 0 for depth in depths]
    kinds = ["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attended]
    kinds_up = ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in attended[::-1]]
    transformer = f"input_blocks.{_first_attended(layers, attended)}.1"
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": kinds,
        "up_block_types": kinds_up,
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": [
            _divided(width, HEAD_WIDTH, "attention heads") if on else max(1, width // HEAD_WIDTH)
            for width, on in zip(channels, attended, strict=True)
        ],
        "cross_attention_dim": shapes[f"{transformer}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[f"{transformer}.proj_in.weight"]) == 2,
        "norm_num_groups": NORM_GROUPS,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _divided(shapes["label_emb.0.0.weight"][1] - pooled, 6, "sizes"),
        "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
    }


def _down_blocks(shapes: Shapes) -> tuple[list[int], list[int], list[int]]:
    """Of each down block: its resnets, its width, the depth of its transformers."""
    layers, channels, depths = [0], [0], [0]
    for number in range(1, _count(shapes, "input_blocks.{}.")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            layers, channels, depths = [*layers, 0], [*channels, 0], [*depths, 0]
            continue
        layers[-1] += 1
        channels[-1] = shapes[f"input_blocks.{number}.0.in_layers.2.weight"][0]
        depths[-1] = _count(shapes, f"input_blocks.{number}.1.transformer_blocks.{{}}.")
    return layers, channels, depths


def _first_attended(layers: list[int], attended: list[bool]) -> int:
    """The number of the first input block with a transformer."""
    before = attended.index(True)
    return 1 + sum(count + 1 for count in layers[:before])


def _vae(shapes: Shapes) -> dict[str, Any]:
    blocks = _count(shapes, "encoder.down.{}.")
    channels = [shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(blocks)]
    for width in channels:
        _divided(width, NORM_GROUPS, "norm groups")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, "encoder.down.0.block.{}."),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": 1024,
        "scaling_factor": LATENT_SCALE,
        "force_upcast": True,
    }


def _clip(shapes: Shapes) -> dict[str, Any]:
    tokens, width = shapes["text_model.embeddings.token_embedding.weight"]
    inner = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    layers = _count(shapes, "text_model.encoder.layers.{}.")
    return _text_config(tokens, width, inner, layers) | {
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "architectures": ["CLIPTextModel"],
    }


def _open_clip(shapes: Shapes) -> dict[str, Any]:
    tokens, width = shapes["token_embedding.weight"]
    inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    layers = _count(shapes, "transformer.resblocks.{}.")
    return _text_config(tokens, width, inner, layers) | {
        "hidden_act": "gelu",
        "projection_dim": shapes["text_projection"][1],
        "architectures": ["CLIPTextModelWithProjection"],
    }


def _text_config(tokens: int, width: int, inner: int, layers: int) -> dict[str, Any]:
    if tokens != VOCABULARY_SIZE:
        raise ValueError(f"its vocabulary of {tokens} tokens is not CLIP's")
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": _divided(width, HEAD_WIDTH, "attention heads"),
        "max_position_embeddings": 77,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": 1,
    }
