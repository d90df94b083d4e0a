"""The noise scale that is told is the one that is there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.engine.events import Event
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import advance, train
from acmsao_cli.engine.noise import DECAY, Noise
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import Stop

FUSED = {"fused_backward": True}
WAYS: dict[str, dict[str, Any]] = {
    "after": {"training": {"clip_norm": 0.5}},
    "fused": {"optimizer": FUSED, "training": {"clip_norm": None}},
    "two_pass": {"optimizer": FUSED, "training": {"clip_norm": 0.5, "clip": "two_pass"}},
    "delayed": {"optimizer": FUSED, "training": {"clip_norm": 0.5, "clip": "delayed"}},
}


def ignore(event: Event) -> None:
    """A listener that does not listen."""


def noisy_run(make_run: Any, make_config: Any, kind: Any, way: str, **training: Any) -> Any:
    options = WAYS[way]
    wanted = {"batch_size": 4, "accumulation": 3, "noise_scale": True, "steps": 400}
    config = make_config(
        optimizer=options.get("optimizer", {}),
        training=wanted | options["training"] | training,
        samples={"prompts": []},
    )
    return make_run(config, kind=kind)


def single_estimates(run: Any, steps: int) -> list[tuple[float, float]]:
    """(|G|^2, tr S) of each step by itself, out of the running means."""
    found = []
    for _ in range(steps):
        before = run.progress.noise
        advance(run, ignore)
        after = run.progress.noise
        found.append(
            (
                (after.squared_signal - DECAY * before.squared_signal) / (1 - DECAY),
                (after.trace - DECAY * before.trace) / (1 - DECAY),
            )
        )
    return found


@pytest.mark.parametrize("way", ["after", "fused"])
def test_signal_and_variance_are_estimated_without_bias(
    make_run: Any, make_config: Any, linear_trainee: Any, way: str
) -> None:
    """Batches of 4, 4 and 2 in turn: parts of every size must agree."""
    run = noisy_run(make_run, make_config, linear_trainee, way)
    estimates = torch.tensor(single_estimates(run, 250), dtype=torch.float64)
    mean, error = estimates.mean(0), estimates.std(0) / math.sqrt(len(estimates))
    truth = linear_trainee.TRUTH.double()
    known = [float(truth @ truth), linear_trainee.SIZE * linear_trainee.DEVIATION**2]
    for found, uncertain, expected in zip(mean, error, known, strict=True):
        assert uncertain < 0.2 * expected
        assert abs(found - expected) < 4 * uncertain


def test_every_way_of_stepping_measures_the_same(
    make_run: Any, make_config: Any, linear_trainee: Any
) -> None:
    told = []
    for way in WAYS:
        run = noisy_run(make_run, make_config, linear_trainee, way)
        rows = [advance(run, ignore) for _ in range(20)]
        told.append([row["gradient_variance"] for row in rows] + [rows[-1]["signal"]])
    for other in told[1:]:
        assert other == pytest.approx(told[0], rel=1e-3)


def test_the_means_are_corrected_for_how_little_they_have_seen() -> None:
    noise = Noise()
    assert (noise.signal, noise.variance, noise.scale) == (None, None, None)
    for _ in range(3):
        # |g|^2 = 4 + 60 / n for n = 5 (a half of the step) and n = 10.
        noise = noise.after(math.sqrt(16) / 2, math.sqrt(10), share=0.5, examples=10)
        assert noise.signal == pytest.approx(4)
        assert noise.variance == pytest.approx(60)
        assert noise.scale == pytest.approx(15)
    assert noise.exceeds(14)
    assert not noise.exceeds(16)


def test_noise_that_hides_the_signal_has_no_scale_and_exceeds_every_batch() -> None:
    noise = Noise().after(first=1.0, whole=1.0, share=0.5, examples=8)
    assert noise.signal is not None
    assert noise.signal < 0
    assert noise.scale is None
    assert noise.exceeds(10**9)


def test_a_step_of_one_part_adds_nothing() -> None:
    assert Noise().after(1.0, 1.0, share=1.0, examples=4) == Noise()
    assert Noise().after(0.0, 1.0, share=0.0, examples=4) == Noise()


def test_metrics_and_summary_tell_the_scale(
    tmp_path: Path, make_run: Any, make_config: Any, linear_trainee: Any
) -> None:
    run = noisy_run(make_run, make_config, linear_trainee, "after", steps=30)
    folder = RunFolder(tmp_path)
    train(run, folder, Stop(), ignore)
    last = read_metrics(folder.metrics)[-1]
    assert last["noise_scale"] == pytest.approx(last["gradient_variance"] / last["signal"])
    assert json.loads((tmp_path / "summary.json").read_text())["noise_scale"] == last["noise_scale"]


def test_nothing_is_measured_unasked(tmp_path: Path, make_run: Any, make_config: Any) -> None:
    run = make_run(make_config(training={"accumulation": 3}))
    row = advance(run, ignore)
    assert [row[key] for key in ("noise_scale", "gradient_variance", "signal")] == [None] * 3
