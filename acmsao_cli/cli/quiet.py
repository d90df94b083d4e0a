"""How libraries are set up before they are imported: quiet, and sparing with time and memory."""

from __future__ import annotations

import logging
import os
import warnings

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
    # Threads that wait by spinning slow a busy machine thirtyfold.
    "OMP_WAIT_POLICY": "passive",
}

# torch's allocator for GPUs, with ranges that grow: what the plan counts with, and less is lost
# between tensors. A user's own configuration, under either name, stays.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"

LIBRARIES = (
    *("accelerate", "bitsandbytes", "datasets", "diffusers", "huggingface_hub", "peft"),
    *("torch", "transformers", "urllib3"),
)


def quiet_libraries() -> None:
    """Silence what is not ours; a user's own setting of the same variable stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = EXPANDABLE
    warnings.filterwarnings("ignore")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
