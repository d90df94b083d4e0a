"""Low-rank adapters through peft, with what peft leaves unchecked checked.

A target that matches no layer and a rank no layer can use are refused; the first weights are a
function of the seed and the layer's name, not of how many random numbers were drawn before.

The adapters are fp32 whatever the base is (peft's own default): updates of a 1e-4 learning rate
vanish in bf16. The casts cost activation memory, about two fifths on SDXL.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from acmsao_cli.config.sections import Lora
from acmsao_cli.data.randomness import derive_seed
from acmsao_cli.errors import ConfigError

ADAPTER = "default"
ADAPTABLE = (nn.Linear, nn.Conv2d, Conv1D)


def matching_layers(model: nn.Module, ending: str) -> dict[str, nn.Module]:
    """Modules whose dotted name is `ending` or ends in it, as peft matches them."""
    return {
        name: module
        for name, module in model.named_modules()
        if name == ending or name.endswith(f".{ending}")
    }


def split_targets(
    endings: Iterable[str], components: Mapping[str, nn.Module]
) -> dict[str, tuple[str, ...]]:
    """For each component, the endings that name layers in it.

    Raises ConfigError for an ending that names nothing, for one that names what cannot have an
    adapter, and for a component in which nothing is named.
    """
    found: dict[str, list[str]] = {component: [] for component in components}
    for ending in dict.fromkeys(endings):
        layers = {part: matching_layers(model, ending) for part, model in components.items()}
        if not any(layers.values()):
            raise _matches_nothing(ending, components.values())
        for component, matched in layers.items():
            _check_adaptable(ending, matched)
            if matched:
                found[component].append(ending)
    for component, named in found.items():
        if not named:
            raise ConfigError(
                f"method.targets names no layer of {component}",
                hint=f"layers there: {', '.join(_layer_endings([components[component]]))}",
            )
    return {component: tuple(named) for component, named in found.items()}


def _layer_endings(models: Iterable[nn.Module]) -> list[str]:
    """The distinct endings of adaptable layers; a bare number takes its parent along."""
    found: dict[str, None] = {}
    for model in models:
        for name, module in model.named_modules():
            if isinstance(module, ADAPTABLE) and name:
                parts = name.split(".")
                keep = 2 if parts[-1].isdigit() else 1
                found.setdefault(".".join(parts[-keep:]))
    return list(found)


def _matches_nothing(ending: str, models: Iterable[nn.Module]) -> ConfigError:
    known = _layer_endings(models)
    close = difflib.get_close_matches(ending, known, n=1)
    return ConfigError(
        f"method.targets: no layer's name ends in {ending!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}",
    )


def _check_adaptable(ending: str, matched: Mapping[str, nn.Module]) -> None:
    for name, module in matched.items():
        if not isinstance(module, ADAPTABLE):
            raise ConfigError(
                f"method.targets: {ending!r} names {name}, a {type(module).__name__}, which cannot "
                "have an adapter",
                hint="name linear or convolution layers by a longer ending",
            )


def check_rank(method: Lora, layers: Mapping[str, nn.Module]) -> None:
    """Refuse a rank that no layer, by name, can use.

    Above a layer's smaller side an adapter is only wasteful, so a mixed case passes, as in peft.
    """
    name = max(layers, key=lambda name: _largest_rank(layers[name]))
    widest, largest = _largest_rank(layers[name]), _sides(layers[name])
    if method.rank > widest:
        raise ConfigError(
            f"method.rank is {method.rank}, but of the targeted layers the widest, {name} "
            f"({largest[0]} x {largest[1]}), has rank {widest}",
            hint=f"a rank of at most {widest} says all this model can learn; 4 to 32 is usual",
        )


def _largest_rank(layer: nn.Module) -> int:
    return min(_sides(layer))


def _sides(layer: nn.Module) -> tuple[int, int]:
    """Of the layer's weight as a matrix."""
    assert isinstance(layer, ADAPTABLE)
    if isinstance(layer, nn.Linear):  # the weight itself may be packed
        return layer.out_features, layer.in_features
    rows = layer.weight.shape[0]
    return rows, layer.weight.numel() // rows


def lora_config(
    method: Lora, endings: Sequence[str], *, fan_in_fan_out: bool = False
) -> LoraConfig:
    """The recipe's adapters as peft's configuration; alpha defaults to the rank (a scale of 1)."""
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.rank if method.alpha is None else method.alpha,
        lora_dropout=method.dropout,
        target_modules=list(endings),
        use_dora=method.dora,
        use_rslora=method.rslora,
        fan_in_fan_out=fan_in_fan_out,
        bias="none",
    )


def attach_lora(
    model: nn.Module, method: Lora, endings: Sequence[str], seed: int, component: str
) -> None:
    """Freeze `model` and put fresh fp32 adapters on the layers that `endings` name, in place."""
    matched = {
        name: module for end in endings for name, module in matching_layers(model, end).items()
    }
    check_rank(method, matched)
    model.requires_grad_(False)
    transposed = any(isinstance(module, Conv1D) for module in matched.values())
    config = lora_config(method, endings, fan_in_fan_out=transposed)
    # peft draws first weights, which ours replace; nothing is drawn for a model without values.
    place = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]), place if place.type == "meta" else nullcontext():
        add_adapter = getattr(model, "add_adapter", None)
        try:
            if callable(add_adapter):
                add_adapter(config, ADAPTER)
            else:
                inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:  # some kinds of model compute with a layer's weight themselves
            raise ConfigError(
                f"method.targets cannot be: {error}", hint="name other layers in method.targets"
            ) from error
    initialise(model, seed, component)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Each layer that has an adapter, with its name in `model`."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@torch.no_grad()
def initialise(model: nn.Module, seed: int, component: str) -> None:
    """Fresh fp32 adapters: down uniform in 1/sqrt(inputs) as peft's, up zero.

    Each layer's numbers follow from (seed, component, its name), so they are the same whatever
    was drawn before and whichever other layers are adapted.
    """
    for name, layer in adapted_layers(model):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            if ADAPTER in part:
                part[ADAPTER].float().requires_grad_(True)
        down = layer.lora_A[ADAPTER].weight
        if not down.is_meta:
            generator = torch.Generator().manual_seed(derive_seed(seed, f"lora/{component}/{name}"))
            fresh = torch.empty(down.shape)
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            down.copy_(fresh)
