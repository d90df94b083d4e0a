"""A bitsandbytes that does not load stands in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import acmsao_cli.models
from diffusers import StableDiffusionXLPipeline
from transformers import AutoModelForCausalLM
import peft
import importlib.util
assert importlib.util.find_spec("bitsandbytes") is None
print("started")
"""


def test_a_broken_bitsandbytes_does_not_keep_the_program_from_starting(tmp_path: Path) -> None:
    broken = tmp_path / "bitsandbytes"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('CUDA Setup failed')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "started" in done.stdout, done.stderr
