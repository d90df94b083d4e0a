"""LoRA files as diffusers and peft write them: raw peft names, the configuration in the header.

Without the header diffusers would guess alpha, and leave out rsLoRA and DoRA, without a word.
"""

from __future__ import annotations

import enum
import json

from peft import get_peft_model_state_dict
from torch import Tensor, nn

from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.sdxl.components import CLASSES, TEXT_ENCODERS, Components
from acmsao_cli.models.sdxl.layout import clip_name

METADATA_KEY = "lora_adapter_metadata"


def adapted(parts: Components) -> dict[str, nn.Module]:
    """The components that have adapters."""
    modules = {component: parts.module(component) for component in CLASSES}
    return {name: module for name, module in modules.items() if any(adapted_layers(module))}


def peft_weights(parts: Components) -> dict[str, Tensor]:
    """Every adapter under `component.module.lora_A.weight`, CLIP's with `text_model.`."""
    found: dict[str, Tensor] = {}
    for component, module in adapted(parts).items():
        rename = clip_name if component in TEXT_ENCODERS else str
        for name, weight in get_peft_model_state_dict(module, adapter_name=ADAPTER).items():
            found[f"{component}.{rename(name)}"] = weight
    return found


def peft_metadata(parts: Components) -> str:
    """Each component's peft configuration as diffusers packs it."""
    packed = {
        f"{component}.{key}": value
        for component, module in adapted(parts).items()
        for key, value in _config(module).items()
    }
    return json.dumps(packed, indent=2, sort_keys=True, default=_plain)


def _config(module: nn.Module) -> dict[str, object]:
    configs: object = module.peft_config
    assert isinstance(configs, dict)
    found: dict[str, object] = configs[ADAPTER].to_dict()
    return found


def _plain(value: object) -> object:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, enum.Enum) else str(value)
