"""A card of another size, imitated."""

from __future__ import annotations

import torch

from acmsao_cli.memory.cards import GIB


def limited(device: torch.device, cap_gib: float | None) -> str:
    """Let torch's allocator take no more than the cap; returns the device's name."""
    if device.type != "cuda":
        return "cpu"
    about = torch.cuda.get_device_properties(device)
    share = 1.0 if cap_gib is None else min(1.0, cap_gib * GIB / about.total_memory)
    torch.cuda.set_per_process_memory_fraction(share, device.index or 0)
    return f"{about.name}, {about.total_memory / GIB:.1f} GiB"
