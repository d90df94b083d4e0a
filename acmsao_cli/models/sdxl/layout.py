"""The original SDXL layout: one file, other names, some weights in other shapes.

Single files and kohya's LoRA names are both written in it. Every weight of a diffusers component
has one `Place` there; the same table reads and writes, for networks of any width and depth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


@dataclass(frozen=True)
class Place:
    """Where a weight lies in the original layout, and how.

    `third` is its part of a fused query-key-value weight; `convolution` says that a linear
    weight is stored as a 1x1 convolution.
    """

    key: str
    third: int | None = None
    transposed: bool = False
    convolution: bool = False

    def stored_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """The shapes its tensor may have in a file; the first is the one written."""
        if self.third is not None:
            return ((3 * shape[0], *shape[1:]),)
        if self.transposed:
            return (shape[::-1],)
        return ((*shape, 1, 1), shape) if self.convolution else (shape,)

    def take(self, stored: Tensor, shape: Shape) -> Tensor:
        """The weight of `shape` out of the stored tensor."""
        if self.third is not None:
            stored = stored[self.third * shape[0] : (self.third + 1) * shape[0]]
        return stored.t() if self.transposed else stored.reshape(shape)


def places(
    component: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Place]:
    """The place of each weight of a component, prefix included, by its diffusers name."""
    prefix = PREFIXES[component]
    found = {name: _place(component, config, name, shape) for name, shape in shapes.items()}
    return {name: replace(place, key=prefix + place.key) for name, place in found.items()}


def _place(component: str, config: Mapping[str, Any], name: str, shape: Shape) -> Place:
    match component:
        case "unet":
            return Place(unet_name(name, config))
        case "vae":
            return _vae_place(name, shape, len(config["block_out_channels"]))
        case "text_encoder":
            return Place(clip_name(name))
    return _open_clip_place(clip_name(name))


UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_INNER = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """A UNet weight's or module's name in the original layout."""
    for ours, theirs in UNET_TOP.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    match = UNET_INNER.fullmatch(name)
    if match is None:
        raise KeyError(name)
    side, block, kind, number, rest = match.groups()
    if kind == "resnets":
        head, _, tail = rest.partition(".")
        rest = UNET_RESNET[head] + ("." + tail if tail else "")
    if kind == "downsamplers":
        rest = rest.replace("conv", "op", 1)
    return f"{_unet_block(side, int(block or 0), kind, int(number), config)}.{rest}"


def _unet_block(side: str | None, block: int, kind: str, number: int, c: Mapping[str, Any]) -> str:
    """The numbers count through all blocks: one for each resnet, and one for each downsampler."""
    if side is None:
        return f"middle_block.{2 * number + (kind == 'attentions')}"
    layers = layers_per_block(c)
    if side == "down":
        first = 1 + list(accumulate((n + 1 for n in layers), initial=0))[block]
        step = layers[block] if kind == "downsamplers" else number
        return f"input_blocks.{first + step}.{int(kind == 'attentions')}"
    layers = layers[::-1]
    first = list(accumulate((n + 1 for n in layers), initial=0))[block]
    if kind == "upsamplers":
        after = 2 if "Attn" in c["up_block_types"][block] else 1
        return f"output_blocks.{first + layers[block]}.{after}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}"


def layers_per_block(config: Mapping[str, Any]) -> list[int]:
    """Resnets in each down block."""
    layers = config["layers_per_block"]
    return [layers] * len(config["block_out_channels"]) if isinstance(layers, int) else list(layers)


VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def _vae_place(name: str, shape: Shape, num_blocks: int) -> Place:
    attention = re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name)
    if attention is not None:
        coder, part, kind = attention.groups()
        key = f"{coder}.mid.attn_1.{VAE_ATTENTION[part]}.{kind}"
        return Place(key, convolution=part != "group_norm" and len(shape) == 2)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(
        r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name
    )
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(  # counted from the picture's side
        r"up_blocks\.(\d+)", lambda found: f"up.{num_blocks - 1 - int(found[1])}", name
    )
    name = re.sub(r"(up\.\d+)\.resnets", r"\1.block", name)
    return Place(re.sub(r"(up\.\d+)\.upsamplers\.0", r"\1.upsample", name))


def clip_name(name: str) -> str:
    """A CLIP weight's or module's name with the `text_model.` level.

    transformers 5.6 dropped it from CLIPTextModel; every other program goes on expecting it.
    """
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


OPEN_CLIP_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
FUSED: Sequence[str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _open_clip_place(name: str) -> Place:
    if name == "text_projection.weight":
        return Place("text_projection", transposed=True)
    if name in OPEN_CLIP_TOP:
        return Place(OPEN_CLIP_TOP[name])
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise KeyError(name)
    layer, part, kind = match.groups()
    block = f"transformer.resblocks.{layer}"
    if part in FUSED:
        return Place(f"{block}.attn.in_proj_{kind}", third=FUSED.index(part))
    return Place(f"{block}.{OPEN_CLIP_LAYER[part]}.{kind}")
