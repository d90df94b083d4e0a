"""Models of true size without their files: random weights behind the run's own loading code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from cases import SDXL, Case
from micro.shapes import language_model, sdxl
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import AutoModelForCausalLM

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.recipe import Recipe
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Batch, Trainee, home_of
from acmsao_cli.models.causal_lm.family import find_for
from acmsao_cli.models.causal_lm.source import read_source
from acmsao_cli.models.causal_lm.trainee import CausalLmTrainee
from acmsao_cli.models.packed import keep_layout, nf4_linear, replace_layers
from acmsao_cli.models.quiet import quiet_libraries

DEVIATION: Final = 0.02
# Numbers that are drawn at once: the device's memory may be short.
PIECE: Final = 1 << 24

TINY_SIZES: Final = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TRAIN_TIMESTEPS: Final = 1000

LOADED = "read by the run's own code from files without content, then drawn at random"
MADE = "made at random in place, without the run's loading code"


def write_model(model: str, folder: Path, *, tiny: bool) -> Path:
    """A folder of the model's configuration and headers; the weights are a hole in a file."""
    if model == SDXL:
        return sdxl(folder, published=not tiny)
    return language_model(model, folder, **(TINY_SIZES if tiny else {}))


def opened(case: Case, recipe: Recipe) -> tuple[Trainee, str]:
    """The model with its method, with random weights, and how it came to them."""
    device = resolve_device(recipe.training.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    torch.manual_seed(recipe.training.seed)  # the same numbers wherever blocks are
    if case.made:
        assert isinstance(recipe, CausalLmRecipe)
        return made(recipe, device, dtype), MADE
    trainee = catalog.family(recipe.model.family).open(recipe, device, dtype)
    for module in trainee.modules().values():
        for name, parameter in module.named_parameters():
            draw(name, parameter, device)
    return trainee, LOADED


def made(recipe: CausalLmRecipe, device: torch.device, dtype: torch.dtype) -> CausalLmTrainee:
    """A language model like the one that is loaded, its weights drawn and packed on `device`."""
    source, home = read_source(find_for(recipe)), home_of(recipe, device)
    with init_empty_weights(include_buffers=False), quiet_libraries():
        model: Any = AutoModelForCausalLM.from_config(
            source.config, dtype=dtype, trust_remote_code=False
        )
    if recipe.model.quantize == "nf4":
        _pack(model, device, home, dtype)
    fresh: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue
            if parameter not in fresh:
                fresh[parameter] = nn.Parameter(torch.empty_like(parameter, device=home))
                draw(name, fresh[parameter], device)
            setattr(module, name, fresh[parameter])
    model.tie_weights()
    return CausalLmTrainee(recipe, source, model.to(home), device)


def _pack(model: Any, device: torch.device, home: torch.device, dtype: torch.dtype) -> None:
    """Put layers in 4 bits in the place of all linear ones but the head, each packed by itself."""
    head = model.get_output_embeddings()

    def packed(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or layer is head:
            return None
        bias = layer.bias is not None
        sides = layer.in_features, layer.out_features
        dense = skip_init(nn.Linear, *sides, bias=bias, device=device, dtype=dtype)
        for name, parameter in dense.named_parameters():
            draw(name, parameter, device)
        small: Any = nf4_linear(dense, device, dtype)
        small.weight = small.weight.to(home)
        small.requires_grad_(False)
        found: nn.Module = small
        return found

    replace_layers(model, packed)
    keep_layout(model)
    model.is_loaded_in_4bit = True  # as transformers says of a model that it packed; peft asks


@torch.no_grad()
def draw(name: str, parameter: Tensor, device: torch.device) -> None:
    """A small normal, drawn on `device`; of vectors, biases become 0 and scales 1."""
    if parameter.ndim < 2:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    for piece in parameter.data.view(-1).split(PIECE):
        drawn = torch.randn(piece.shape, dtype=piece.dtype, device=device)
        piece.copy_(drawn.mul_(DEVIATION))


def random_batch(trainee: Trainee, size: int) -> Batch:
    """What the plan counts with, with content."""
    planned = trainee.meta_batch(size)
    inputs = {name: _content(name, value, trainee) for name, value in planned.inputs.items()}
    return replace(planned, inputs=inputs)


def _content(name: str, value: Tensor, trainee: Any) -> Tensor:
    if name == "timesteps":
        return torch.randint_like(value, TRAIN_TIMESTEPS)
    if name == "time_ids":  # original size, crop, target size
        side = float(trainee.recipe.data.resolution)
        row = torch.tensor([side, side, 0.0, 0.0, side, side])
        return row.to(value).expand_as(value).clone()
    if name == "kept":  # every position but each row's last
        count = torch.arange(len(value), device=value.device)
        predicting: int = trainee.length - 1
        return count + count // predicting
    if value.is_floating_point():
        return torch.randn_like(value)
    ids: Tensor = torch.randint_like(value, trainee.source.text_config.vocab_size)
    return ids
