"""What is said of a recipe that differs from the run it continues."""

from __future__ import annotations

from typing import Any

import pytest

from acmsao_cli.checkpoint.resume import require_same_recipe
from acmsao_cli.errors import CheckpointError


def of(**keys: Any) -> dict[str, Any]:
    return {"optimizer": keys}


BY_SLOT = {"default": "factored", "momentum": "offloaded(bf16)"}


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ("int8", BY_SLOT, "int8 -> factored(momentum=offloaded(bf16))"),
        (BY_SLOT, "fp32", "factored(momentum=offloaded(bf16)) -> fp32"),
    ],
)
def test_a_storage_that_changed_is_one_line_in_a_recipes_words(
    before: Any, now: Any, says: str
) -> None:
    told = require_same_recipe(of(storage=before), of(storage=now))
    assert told == [f"optimizer.storage: {says}"]


def test_what_may_not_change_is_said_as_yaml_does() -> None:
    before = of(momentum=None, gradient_edits=[{"name": "rms_clip", "limit": 0.5}], kernels=False)
    now = of(momentum={"name": "ademamix", "alpha": 2.0}, gradient_edits=[], kernels=True)
    with pytest.raises(CheckpointError) as caught:
        require_same_recipe(before, now)
    assert caught.value.message.splitlines()[1:] == [
        "  optimizer.gradient_edits: [rms_clip(limit=0.5)] in the run, [] now",
        "  optimizer.kernels: false in the run, true now",
        "  optimizer.momentum: null in the run, ademamix(alpha=2) now",
    ]
