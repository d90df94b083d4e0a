"""Names to pipelines, and what is said about names that are wrong."""

import pytest

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline, catalog
from acmsao_cli.optim.momentum import AdEMAMix


def test_options_reach_their_parts():
    pipeline = build_pipeline(
        "adamw",
        betas=[0.8, 0.9],
        eps=None,
        momentum={"name": "ademamix", "alpha": 2.0},
        ratio="atan2",
        storage={"default": "factored", "slow_momentum": "bf16"},
        gradient_edits=["orthograd", {"name": "rms_clip", "limit": 0.5}],
        direction_edits=["cautious"],
        rounding="nearest",
    )
    assert pipeline.rule.momentum == AdEMAMix(alpha=2.0)
    text = pipeline.signature()
    assert text.startswith("orthograd -> rms_clip(limit=0.5) -> adamw(betas=(0.8, 0.9), eps=1e-08")
    assert "momentum=ademamix(slow_beta=0.9999, alpha=2.0" in text
    assert text.endswith(
        "ratio=atan2, amsgrad=False, correction='momentum') -> cautious -> "
        "write(rounding=nearest, decay=decoupled) | storage(default=factored, slow_momentum=bf16)"
    )
    assert pipeline.storage.names() == {"default": "factored", "slow_momentum": "bf16"}


def test_equal_choices_are_equal_pipelines():
    assert build_pipeline("lion", storage="bf16") == build_pipeline("lion", storage="bf16")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"name": "adam"}, "unknown optimizer `adam`", "did you mean `adamw`"),
        ({"name": "lion", "eps": 1e-8}, "optimizer `lion` has no option `eps`", "betas, momentum"),
        ({"name": "lion", "ratio": "atan2"}, "no option `ratio`", "momentum"),
        ({"name": "lion", "momentum": "emma"}, "unknown momentum `emma`", "`ema`"),
        ({"name": "lion", "storage": "int3"}, "unknown storage `int3`", "factored"),
        ({"name": "lion", "storage": {"mean": "bf16"}}, "slot `mean`", "momentum"),
        ({"name": "lion", "rounding": "up"}, "unknown rounding `up`", "nearest"),
        ({"name": "lion", "gradient_edits": ["cautious"]}, "unknown gradient edit", "orthograd"),
        (
            {"name": "lion", "gradient_edits": [{"name": "rms_clip", "max": 1}]},
            "gradient edit `rms_clip` has no option `max`",
            "limit",
        ),
        ({"name": "lion", "direction_edits": [{"limit": 1}]}, "needs a `name`", "cautious"),
        ({"name": "adamw", "betas": (0.9, 1.0)}, "betas", "0.999"),
        ({"name": "adamw", "eps": 0.0}, "eps must be positive", "1e-8"),
        ({"name": "lion", "momentum": {"name": "ademamix", "slow_beta": 2}}, "slow_beta", "0.9999"),
        (
            {"name": "lion", "gradient_edits": [{"name": "rms_clip", "limit": 0}]},
            "limit of rms_clip",
            "1.0",
        ),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_a_remedy(options, message, hint):
    with pytest.raises(OptimizerError) as caught:
        build_pipeline(**options)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_every_part_says_what_it_is():
    entries = catalog.describe()
    assert {entry.kind for entry in entries} == {r.kind for r in catalog.REGISTRIES}
    assert all(entry.summary.endswith(".") for entry in entries)
    adamw = next(entry for entry in entries if entry.name == "adamw")
    assert adamw.options["betas"] == "(0.9, 0.999)"


def test_the_name_of_a_default_is_the_default():
    """Prodigy's AdamW is uncorrected, whether it is named or not."""
    assert build_pipeline("prodigy", inner="adamw") == build_pipeline("prodigy")
    assert build_pipeline("prodigy", inner={"name": "adamw", "correction": "momentum"}) != (
        build_pipeline("prodigy")
    )
