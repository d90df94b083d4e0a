"""The recipes and presets that come with the program, and the names the configuration knows."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from acmsao_cli.config.choices import KINDS, parts
from acmsao_cli.config.composition import clashes
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.locate import shipped
from acmsao_cli.config.optimizer import RULES_OWN, OptimizerSection, Rounding
from acmsao_cli.config.preset import load_preset
from acmsao_cli.config.recipe import FAMILIES
from acmsao_cli.config.recommended import RECOMMENDED
from acmsao_cli.config.rules import FORMATS_OF_METHODS
from acmsao_cli.config.schema import METHODS, json_schema, outline
from acmsao_cli.config.suggest import ALIASES, closest_key

RECIPES = [file.name for file in shipped("recipe")]
PRESETS = [file.name for file in shipped("preset")]


def test_the_shelf_holds_what_the_documentation_promises() -> None:
    names = ["llm-full", "llm-lora", "quickstart", "quickstart-llm", "sdxl-full", "sdxl-lora"]
    assert sorted(RECIPES) == names
    assert PRESETS == ["16gb", "24gb", "80gb", "8gb", "cpu"]


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid_under_every_preset(recipe: str, preset: str | None) -> None:
    config = resolve(Request(recipe, preset))
    assert config.name == recipe
    assert config.preset == preset
    assert config.recipe.about


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_leave_to_presets_what_presets_decide(recipe: str, preset: str) -> None:
    layers = {
        path: origin.layer for path, origin in resolve(Request(recipe, preset)).origins.items()
    }
    alone = {path for path, origin in resolve(Request(recipe)).origins.items() if origin.place}
    family, method = FAMILY_AND_METHOD[recipe]
    parts_of_preset = load_preset(next(p for p in shipped("preset") if p.name == preset))
    decided = {
        path
        for part in parts_of_preset.parts_for(family, method)
        for path in part.places
        if path in layers
    }
    assert decided
    assert not decided & alone
    assert {layers[path] for path in decided} == {"preset"}


FAMILY_AND_METHOD = {
    name: (resolve(Request(name)).recipe.model.family, resolve(Request(name)).recipe.method.kind)
    for name in RECIPES
}


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.endswith("gb")])
def test_presets_of_a_gpu_bound_the_memory_below_its_size(preset: str) -> None:
    budget = resolve(Request("sdxl-full", preset)).recipe.memory.budget_gib
    assert budget is not None
    assert budget < float(preset.removesuffix("gb"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rule", sorted(parts()["rule"]))
@pytest.mark.parametrize("recipe", ["sdxl-full", "llm-lora"])
def test_presets_go_with_every_rule(recipe: str, rule: str, preset: str) -> None:
    rate = "optimizer.lr=1"  # some refuse the recipe's
    config = resolve(Request(recipe, preset, (f"optimizer.name={rule}", rate)))
    assert config.recipe.optimizer.name == rule


@pytest.mark.parametrize("preset", PRESETS)
def test_banks_are_never_kept_in_1_bit(preset: str) -> None:
    chosen = resolve(Request("sdxl-full", preset, ("optimizer.name=acmsao",))).recipe.optimizer
    assert chosen.storage in ("factored_4bit", "bf16", "fp32")


def test_parts_and_options_are_those_that_are_registered() -> None:
    from acmsao_cli.optim import catalog

    registries = {
        "rule": catalog.rule,
        "momentum": catalog.momenta,
        "ratio": catalog.ratios,
        "storage": catalog.storages,
        "gradient_edit": catalog.gradient_edit,
        "direction_edit": catalog.direction_edit,
        "decay": catalog.decays,
        "rounding": catalog.roundings,
        "schedule": catalog.schedules,
    }
    assert tuple(registries) == KINDS
    for kind, registry in registries.items():
        assert set(parts()[kind]) == set(registry.parts), kind
        for name, part in registry.parts.items():
            fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
            assert list(parts()[kind][name]) == [field.name for field in fields], name
    assert set(get_args(Rounding)) == set(catalog.roundings.parts)


def test_every_option_of_a_part_can_be_said_in_a_recipe() -> None:
    for kind, named in parts().items():
        for name, options in named.items():
            for option, known in options.items():
                assert known.wanted, f"{kind} {name}: {option}"


def test_options_of_rules_stand_beside_the_sections_own_keys() -> None:
    own = set(OptimizerSection.model_fields) - set(RULES_OWN)
    for name, options in parts()["rule"].items():
        assert not own & set(options), name


def test_what_is_recommended_is_valid() -> None:
    for name, by_method in RECOMMENDED.items():
        assert name in parts()["rule"]
        for values in by_method.values():
            section = OptimizerSection.model_validate({"name": name, **values})
            assert not list(clashes(section, str))


def test_a_schema_for_editors_knows_every_key_and_allows_no_other() -> None:
    for family in FAMILIES:
        schema = json_schema(family)
        json.dumps(schema)
        assert schema["additionalProperties"] is False
        assert {"model", "method", "data"} == set(schema["required"])
        optimizer = schema["$defs"]["OptimizerSection"]
        assert {"lr", "d0", "inner", "use_atan2"} <= set(optimizer["properties"])
        assert optimizer["additionalProperties"] is False
    both = json_schema()
    assert {"SdxlRecipe", "CausalLmRecipe"} <= set(both["$defs"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_key_says_what_it_wants(family: str, method: str) -> None:
    assert (family, method) in FORMATS_OF_METHODS
    for path, leaf in outline(family, method).leaves.items():
        assert leaf.wanted, path
        assert leaf.description or path in ("model.family", "method.kind"), path


def test_other_trainers_names_lead_to_keys_that_exist() -> None:
    everywhere = {
        key for family in FAMILIES for method in METHODS for key in outline(family, method).leaves
    }
    for name, meant in ALIASES.items():
        assert set(meant) <= everywhere, name
        assert closest_key(name, sorted(everywhere)) in everywhere


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_found_from_a_slip_of_the_pen(family: str) -> None:
    leaves = outline(family, "lora").leaves
    for path in leaves:
        section, _, name = path.rpartition(".")
        if len(name) < 4:
            continue
        swapped = name[:1] + name[2] + name[1] + name[3:]
        typo = f"{section}.{swapped}" if section else swapped
        if typo not in leaves:
            assert closest_key(typo, leaves) == path


def test_an_install_finds_them_within_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acmsao_cli" / "_recipes").mkdir(parents=True)
    (tmp_path / "acmsao_cli" / "_recipes" / "mine.yaml").touch()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "foreign.yaml").touch()
    monkeypatch.setattr("acmsao_cli.config.locate.PACKAGE", tmp_path / "acmsao_cli")
    assert [file.name for file in shipped("recipe")] == ["mine"]


def test_recipes_travel_inside_the_package_where_they_are_looked_for() -> None:
    root = Path(__file__).resolve().parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included == {"recipes": "acmsao_cli/_recipes", "presets": "acmsao_cli/_presets"}
