"""What a step of SDXL keeps of its activations, by formula: to search, not to decide.

GiB of a picture of 1024 x 1024 pixels in bf16, read off the traces of the published UNet: with
checkpointing the inputs of its blocks and the largest of them at work, else everything. Adapters
are fp32, and so are the copies of what they read.
"""

from __future__ import annotations

from typing import Any, Final

GIB: Final = 2**30

# (what is trained, checkpointed) -> GiB a picture.
UNET: Final = {
    ("full", True): 0.67,
    ("full", False): 6.45,
    ("attention", True): 0.75,
    ("attention", False): 7.35,
    ("all-linear", True): 0.81,
    ("all-linear", False): 9.1,
}
TEXT_ENCODERS: Final = {True: 0.05, False: 0.35}
# What adapters' wide fp32 temporaries take beside the holes that other tensors left.
OF_ADAPTERS: Final = 0.25


def activation_bytes(trainee: Any, pictures: int, *, checkpointed: bool, offloaded: bool) -> int:
    """The most of activations and temporaries at any moment of a step."""
    data, recipe = trainee.recipe.data, trainee.recipe
    attention = getattr(recipe.method, "targets", None) == "attention"
    adapted = "attention" if attention else "all-linear"
    each = UNET["full" if recipe.method.kind == "full" else adapted, checkpointed]
    if offloaded:
        each = min(each, 0.25)
    if recipe.method.text_encoders:
        each += TEXT_ENCODERS[checkpointed]
    area = (data.resolution / 1024) ** 2
    beside = 0.0 if recipe.method.kind == "full" else OF_ADAPTERS
    return int((each * pictures + beside) * GIB * area * trainee.dtype.itemsize / 2)
