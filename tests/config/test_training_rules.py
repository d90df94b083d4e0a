"""What of clipping, noise and growing batches cannot be honoured together is refused."""

from __future__ import annotations

import pytest

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.errors import ConfigError

FUSED = "optimizer.fused_backward=true"
TWO = "training.accumulation=2"
REFUSED = {
    "fused and global": ((FUSED,), "cannot clip the global norm", "training.clip=two_pass"),
    "two passes for nothing": (
        ("training.clip=two_pass",),
        "`training.clip` is two_pass, which is for `optimizer.fused_backward`",
        "drop it",
    ),
    "delayed for nothing": (("training.clip=delayed",), "is delayed, which is for", "drop it"),
    "no bound": (
        (FUSED, "training.clip=delayed", "training.clip_norm=null"),
        "`training.clip_norm` bounds nothing",
        "training.clip_norm=1.0",
    ),
    "unknown clip": (("training.clip=twice",), "`training.clip` must be one of global", ""),
    "noise of one": (
        ("training.noise_scale=true",),
        "`training.noise_scale` compares micro-batches",
        "training.accumulation=2",
    ),
    "adaptive of one": (
        ("training.adaptive_batch=8",),
        "`training.adaptive_batch` compares micro-batches",
        "training.accumulation=2",
    ),
    "milestones out of order": (
        ("training.batch_schedule=[[5, 2], [3, 4]]",),
        "[3, 4] comes after [5, 2]",
        "training.accumulation",
    ),
    "a batch that shrinks": (
        (TWO, "training.batch_schedule=[[5, 2]]"),
        "[5, 2] comes after [0, 2]",
        "[0, 2]",
    ),
    "a milestone past the end": (
        ("training.batch_schedule=[[10, 2]]",),
        "has [10, 2], but the run ends after 10 steps",
        "drop that entry",
    ),
    "no milestone": (("training.batch_schedule=[5]",), "`training.batch_schedule", ""),
    "two ways to grow": (
        (TWO, "training.adaptive_batch=8", "training.batch_schedule=[[5, 4]]"),
        "both `training.adaptive_batch` and `training.batch_schedule`",
        "drop one",
    ),
    "grown before it grows": (
        (TWO, "training.adaptive_batch=2"),
        "is 2, but the accumulation begins at 2",
        "training.adaptive_batch=8",
    ),
    "epochs of unknown length": (
        (TWO, "training.adaptive_batch=8", "training.steps=null", "training.epochs=1"),
        "`training.epochs` are no known number of steps",
        "training.steps",
    ),
    "patience for nothing": (
        ("training.adaptive_patience=5",),
        "`training.adaptive_patience` is set, but",
        "training.adaptive_batch",
    ),
    "a rate that follows nothing": (
        ("training.batch_lr=linear",),
        "the accumulation never changes",
        "training.batch_schedule",
    ),
}
ALLOWED: tuple[tuple[str, ...], ...] = (
    (FUSED, "training.clip=two_pass"),
    (FUSED, "training.clip=delayed", "training.clip_norm=0.5"),
    (TWO, "training.noise_scale=true"),
    (TWO, "training.adaptive_batch=8", "training.adaptive_patience=5", "training.batch_lr=sqrt"),
    ("training.batch_schedule=[[3, 2], [6, 4]]", "training.batch_lr=linear"),
)


@pytest.mark.parametrize(("settings", "says", "suggests"), REFUSED.values(), ids=list(REFUSED))
def test_a_setting_without_effect_is_refused(
    settings: tuple[str, ...], says: str, suggests: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(Request("quickstart-llm", None, ("training.steps=10", *settings)))
    assert says in error.value.message
    assert suggests in str(error.value.hint)


@pytest.mark.parametrize("settings", ALLOWED, ids=str)
def test_what_can_be_honoured_is_kept_and_written_down(settings: tuple[str, ...]) -> None:
    config = resolve(Request("quickstart-llm", None, ("training.steps=10", *settings)))
    written = config.as_dict()["training"]
    assert all(setting.split("=")[0] in config.origins for setting in settings)
    again = type(config.recipe).model_validate(config.as_dict())
    assert again == config.recipe
    assert written["batch_schedule"] == [list(pair) for pair in again.training.batch_schedule]
