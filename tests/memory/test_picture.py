"""The picture shows what the plan says."""

from __future__ import annotations

from pathlib import Path

from micro.causal_lm import build_model, build_recipe, build_tokenizer
from PIL import Image

from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.memory.picture import draw, timeline
from acmsao_cli.memory.planner import plan
from acmsao_cli.models.quiet import quiet_libraries


def test_its_highest_column_is_the_planned_peak(tmp_path: Path) -> None:
    with quiet_libraries():
        build_model("llama").save_pretrained(tmp_path / "model")
        build_tokenizer().save_pretrained(tmp_path / "model")
    made = plan(RunConfig("x", build_recipe(tmp_path / "model"), {}))
    for columns in (7, 300):
        series = timeline(made.events, columns)
        assert {len(values) for values in series.values()} <= {*range(1, columns + 1)}
        moments = zip(*series.values(), strict=True)
        assert max(map(sum, moments)) == made.tensor_bytes
    draw(made, "a step", tmp_path / "step.png")
    with Image.open(tmp_path / "step.png") as picture:
        assert picture.width > 800
