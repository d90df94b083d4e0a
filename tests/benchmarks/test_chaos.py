"""Runs that are killed at random moments and started again come to the bits of runs left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.parametrize(
    ("case", "kills"),
    [
        ("text lora", 10),
        pytest.param("text full, fused, 1-bit state", 10, marks=pytest.mark.slow),
        pytest.param("pictures lora", 10, marks=pytest.mark.slow),
        pytest.param("pictures full, fused, workers", 10, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_lose_tear_and_change_nothing(
    case: str, kills: int, tmp_path: Path
) -> None:
    output = tmp_path / "chaos.json"
    arguments = ("--kills", str(kills), "--seed", "11", "--only", case, "--output", str(output))
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        (sys.executable, str(SCRIPT), *arguments),
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())["results"][case]
    assert found["kills"] == kills
    assert found["exit_codes"]["-9"] > 0
    assert found["runs"] == found["exit_codes"]["0"]
