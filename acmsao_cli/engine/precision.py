"""Which device and which dtype `auto` means here."""

from __future__ import annotations

import torch

from acmsao_cli.errors import ConfigError
from acmsao_cli.models.dtypes import DTYPES


def resolve_device(wanted: str) -> torch.device:
    """The device of `training.device`; raises ConfigError for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and not count:
        return torch.device("cpu")
    if wanted == "auto" or (wanted == "cuda" and count):  # tensors tell their device by its number
        return torch.device("cuda", torch.cuda.current_device())
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"`training.device` is {wanted}, but torch sees {count} CUDA devices",
            hint="use training.device=auto, or a torch build for your driver",
        )
    return device


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of `model.dtype`: auto is bf16 on a GPU that computes in it, else fp32."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if computes else torch.float32
