"""What a run is decided by: which layer wins, where each value came from, and what paths mean."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.parts import Part
from acmsao_cli.config.reading import MAX_BYTES, read_file
from acmsao_cli.config.recipe import DEFAULT, Origin, RunConfig
from acmsao_cli.config.schema import every_leaf
from acmsao_cli.config.writing import to_yaml
from acmsao_cli.errors import ConfigError

Write = Callable[[str], str]


def written_in_four_layers(here: Path, recipe: Write, sdxl: str, layers: set[str]) -> RunConfig:
    """A run whose seed is written in these layers: 1 in the preset, 2 in the recipe, 3 by --set."""
    (here / "p.yaml").write_text(
        "settings:\n  training: {seed: 1}\n" if "preset" in layers else "about: nothing\n"
    )
    text = sdxl.replace("training:\n", "training:\n  seed: 2\n") if "recipe" in layers else sdxl
    given_last = ("training.seed=3",) if "set" in layers else ()
    return resolve(Request(recipe(text), "./p.yaml", given_last))


@pytest.mark.parametrize(
    ("layers", "seed", "origin"),
    [
        (set(), 0, DEFAULT),
        ({"preset"}, 1, Origin("preset", "p.yaml:2")),
        ({"preset", "recipe"}, 2, Origin("recipe", "r.yaml:9")),
        ({"preset", "set"}, 3, Origin("set", "--set training.seed=3")),
        ({"recipe"}, 2, Origin("recipe", "r.yaml:9")),
        ({"preset", "recipe", "set"}, 3, Origin("set", "--set training.seed=3")),
    ],
)
def test_defaults_yield_to_the_preset_to_the_recipe_to_settings(
    here: Path, recipe: Write, sdxl: str, layers: set[str], seed: int, origin: Origin
) -> None:
    config = written_in_four_layers(here, recipe, sdxl, layers)
    assert config.recipe.training.seed == seed
    assert config.origins["training.seed"] == origin
    assert config.preset == "p"


def test_every_value_has_an_origin(recipe: Write, sdxl: str) -> None:
    config = resolve(Request(recipe(sdxl), "16gb"))
    leaves = {
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in config.as_dict().items()
        for key in (values if isinstance(values, dict) else [""])
    }
    assert set(config.origins) == leaves
    assert config.origins["model.dtype"].layer == "preset"
    assert config.origins["model.dtype"].place.endswith("presets/16gb.yaml:5")


def test_of_equal_settings_the_last_wins(recipe: Write, sdxl: str) -> None:
    config = resolve(Request(recipe(sdxl), None, ("training.seed=1", "training.seed=2")))
    assert config.recipe.training.seed == 2


def test_lists_are_replaced_never_joined(recipe: Write, sdxl: str) -> None:
    text = sdxl + "optimizer: {gradient_edits: [orthograd]}\n"
    config = resolve(Request(recipe(text), None, ("optimizer.gradient_edits=[rms_clip]",)))
    assert config.recipe.optimizer.gradient_edits == ("rms_clip",)


PARTS = {
    "momentum": {"name": "ademamix", "alpha": 2.0},
    "ratio": "atan2",
    "storage": {"default": "factored", "momentum": "bf16"},
    "gradient_edits": ["orthograd", {"name": "rms_clip", "limit": 0.5}],
    "direction_edits": ["cautious"],
}
IN_BLOCKS = """\
optimizer:
  momentum:
    name: ademamix
    alpha: 2
  ratio: atan2
  storage:
    default: factored
    momentum: bf16
  gradient_edits:
    - orthograd
    - name: rms_clip
      limit: 0.5
  direction_edits: [cautious]
"""
IN_SETTINGS = (
    "optimizer.momentum={name: ademamix, alpha: 2.0}",
    "optimizer.ratio=atan2",
    "optimizer.storage={default: factored, momentum: bf16}",
    "optimizer.gradient_edits=[orthograd, {name: rms_clip, limit: 0.5}]",
    "optimizer.direction_edits=[cautious]",
)


def test_parts_with_options_are_the_same_in_a_file_and_in_settings(
    here: Path, recipe: Write, sdxl: str
) -> None:
    in_file = resolve(Request(recipe(sdxl + IN_BLOCKS)))
    in_settings = resolve(Request(recipe(sdxl), None, IN_SETTINGS))
    for config in (in_file, in_settings):
        values = config.as_dict()["optimizer"]
        assert {key: values[key] for key in PARTS} == PARTS
        (here / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert resolve(Request("run.yaml")).recipe == config.recipe
    assert in_file.recipe == in_settings.recipe
    assert in_file.origins["optimizer.momentum"] == Origin("recipe", "r.yaml:11")
    assert in_settings.origins["optimizer.storage"] == Origin("set", f"--set {IN_SETTINGS[2]}")
    assert not [key for key in in_file.origins if key.count(".") > 1]


def test_a_part_with_options_is_replaced_whole(here: Path, recipe: Write, sdxl: str) -> None:
    (here / "p.yaml").write_text(f"settings:\n  {IN_BLOCKS.replace(chr(10), chr(10) + '  ')}")
    given = ("optimizer.momentum={name: ademamix, slow_beta: 0.99}", "optimizer.storage=fp32")
    wanted = resolve(Request(recipe(sdxl), "./p.yaml", given)).recipe.optimizer
    assert str(wanted.momentum) == "ademamix(slow_beta=0.99)"
    assert wanted.storage == "fp32"
    assert str(wanted.gradient_edits[1]) == "rms_clip(limit=0.5)"


@pytest.mark.parametrize(
    ("mapping", "name"),
    [
        ("optimizer.momentum={name: ema}", "optimizer.momentum=ema"),
        ("optimizer.storage={default: fp32}", "optimizer.storage=fp32"),
    ],
)
def test_a_mapping_that_adds_nothing_is_the_name_alone(
    recipe: Write, sdxl: str, mapping: str, name: str
) -> None:
    plain = resolve(Request(recipe(sdxl), None, (name,))).recipe
    assert resolve(Request(recipe(sdxl), None, (mapping,))).recipe == plain


def test_line_breaks_of_a_setting_stay_out_of_the_file_that_names_it(
    here: Path, recipe: Write, sdxl: str
) -> None:
    config = resolve(Request(recipe(sdxl), None, ('about="two\nlines"',)))
    (here / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert resolve(Request("run.yaml")).recipe == config.recipe


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("1e-4", 1e-4), ("0.5", 0.5), ("1", 1.0), (" 2e5 ", 2e5), ("1.e-3", 1e-3), (".5", 0.5)],
)
def test_numbers_are_those_of_yaml_1_2(recipe: Write, sdxl: str, value: str, wanted: float) -> None:
    from_set = resolve(Request(recipe(sdxl), None, (f"optimizer.lr={value}",)))
    from_file = resolve(Request(recipe(f"{sdxl}optimizer:\n  lr: {value}\n")))
    assert from_set.recipe.optimizer.lr == from_file.recipe.optimizer.lr == wanted


def test_a_preset_speaks_to_a_method_and_to_a_family(
    here: Path, recipe: Write, sdxl: str, causal_lm: str
) -> None:
    (here / "p.yaml").write_text(
        "settings: {optimizer: {lr: 1}, checkpoint: {every: 7}}\n"
        "full: {optimizer: {lr: 2}}\n"
        "families:\n"
        "  sdxl: {settings: {optimizer: {lr: 3}}, full: {optimizer: {lr: 4}}}\n"
        "  causal_lm: {lora: {optimizer: {lr: 5}}}\n"
    )
    full = sdxl.replace("lora", "full")
    lora = causal_lm.replace("full", "lora")
    rates = {
        text: resolve(Request(recipe(text), "./p.yaml")).recipe.optimizer.lr
        for text in (sdxl, full, causal_lm, lora)
    }
    assert list(rates.values()) == [3, 4, 2, 5]


@pytest.mark.parametrize(
    ("preset", "chosen", "steps"),
    [
        ("", (), 3),
        ("", ("optimizer.name=lion",), 4),
        ("", ("optimizer.name=sgd",), 2),
        ("optimizer: {name: lion}, ", (), 4),
        ("optimizer: {name: lion}, ", ("optimizer.name=adamw",), 3),
        ("", ("optimizer.name=lion", "method.kind=full"), 5),
        ("", ("optimizer.name=lion", "checkpoint.every=9"), 9),
    ],
)
def test_a_preset_speaks_to_a_rule_last(
    here: Path, recipe: Write, sdxl: str, preset: str, chosen: tuple[str, ...], steps: int
) -> None:
    (here / "p.yaml").write_text(
        f"settings: {{{preset}checkpoint: {{every: 1}}}}\n"
        "families: {sdxl: {settings: {checkpoint: {every: 2}}}}\n"
        "rules:\n"
        "  adamw: {settings: {checkpoint: {every: 3}}}\n"
        "  lion: {settings: {checkpoint: {every: 4}}, full: {checkpoint: {every: 5}}}\n"
    )
    assert resolve(Request(recipe(sdxl), "./p.yaml", chosen)).recipe.checkpoint.every == steps


def test_a_preset_sets_a_rules_own_options_where_that_rule_runs(
    here: Path, recipe: Write, sdxl: str
) -> None:
    (here / "p.yaml").write_text(
        "rules: {acmsao: {settings: {optimizer: {ram_offload: [true, false, true]}}}}\n"
    )
    config = resolve(Request(recipe(sdxl), "./p.yaml", ("optimizer.name=acmsao",)))
    assert config.recipe.optimizer.options == {"ram_offload": [True, False, True]}
    assert config.origins["optimizer.ram_offload"] == Origin("preset", "p.yaml:1")
    named = sdxl + "optimizer: {name: acmsao, ram_offload: null}\n"
    config = resolve(Request(recipe(named), "./p.yaml"))
    assert config.recipe.optimizer.options == {"ram_offload": None}
    assert resolve(Request(recipe(sdxl), "./p.yaml")).recipe.optimizer.options == {}


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("acmsa: {}", "unknown key `rules.acmsa` in", "did you mean `rules.acmsao`?"),
        (
            "acmsao: {full: {optimizer: {ram_ofload: [true]}}}",
            "unknown key `rules.acmsao.full.optimizer.ram_ofload` in",
            "did you mean `rules.acmsao.full.optimizer.ram_offload`?",
        ),
        (
            "lion: {full: {optimizer: {visits: momentum}}}",
            "not every run of `rules.lion.full` has `optimizer.visits` in",
            "put it under `rules.acmsao.full`",
        ),
        (
            "lion: {settings: {method: {rank: 4}}}",
            "not every run of `rules.lion.settings` has `method.rank` in",
            "put it under `rules.lion.lora`",
        ),
        (
            "lion: {lora: {optimizer: {name: adamw}}}",
            "`rules.lion.lora` cannot set `optimizer.name` in",
            "it holds for that name alone",
        ),
        (
            "acmsao: {full: {optimizer: {ram_offload: 3}}}",
            "`optimizer.ram_offload` must be a list, each true or false, or true or false, or "
            "null; found 3",
            "",
        ),
        (
            "acmsao: {full: {optimizer: {visits: momentun}}}",
            "`optimizer.visits` must be ",
            "did you mean `momentum`?",
        ),
        (
            "lion: {lora: {optimizer: {eps: 1}}}",
            "`optimizer.eps` is set, but `lion` has no eps in",
            "drop it",
        ),
        (
            "lion: {lora: {optimizer: {storage: factored_3bit}}}",
            "`optimizer.storage` names an unknown storage `factored_3bit` in",
            "did you mean `factored_8bit`?",
        ),
        ("lion: {full: {optimizer: {lr: x}}}", "`optimizer.lr` must be a number above 0", "peak"),
        ("lion:", "`rules.lion` is a section and takes keys", "indent"),
        ("lion: {optimizer: {lr: 1}}", "unknown key `rules.lion.optimizer` in", "`rules.lion."),
    ],
)
def test_a_presets_mistakes_about_a_rule_are_told_whatever_the_run(
    here: Path, recipe: Write, sdxl: str, text: str, says: str, hint: str
) -> None:
    (here / "p.yaml").write_text(f"rules:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        resolve(Request(recipe(sdxl), "./p.yaml"))
    assert says in caught.value.message
    assert caught.value.message.endswith(" in p.yaml:2")
    assert hint in (caught.value.hint or "")


def test_what_another_layer_completes_is_no_mistake_of_a_preset(
    here: Path, recipe: Write, sdxl: str
) -> None:
    (here / "p.yaml").write_text("rules: {adamw: {settings: {optimizer: {decay: cautious}}}}\n")
    config = resolve(Request(recipe(sdxl), "./p.yaml", ("optimizer.weight_decay=0.1",)))
    assert config.recipe.optimizer.decay == "cautious"
    with pytest.raises(ConfigError, match=r"`weight_decay` is 0 in p\.yaml:1"):
        resolve(Request(recipe(sdxl), "./p.yaml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("full: {optimizer: {ram_offload: [true]}}\n", "not every run of `full` has"),
        ("settings: {model: {source: x}}\n", "a preset cannot set `model.source` in p.yaml:1"),
        ("lora:\n  method: {kind: full}\n", "a preset cannot set `method.kind` in p.yaml:2"),
        ("settings: {data: {flip: true}}\n", "not every run of `settings` has `data.flip`"),
        ("full: {method: {rank: 4}}\n", "not every run of `full` has `method.rank` in p.yaml:1"),
        ("full: {optimizer: {lrr: 1}}\n", "unknown key `full.optimizer.lrr` in p.yaml:1"),
        ("families: {sdx: {}}\n", "unknown key `families.sdx` in p.yaml:1"),
        ("optimizer: {lr: 1}\n", "unknown key `optimizer` in p.yaml:1"),
        ("full:\n  optimizer:\n    lr: x\n", "`optimizer.lr` must be a number above 0; found"),
        ("about: [a]\n", "`about` must be a text; found ['a'] (a list) in p.yaml:1"),
        ("full:\n", "`full` is a section and takes keys"),
    ],
)
def test_a_presets_mistakes_are_told_whatever_the_run(
    here: Path, recipe: Write, sdxl: str, text: str, says: str
) -> None:
    (here / "p.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(Request(recipe(sdxl), "./p.yaml"))
    assert says in caught.value.message


def test_paths_of_a_file_start_at_the_file_and_those_of_settings_here(
    here: Path, sdxl: str
) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "models" / "m").mkdir(parents=True)
    (here / "sub" / "r.yaml").write_text(
        sdxl.replace("builtin:tiny-sdxl", "models/m").replace("builtin:zoblins", "pictures")
    )
    config = resolve(Request("sub/r.yaml"))
    assert config.recipe.model.source == str(here / "sub" / "models" / "m")
    assert config.recipe.data.source == str(here / "sub" / "pictures")
    config = resolve(Request("sub/r.yaml", None, ("data.source=pictures", "model.source=./m")))
    assert config.recipe.data.source == str(here / "pictures")
    assert config.recipe.model.source == str(here / "m")


def test_paths_of_a_named_recipe_start_here(here: Path) -> None:
    assert resolve(Request("sdxl-lora")).recipe.data.source == str(here / "data")


@pytest.mark.parametrize("source", ["org/name", "name", "builtin:tiny-sdxl"])
def test_hub_ids_and_builtins_stay_as_they_are(recipe: Write, sdxl: str, source: str) -> None:
    config = resolve(Request(recipe(sdxl), None, (f"model.source={source}",)))
    assert config.recipe.model.source == source


def test_home_is_expanded(recipe: Write, sdxl: str) -> None:
    config = resolve(Request(recipe(sdxl), None, ("data.source=~/pictures",)))
    assert config.recipe.data.source == str(Path.home() / "pictures")


def test_a_configuration_written_out_is_a_recipe_with_the_same_values(
    here: Path, recipe: Write, sdxl: str
) -> None:
    config = resolve(Request(recipe(sdxl), "24gb", ("about='x: # \"y\" é'", "optimizer.lr=1e-5")))
    (here / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert resolve(Request("run.yaml")).recipe == config.recipe


ANY_SETTINGS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


@ANY_SETTINGS
@given(
    about=TEXTS,
    prompts=st.lists(TEXTS, max_size=4),
    lr=st.floats(1e-12, 1e6),
    alpha=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_number_survives_being_written_out(
    here: Path, recipe: Write, sdxl: str, about: str, prompts: list[str], lr: float, alpha: float
) -> None:
    config = resolve(Request(recipe(sdxl)))
    changed = config.recipe.model_copy(
        update={
            "about": about,
            "samples": config.recipe.samples.model_copy(update={"prompts": tuple(prompts)}),
            "optimizer": config.recipe.optimizer.model_copy(
                update={"lr": lr, "momentum": Part(name="ademamix", alpha=alpha)}
            ),
        }
    )
    text = to_yaml(RunConfig("r", changed, config.origins))
    (here / "run.yaml").write_text(text, encoding="utf-8")
    if len(text) <= MAX_BYTES:
        assert resolve(Request("run.yaml")).recipe == changed


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@ANY_SETTINGS
@given(
    path=st.sampled_from(sorted({*every_leaf(), "optimizer", "x", "data.x"})),
    value=st.one_of(st.from_type(str), VALUES.map(str), st.integers().map(str)),
)
def test_no_setting_ends_in_anything_but_a_run_or_a_config_error(
    recipe: Write, sdxl: str, path: str, value: str
) -> None:
    with suppress(ConfigError):
        assert resolve(Request(recipe(sdxl), None, (f"{path}={value}",))).recipe


@ANY_SETTINGS
@given(text=st.text("ab:-[]{}&*!|>'\"#%@`?,. \n\t~0", max_size=60), raw=st.binary(max_size=40))
def test_no_file_ends_in_anything_but_data_or_a_config_error(
    here: Path, text: str, raw: bytes
) -> None:
    for content in (text.encode(), raw):
        (here / "f.yaml").write_bytes(content)
        with suppress(ConfigError):
            assert isinstance(read_file(here / "f.yaml", "f.yaml").values, dict)
