"""The optimizer's keys: options of rules beside them, layers, and another library's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.config.aliases import SEEDS, seed_called, wanted_by
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.config.recipe import Origin, RunConfig
from acmsao_cli.config.writing import to_yaml
from acmsao_cli.errors import ConfigError

Write = Callable[[str], str]
Refusal = Callable[..., ConfigError]
Resolved = Callable[..., RunConfig]


@pytest.fixture
def resolved(recipe: Write, sdxl: str, here: Path) -> Resolved:
    """The run with this optimizer; written out, it is a recipe with the same values."""

    def with_optimizer(text: str, *settings: str) -> RunConfig:
        config = resolve(Request(recipe(f"{sdxl}optimizer: {text}\n"), None, settings))
        (here / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert resolve(Request("run.yaml")).recipe == config.recipe
        return config

    return with_optimizer


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            "{name: a2grad, beta: 10, lips: 10, variant: uni, lr: 1}",
            {"beta": 10.0, "lips": 10.0, "variant": "uni"},
        ),
        ("{name: prodigy, inner: lion, d0: 1e-6}", {"inner": "lion", "d0": 1e-6}),
        ("{name: prodigy, inner: {name: lion}}", {"inner": "lion"}),
        (
            "{name: prodigy, inner: {name: adopt, momentum: {name: ademamix, alpha: 2}}}",
            {"inner": {"name": "adopt", "momentum": {"name": "ademamix", "alpha": 2.0}}},
        ),
        ("{name: prodigy, growth_rate: .inf, beta3: null}", {"growth_rate": float("inf")}),
        ("{name: adamw, amsgrad: true, correction: none}", {"amsgrad": True}),
    ],
)
def test_options_of_a_rule_stand_flat_beside_its_name(
    resolved: Resolved, text: str, options: dict[str, Any]
) -> None:
    config = resolved(text)
    given = config.recipe.optimizer.options
    assert {key: given[key] for key in options} == options
    for key in options:
        assert config.origins[f"optimizer.{key}"] == Origin("recipe", "r.yaml:10")


def test_options_are_layered_like_other_keys(resolved: Resolved) -> None:
    config = resolved("{name: prodigy, d0: 1e-6, d_coef: 2}", "optimizer.d0=1e-5")
    assert config.recipe.optimizer.options == {"d0": 1e-5, "d_coef": 2.0}
    assert config.origins["optimizer.d0"] == Origin("set", "--set optimizer.d0=1e-5")


def test_a_number_may_follow_a_schedule(resolved: Resolved) -> None:
    schedule = "{name: milestones, steps: [10, 20], values: [1, 2, 3]}"
    config = resolved(f"{{eps: {schedule}, momentum: {{name: ademamix, alpha: {schedule}}}}}")
    values = config.as_dict()["optimizer"]
    assert values["eps"] == {"name": "milestones", "steps": [10, 20], "values": [1.0, 2.0, 3.0]}
    assert values["momentum"]["alpha"] == values["eps"]


def test_a_schedule_without_options_is_still_a_schedule(resolved: Resolved) -> None:
    config = resolved("{name: adopt, clip: {name: power}, eps: {name: power}}")
    values = config.as_dict()["optimizer"]
    assert values["clip"] == values["eps"] == {"name": "power"}


@pytest.mark.parametrize(
    "storage", ["offloaded(bf16)", "{default: fp32, momentum: offloaded(bf16)}"]
)
def test_a_storage_may_be_offloaded(resolved: Resolved, storage: str) -> None:
    resolved(f"{{storage: {storage}}}")


# What is wrong with an optimizer, what is said of it, and what is suggested.
BROKEN = {
    "option of another rule": (
        "{d0: 1e-6}",
        "unknown key `optimizer.d0` in r.yaml:10",
        "only optimizer.name: dadaptation or prodigy has it",
    ),
    "misspelled option": (
        "{name: a2grad, vriant: uni}",
        "unknown key `optimizer.vriant` in r.yaml:10",
        "did you mean `optimizer.variant`?",
    ),
    "misspelled rule with options": (
        "{name: prodgy, d0: 1e-6}",
        "`optimizer.name` names an unknown rule `prodgy` in r.yaml:10",
        "did you mean `prodigy`?",
    ),
    "text for a number": (
        "{name: a2grad, beta: high}",
        '`optimizer.beta` must be a number; found "high" (text) in r.yaml:10',
        "",
    ),
    "fraction for a count": (
        "{name: prodigy, slice_p: 1.5}",
        "`optimizer.slice_p` must be a whole number; found 1.5",
        "",
    ),
    "truth for a number": ("{name: prodigy, d0: true}", "must be a number; found true", ""),
    "number for a truth": ("{amsgrad: 1}", "`optimizer.amsgrad` must be true or false", ""),
    "misspelled choice": (
        "{correction: updat}",
        "`optimizer.correction` must be one of momentum, update, none",
        "did you mean `update`?",
    ),
    "betas of a wrapper": (
        "{name: prodigy, betas: [0.9, 0.99]}",
        "`optimizer.betas` is set, but `prodigy` has no betas",
        "give it to the rule inside: inner: {name: adamw, betas: ...}",
    ),
    "unknown rule inside": (
        "{name: prodigy, inner: lyon}",
        "`optimizer.inner` names an unknown rule `lyon`",
        "did you mean `lion`?",
    ),
    "unknown option inside": (
        "{name: prodigy, inner: {name: lion, eps: 1e-8}}",
        "`optimizer.inner` gives `lion` an unknown option `eps`",
        "known: betas, momentum",
    ),
    "wrong value inside": (
        "{name: prodigy, inner: {name: lion, betas: 0.9}}",
        "`betas` of `lion` in `optimizer.inner` must be a list of 2, each a number; found 0.9",
        "",
    ),
    "rule without a name": (
        "{name: prodigy, inner: {betas: [0.9, 0.99]}}",
        "`optimizer.inner` must name a rule; found",
        "known: a2grad",
    ),
    "unknown schedule": (
        "{eps: {name: milestone}}",
        "`optimizer.eps` names an unknown schedule `milestone`",
        "did you mean `milestones`?",
    ),
    "schedule without its course": (
        "{eps: {name: milestones, steps: [1]}}",
        "`optimizer.eps` names `milestones` without its `values`",
        "a list, each a number",
    ),
    "schedule of what has none": (
        "{name: prodigy, d0: {name: power}}",
        "`optimizer.d0` must be a number; found {'name': 'power'}",
        "",
    ),
    "unknown storage offloaded": (
        "{storage: offloaded(bf17)}",
        "`optimizer.storage` names an unknown storage `offloaded(bf17)`",
        "did you mean `bf16`?",
    ),
    "unknown decay": (
        "{decay: cautius, weight_decay: 1}",
        "`optimizer.decay` names an unknown decay `cautius`",
        "did you mean `cautious`?",
    ),
    "decay of nothing": (
        "{decay: cautious}",
        "`optimizer.decay` is cautious, but `weight_decay` is 0",
        "set optimizer.weight_decay",
    ),
    "steps that prodigy cannot measure": (
        "{name: prodigy, inner: sgd}",
        "`optimizer.inner` puts prodigy around `sgd`, whose steps grow with the gradients",
        "use inner: adamw",
    ),
    "nor within a warm start": (
        "{name: warm_start, inner: {name: prodigy, inner: {name: a2grad, variant: uni}}}",
        "`optimizer.inner` puts prodigy around `a2grad`",
        "inner: lion",
    ),
    "option of a momentum": (
        "{name: sgd, nesterov: true}",
        "unknown key `optimizer.nesterov` in r.yaml:10",
        "write momentum: {name: heavy_ball, nesterov: true}",
    ),
    "storage without its bracket": (
        '{storage: "offloaded(bf16"}',
        "`optimizer.storage` names an unknown storage `offloaded(bf16`",
        "write offloaded(NAME), as in offloaded(bf16)",
    ),
    "option of another variant": (
        "{name: a2grad, variant: uni, rho: 0.7}",
        "`optimizer.rho` is set, but variant is not exp",
        "drop it, or set variant: exp",
    ),
    "bound of what is not scaled": (
        "{name: adafactor, eps2: 1e-2}",
        "`optimizer.eps2` is set, but scale_parameter is not true",
        "drop it",
    ),
    "the same edit twice": (
        "{gradient_edits: [rms_clip, orthograd, {name: rms_clip, limit: 0.5}]}",
        "`optimizer.gradient_edits` names `rms_clip` twice",
        "name each edit once",
    ),
    "another library's option": (
        "{use_cautious: true}",
        "unknown key `optimizer.use_cautious`",
        "did you mean `optimizer.direction_edits`?",
    ),
}


@pytest.mark.parametrize(("text", "says", "suggests"), BROKEN.values(), ids=list(BROKEN))
def test_an_option_is_honoured_or_refused(
    refusal: Refusal, sdxl: str, text: str, says: str, suggests: str
) -> None:
    error = refusal(f"{sdxl}optimizer: {text}\n")
    assert says in error.message
    assert suggests in (error.hint or "")


def test_a_rule_that_finds_its_rate_is_left_alone_by_default(resolved: Resolved) -> None:
    config = resolved("{name: prodigy}")
    assert config.recipe.optimizer.lr == 1.0
    assert str(config.origins["optimizer.lr"]) == "default of prodigy"
    assert resolved("{name: prodigy, lr: 0.5}").recipe.optimizer.lr == 0.5


def test_inside_a_warm_start_it_is_left_alone_too(resolved: Resolved) -> None:
    config = resolved("{name: warm_start, inner: {name: prodigy, d0: 1e-5}}")
    assert config.recipe.optimizer.lr == 1.0
    assert str(config.origins["optimizer.lr"]) == "default of prodigy"
    assert resolved("{name: warm_start}").recipe.optimizer.lr == 1e-4


@pytest.mark.parametrize("text", ["{name: prodigy}", "{name: warm_start, inner: prodigy}"])
def test_an_entry_that_finds_its_rate_is_left_alone_by_default(
    resolved: Resolved, text: str
) -> None:
    entry = f"{{ndim: 1, {text[1:-1]}}}"
    optimizer = resolved(f"{{lr: 1e-4, layers: [{entry}]}}").recipe.optimizer
    (layer,) = optimizer.layers
    assert optimizer.rate_of(layer) == optimizer.of_layer(layer)["lr"] == 1.0
    ours = resolved(f"{{{text[1:-1]}, lr: 0.5, layers: [{entry[:-1]}, weight_decay: 1}}]}}")
    (layer,) = ours.recipe.optimizer.layers
    assert ours.recipe.optimizer.of_layer(layer)["lr"] == 0.5


def test_a_factor_is_no_rate_of_an_entry(refusal: Refusal, sdxl: str, resolved: Resolved) -> None:
    text = "{name: prodigy, layers: [{ndim: 1, name: lion}]}"
    error = refusal(f"{sdxl}optimizer: {text}\n")
    assert "gives `lion` no lr, and `optimizer.lr` multiplies prodigy's in r.yaml:10" in str(error)
    assert error.hint == "give it an lr of its own"
    resolved(text.replace("lion", "lion, lr: 1e-5"))


def test_a_rate_that_was_written_for_another_rule_is_refused(refusal: Refusal, sdxl: str) -> None:
    error = refusal(f"{sdxl}optimizer: {{lr: 1e-4}}\n", "optimizer.name=prodigy")
    assert "`prodigy` finds the rate itself" in error.message
    assert error.message.endswith("in r.yaml:10")
    assert error.hint == "say it for prodigy: --set optimizer.lr=1"
    inside = "optimizer.inner=prodigy"
    error = refusal(f"{sdxl}optimizer: {{name: warm_start, lr: 1e-4}}\n", inside)
    assert "`prodigy` finds the rate itself" in error.message


LAYERS = """\
{weight_decay: 0.1, betas: [0.8, 0.9], layers: [
  {match: "*attn*", ndim: 2, name: muon, scale: match_rms_adamw, lr: 1e-3},
  {ndim: 1, weight_decay: 0, storage: bf16}]}
"""


def test_layers_differ_in_what_they_say(resolved: Resolved) -> None:
    optimizer = resolved(LAYERS).recipe.optimizer
    first, second = (
        OptimizerSection.model_validate(optimizer.of_layer(layer)) for layer in optimizer.layers
    )
    assert (first.name, first.lr, first.weight_decay) == ("muon", 1e-3, 0.1)
    assert (first.options, first.betas) == ({"scale": "match_rms_adamw"}, None)
    assert (second.name, second.betas, second.storage) == ("adamw", (0.8, 0.9), "bf16")
    assert second.weight_decay == 0
    assert not second.layers


def test_layers_are_written_out_as_they_were(resolved: Resolved) -> None:
    text = to_yaml(resolved(LAYERS))
    assert "    - {ndim: 1, weight_decay: 0, storage: bf16}\n" in text


# What is wrong with an entry, what is said of it, and what is suggested.
BROKEN_LAYERS = {
    "unknown rule": ("{ndim: 2, name: moun}", "`name` in {} names an unknown rule", "`muon`"),
    "no rate": ("{ndim: 2, lr: -1}", "`lr` in {} cannot be -1", "peak learning rate"),
    "nothing": ("{ndim: 1}", "{} changes nothing", "give it a name"),
    "nobody": ("{lr: 1}", "{} does not say which parameters it is for", "match, ndim or min_side"),
    "unknown key": ("{ndim: 1, nam: lion}", "{} has an unknown key `nam`", "did you mean `name`?"),
    "another rule's option": (
        "{ndim: 1, d0: 1e-6}",
        "{} has an unknown key `d0`",
        "of the rules, only `dadaptation`, `prodigy` takes it",
    ),
    "of the run": ("{ndim: 1, kernels: true}", "{} sets `kernels`", "the whole run"),
    "layers in layers": ("{ndim: 1, layers: []}", "{} sets `layers`", "the whole run"),
    "eps of a sign": (
        "{ndim: 1, name: lion, eps: 1e-6}",
        "`eps` in {} is set, but `lion` has no eps",
        "drop it",
    ),
    "wrong option": (
        "{ndim: 1, name: muon, iterations: many}",
        "`iterations` in {} must be a whole number",
        "",
    ),
}


@pytest.mark.parametrize(
    ("entry", "says", "suggests"), BROKEN_LAYERS.values(), ids=list(BROKEN_LAYERS)
)
def test_an_entry_of_layers_is_honoured_or_refused(
    refusal: Refusal, sdxl: str, entry: str, says: str, suggests: str
) -> None:
    error = refusal(f"{sdxl}optimizer:\n  layers:\n    - {{ndim: 3, lr: 1}}\n    - {entry}\n")
    assert says.format("entry 2 of `optimizer.layers`") in error.message
    assert error.message.endswith("in r.yaml:11")
    assert suggests in (error.hint or "")


# An optimizer by adv_optm's names, and what it is here.
THEIRS: dict[str, dict[str, Any]] = {
    "{name: Adam_Adv}": {"name": "adamw", "lr": 1e-3, "eps": 1e-8, "correction": "momentum"},
    "{name: AdamW_adv, lr: 1e-4, cautious_mask: true, orthogonal_gradient: true}": {
        "name": "adamw",
        "lr": 1e-4,
        "direction_edits": ["cautious"],
        "gradient_edits": ["orthograd"],
    },
    "{name: Adam_Adv, factored: true, use_AdEMAMix: true, alpha: 3, t_alpha: 9}": {
        "storage": "factored",
        "correction": "update",
        "momentum": {
            "name": "ademamix",
            "slow_beta": 0.9999,
            "alpha": {"name": "linear", "start": 0.0, "stop": 3.0, "steps": 9},
        },
    },
    "{name: Adam_Adv, use_bias_correction: false}": {"correction": "none"},
    "{name: Adopt_Adv, use_grams: true}": {
        "name": "adopt",
        "ratio": "divide",
        "betas": [0.9, 0.9999],
        "eps": 1e-6,
        "direction_edits": ["grams"],
    },
    "{name: Adopt_Adv, use_atan2: true}": {"ratio": "atan2", "eps": None, "skip_first": False},
    "{name: Prodigy_Adv, use_atan2: true, d_coef: 2}": {
        "name": "prodigy",
        "lr": 1.0,
        "d_coef": 2.0,
        "slice_p": 11,
        "inner": {"name": "adamw", "betas": [0.9, 0.999], "ratio": "atan2", "correction": "none"},
    },
    "{name: Simplified_AdEMAMix, alpha_grad: 50, beta1_warmup: 5}": {
        "name": "simplified_ademamix",
        "betas": [0.99, 0.999],
        "momentum": {
            "name": "accumulator",
            "alpha": 50.0,
            "corrected": True,
            "warmup": 5,
            "start_beta": 0.9,
        },
    },
    "{name: Lion_Adv}": {"name": "lion", "storage": "factored", "betas": [0.9, 0.99]},
    "{name: Lion_Adv, storage: bf16}": {"storage": "bf16"},
    "{name: Prodigy_Lion_Adv, d0: 1e-5, factored: false}": {
        "name": "prodigy",
        "storage": "fp32",
        "d0": 1e-5,
        "inner": {"name": "lion", "betas": [0.9, 0.99]},
    },
    "{name: Adam_Adv, cautious_wd: true, weight_decay: 0.1}": {
        "decay": "cautious",
        "weight_decay": 0.1,
    },
}


@pytest.mark.parametrize(("text", "ours"), THEIRS.items(), ids=list(THEIRS))
def test_their_optimizers_are_put_into_our_keys(
    resolved: Resolved, text: str, ours: dict[str, Any]
) -> None:
    values = resolved(text).as_dict()["optimizer"]
    assert {key: values[key] for key in ours} == ours


def test_each_of_our_keys_came_from_where_theirs_was_written(resolved: Resolved) -> None:
    config = resolved("{name: Adam_Adv}", "optimizer.nnmf_factor=true")
    assert str(config.origins["optimizer.storage"]) == "--set optimizer.nnmf_factor=true"
    assert str(config.origins["optimizer.eps"]) == "recipe r.yaml:10"
    assert "optimizer.nnmf_factor" not in config.origins


THEIRS_REFUSED = {
    "no such part": (
        "{name: Lion_Adv, clip_threshold: 1.0}",
        "`optimizer.clip_threshold` cannot be honoured",
        "rms_clip",
    ),
    "without its flag": (
        "{name: Adam_Adv, alpha: 3}",
        "`optimizer.alpha` is set, but `use_AdEMAMix` is not",
        "drop it, or set optimizer.use_AdEMAMix",
    ),
    "later name without its flag": (
        "{name: Lion_Adv, nnmf_factor: false, vector_reshape: true}",
        "`optimizer.vector_reshape` is set, but `factored` is not",
        "",
    ),
    "wrong value by a later name": (
        "{name: Adam_Adv, cautious_mask: maybe}",
        "`optimizer.cautious_mask` must be true or false",
        "",
    ),
    "reshape of nothing": (
        "{name: Adam_Adv, vector_reshape: true}",
        "`optimizer.vector_reshape` is set, but `factored` is not",
        "",
    ),
    "wrong value": (
        "{name: Adam_Adv, use_atan2: 1}",
        "`optimizer.use_atan2` must be true or false; found 1",
        "",
    ),
    "misspelled": (
        "{name: Adam_Adv, use_atan: true}",
        "unknown key `optimizer.use_atan`",
        "did you mean `optimizer.use_atan2`?",
    ),
    "of another": (
        "{name: Lion_Adv, use_grams: true}",
        "unknown key `optimizer.use_grams`",
        "",
    ),
    "said twice": (
        "{name: Adam_Adv, use_atan2: true, ratio: divide}",
        "`optimizer.use_atan2` decides `optimizer.ratio`, which is set too",
        "say it in one way",
    ),
}


@pytest.mark.parametrize(
    ("text", "says", "suggests"), THEIRS_REFUSED.values(), ids=list(THEIRS_REFUSED)
)
def test_their_option_is_honoured_or_refused(
    refusal: Refusal, sdxl: str, text: str, says: str, suggests: str
) -> None:
    error = refusal(f"{sdxl}optimizer: {text}\n")
    assert says in error.message
    assert error.message.endswith("in r.yaml:10")
    assert suggests in (error.hint or "")


def test_their_names_are_known_in_any_spelling_and_ours_stay_ours() -> None:
    for name in ("Adam_Adv", "AdamW_adv", "adopt_adv", "Lion_Prodigy_adv", "Prodigy_Lion_Adv"):
        seed = seed_called(name)
        assert seed is not None
        assert "nnmf_factor" in wanted_by(seed)
    assert seed_called("Simplified_AdEMAMix") is SEEDS["simplified_ademamix"]
    assert seed_called("simplified_ademamix") is None
