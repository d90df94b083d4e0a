"""What is said of optimizers: every part is listed, and a rule's sheet is what a run would do."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from command_line import Acmsao
from optim.storage.banked import Banked

from acmsao_cli.cli.optimizer_sheet import (
    Shapes,
    defaults_of,
    option_rows,
    shapes_of,
    sheet,
    state_bytes,
    tier,
)
from acmsao_cli.cli.optimizers import print_tiers
from acmsao_cli.config.auto import OPTIONS, STORAGE
from acmsao_cli.errors import ConfigError
from acmsao_cli.optim import accounting, build_pipeline, catalog
from acmsao_cli.optim.features import features
from acmsao_cli.optim.rules.base import rule as rules

RULES = [part for part in catalog.describe() if part.kind == "optimizer"]


def test_every_part_is_listed_within_the_terminal(acmsao: Acmsao) -> None:
    out = acmsao("optimizers", "list").out
    for part in catalog.describe():
        assert f"  {part.name} " in out
        assert f"\n{part.kind}:\n" in f"\n{out}"
    assert max(map(len, out.splitlines())) <= 80
    listed = json.loads(acmsao("optimizers", "list", "--json").out)
    assert [entry["name"] for entry in listed] == [part.name for part in catalog.describe()]


@pytest.mark.parametrize("rule", ["adamw", "prodigy", "adafactor"])
def test_a_rules_sheet_fits_the_terminal(acmsao: Acmsao, rule: str) -> None:
    outcome = acmsao("optimizers", "show", rule)
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "2,567,463,684 numbers in 1,680 tensors" in " ".join(outcome.out.split())


def test_a_sheet_for_programs_has_bytes_and_company(acmsao: Acmsao) -> None:
    (entry,) = json.loads(acmsao("optimizers", "show", "adamw", "--json").out)
    assert entry["paper"] == "https://arxiv.org/abs/1711.05101"
    assert entry["state"]["bytes"]["fp32"] == 8 * entry["state"]["numbers"]
    assert entry["slots"] == ["momentum", "mean_square"]
    fitting = [f["name"] for f in entry["features"] if f["kind"] == "ratio" and not f["refused"]]
    assert fitting == list(catalog.ratios.parts)
    assert set(entry["recommended"]) == {"lora", "full"}


def shown(acmsao: Acmsao, *arguments: str) -> dict[str, Any]:
    """The first part that is shown to a program."""
    found: list[dict[str, Any]] = json.loads(acmsao("optimizers", "show", *arguments, "--json").out)
    return found[0]


def test_defaults_for_programs_are_values_that_a_recipe_takes(acmsao: Acmsao) -> None:
    prodigy = shown(acmsao, "prodigy")["options"]
    assert prodigy["beta3"] is None
    assert prodigy["growth_rate"] == ".inf"
    assert prodigy["safeguard_warmup"] is False
    assert prodigy["inner"] == {"name": "adamw", "correction": "none"}
    adamw = shown(acmsao, "adamw")["options"]
    assert (adamw["betas"], adamw["momentum"], adamw["ratio"]) == ([0.9, 0.999], "ema", "divide")
    milestones = shown(acmsao, "milestones")
    assert (milestones["options"], milestones["required"]) == ({}, ["steps", "values"])


@pytest.mark.parametrize("entry", RULES, ids=[part.name for part in RULES])
def test_told_defaults_compose_the_same_rule(entry: catalog.Entry) -> None:
    told = {
        key: math.inf if value == ".inf" else value for key, value in defaults_of(entry).items()
    }
    assert build_pipeline(entry.name, **told).rule == build_pipeline(entry.name).rule


def test_a_storage_is_shown_with_its_bytes_for_a_model(acmsao: Acmsao) -> None:
    out = acmsao("optimizers", "show", "bf16").out
    assert "2,567,463,684 numbers in 1,680 tensors" in " ".join(out.split())
    assert "adamw" in out
    tiny = shown(acmsao, "bf16", "--model", "tiny-llm")["state"]
    assert tiny["bytes"]["adamw"] == 2 * tiny["bytes"]["lion"] == 4 * tiny["numbers"]


def test_a_part_is_shown_with_the_rules_that_take_it(acmsao: Acmsao) -> None:
    taking = shown(acmsao, "heavy_ball")["rules"]
    assert "sgd" in taking
    assert "prodigy" not in taking
    words = " ".join(acmsao("optimizers", "show", "heavy_ball").out.split())
    assert f"goes with {', '.join(taking)}" in words


def test_a_model_is_counted_or_refused(acmsao: Acmsao) -> None:
    assert "drop it" in acmsao("optimizers", "show", "rms_clip", "--model", "sdxl").err
    outcome = acmsao("optimizers", "show", "adamw", "--model", "nosuch")
    assert outcome.code == 2
    for name in ("sdxl", "tiny-sdxl", "tiny-llm", "quickstart-llm"):
        assert name in outcome.err


def test_a_part_that_is_no_rule_is_described(acmsao: Acmsao) -> None:
    out = acmsao("optimizers", "show", "rms_clip").out
    assert out.startswith("rms_clip (gradient edit)\n")
    assert "limit  1.0" in out
    both = acmsao("optimizers", "show", "cautious").out
    assert "cautious (direction edit)" in both
    assert "cautious (decay)" in both


def test_a_name_that_is_not_ours_leads_to_one_that_is(acmsao: Acmsao) -> None:
    outcome = acmsao("optimizers", "show", "adamv")
    assert outcome.code == 2
    assert "did you mean `adamw`?" in outcome.err
    said = " ".join(acmsao("optimizers", "show", "Lion_Adv").err.split())
    assert "acmsao optimizers show lion" in said
    assert "{name: lion, betas: [0.9, 0.99], lr: 0.0001" in said


def test_bytes_are_those_of_the_allocator() -> None:
    shapes = shapes_of("sdxl")
    every = [shape for shape, count in shapes.counts.items() for _ in range(count)]
    found = sheet(RULES[0], "sdxl")
    pipeline = build_pipeline(RULES[0].name, storage="factored")
    assert found.state["factored"] == accounting.placed_bytes(pipeline, every)


def test_what_presets_make_of_a_rule_is_told(acmsao: Acmsao) -> None:
    told = {entry["preset"]: entry for entry in shown(acmsao, "prodigy")["presets"]}
    assert list(told) == ["8gb", "16gb", "24gb", "80gb"]
    shapes, budgets = shapes_of("sdxl"), {"8gb": 7.6, "16gb": 15.2, "24gb": 22.8, "80gb": 76}
    for preset, entry in told.items():
        left = budgets[preset] * 2**30 - 2 * shapes.num_elements - entry["device_bytes"]
        assert left > 2**30 or entry["storage"] == OPTIONS[STORAGE][-1]
        finer = OPTIONS[STORAGE][: OPTIONS[STORAGE].index(entry["storage"])]
        for storage in finer:
            more = state_bytes("prodigy", storage, shapes)
            assert budgets[preset] * 2**30 - 2 * shapes.num_elements - more < 2 * 2**30
        assert entry["device_bytes"] == state_bytes("prodigy", entry["storage"], shapes)
        assert (entry["host_bytes"], entry["refused"]) == (0, None)


def test_presets_keep_the_memory_of_acmsao_in_what_the_card_has(acmsao: Acmsao) -> None:
    found = shown(acmsao, "acmsao")
    told = {entry["preset"]: entry for entry in found["presets"]}
    numbers = found["state"]["numbers"]
    device = {preset: entry["device_bytes"] / numbers for preset, entry in told.items()}
    host = {preset: entry["host_bytes"] / numbers for preset, entry in told.items()}
    assert device == pytest.approx(
        {"8gb": 1.021, "16gb": 1.021, "24gb": 2.052, "80gb": 10.000}, abs=1e-3
    )
    assert host == pytest.approx({"8gb": 1.031, "16gb": 1.031, "24gb": 0, "80gb": 0}, abs=1e-3)


def test_a_preset_that_refuses_a_rule_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = Shapes("nothing", "sdxl-full", {(4, 4): 1})
    found = tier("nosuch", "16gb", shapes)
    assert found.state is None
    print_tiers([found, tier("lion", "80gb", shapes)], shapes)
    out = " ".join(capsys.readouterr().out.split())
    assert "80gb fp32 64 B 4.000" in out
    assert "16gb is refused: " in out
    assert "`nosuch`" in out


def test_what_is_in_host_memory_is_told_beside_the_device(
    acmsao: Acmsao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules._parts, "banked", Banked)
    monkeypatch.setattr(Banked, "registered_name", "banked", raising=False)
    out = acmsao("optimizers", "show", "banked").out
    assert max(map(len, out.splitlines())) <= 80
    assert "storage               on the device  bytes each  in host memory  bytes each" in out
    assert "factored_4bit         1.23 GiB       0.516       1.23 GiB        0.516" in out
    state = shown(acmsao, "banked")["state"]
    for name, total in state["bytes"].items():
        assert state["host_bytes"][name] == total / 2
        assert state["device_bytes"][name] == total / 2


@pytest.mark.filterwarnings("ignore")
def test_bytes_are_counted_for_models_shipped_inside_and_for_recipes() -> None:
    whole, adapters = shapes_of("tiny-llm"), shapes_of("quickstart-llm")
    assert (whole.num_elements, whole.num_tensors) == (2_065_760, 56)
    assert 0 < adapters.num_elements < whole.num_elements
    with pytest.raises(ConfigError, match="neither a model nor a recipe: `nothing`"):
        shapes_of("nothing")


@pytest.mark.filterwarnings("ignore")
def test_the_shapes_of_sdxls_unet_are_those_of_the_network() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    shapes = shapes_of("sdxl")
    assert shapes.counts == Counter(tuple(p.shape) for p in unet.parameters())
    assert shapes.num_elements == sum(math.prod(p.shape) for p in unet.parameters())


@pytest.mark.parametrize("entry", RULES, ids=[part.name for part in RULES])
def test_of_every_rule_company_and_options_are_told(entry: catalog.Entry) -> None:
    found = features(entry.name)
    kinds = {feature.kind for feature in found}
    assert {"storage", "momentum", "ratio", "gradient edit", "direction edit"} <= kinds
    assert any(feature.refused is None for feature in found if feature.kind == "storage")
    assert {row.name for row in option_rows(entry)} >= set(entry.options)
