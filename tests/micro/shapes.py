"""Folders of published models without their weights: configurations, and headers of empty files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from acmsao_cli import builtin
from acmsao_cli.models.quiet import quiet_libraries

CONFIGS: Final = Path(__file__).parents[1] / "memory" / "shapes"
SMALL: Final = builtin.FOLDER / "tiny-sdxl"
LANGUAGE_MODELS: Final = tuple(sorted(file.stem for file in CONFIGS.glob("*.json")))


def write_headers(path: Path, module: nn.Module) -> None:
    """A safetensors file of bf16 weights that holds no more than its header: the rest is a hole."""
    header, at = {}, 0
    for name, tensor in module.state_dict().items():
        size = 2 * tensor.numel()
        offsets = [at, at + size]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        at += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)


def language_model(name: str, folder: Path, **changes: Any) -> Path:
    """A transformers folder of this model, with changes to its configuration.

    Its tokenizer is the built-in model's, of a smaller vocabulary: it can be opened, not talked to.
    """
    folder.mkdir(parents=True)
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin.FOLDER / "tiny-llm" / file, folder / file)
    with torch.device("meta"), quiet_libraries():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    write_headers(folder / "model.safetensors", model)
    return folder


def sdxl(folder: Path, *, published: bool = True) -> Path:
    """A diffusers folder of SDXL as it was published, else of the built-in one's size."""
    for part in ("scheduler", "tokenizer", "tokenizer_2"):
        shutil.copytree(SMALL / part, folder / part)
    shutil.copy(SMALL / "model_index.json", folder / "model_index.json")
    configs = PUBLISHED if published else {name: small_config(name) for name in PUBLISHED}
    with torch.device("meta"), quiet_libraries():
        parts = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**configs["text_encoder_2"])
            ),
        }
    for name, module in parts.items():
        (folder / name).mkdir()
        if name.startswith("text"):
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(folder / name)
            write_headers(folder / name / "model.safetensors", module)
        else:
            module.save_config(folder / name)
            write_headers(folder / name / "diffusion_pytorch_model.safetensors", module)
    return folder


def small_config(part: str) -> dict[str, Any]:
    """A part's configuration in the built-in model."""
    found: dict[str, Any] = json.loads((SMALL / part / "config.json").read_text(encoding="utf-8"))
    return found


UNET: Final[dict[str, Any]] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Final[dict[str, Any]] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
TEXT_2: Final[dict[str, Any]] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "unet": UNET,
    "vae": VAE,
    "text_encoder": TEXT,
    "text_encoder_2": TEXT_2,
}
