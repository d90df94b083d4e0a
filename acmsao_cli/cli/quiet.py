"""Libraries that talk, kept from talking over the program; set before they are imported."""

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


LIBRARIES = (
    *("accelerate", "bitsandbytes", "datasets", "diffusers", "huggingface_hub", "peft"),
    *("torch", "transformers", "urllib3"),
)


def quiet_libraries() -> None:
    """Silence what is not ours; a user's own setting of the same variable stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
