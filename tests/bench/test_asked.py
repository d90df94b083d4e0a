"""What is asked for in words becomes a contender or a task, or is refused with what helps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acmsao_cli.bench.asked import contender_asked, contenders_asked, task_asked, tasks_asked
from acmsao_cli.bench.compare import buildable
from acmsao_cli.bench.contenders import CENTRES, CONTENDERS
from acmsao_cli.config.choices import parts
from acmsao_cli.config.locate import shipped
from acmsao_cli.errors import ConfigError


@pytest.mark.parametrize("name", [*CONTENDERS, *parts()["rule"]])
def test_every_name_and_every_rule_can_be_asked_for(name: str) -> None:
    asked = contender_asked(name)
    assert asked.name == name
    assert asked.centre("bytes") > 0


def test_the_usual_contenders_can_be_built() -> None:
    assert buildable(CONTENDERS.values())[1] == {}


def test_a_section_is_read_as_in_a_recipe() -> None:
    asked = contender_asked("lion: {lr: 1e-3, storage: factored}")
    assert asked.name == "lion(lr=0.001, storage=factored)"
    assert asked.centre("anything") == 1e-3
    assert "storage(default=factored)" in asked.text
    assert contender_asked("{name: lion, storage: factored}").text == asked.text


def test_a_layers_rate_is_kept_in_proportion() -> None:
    asked = contender_asked("adamw: {lr: 1e-3, layers: [{ndim: 2, lr: 4e-3}]}")
    assert asked.says["layers"][0]["lr"] == pytest.approx(4)


def test_what_is_asked_for_twice_is_one() -> None:
    assert [one.name for one in contenders_asked(["lion", "adamw", "lion"])] == ["lion", "adamw"]


def test_tasks_of_one_name_are_refused_for_a_report_knows_them_by_it(tmp_path):
    recipe = next(one for one in shipped("recipe") if one.name == "quickstart-llm")
    shutil.copy(recipe.path, tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="two tasks are called `bytes`"):
        tasks_asked(["bytes", str(tmp_path / "bytes.yaml")])
    assert [task.name for task in tasks_asked(["bytes", "lora", "bytes"])] == ["bytes", "lora"]


@pytest.mark.parametrize("inner", ["muon", "{name: muon, scale: match_rms_adamw}"])
def test_rates_of_a_rule_around_another_lie_where_the_inner_rules_do(inner):
    assert contender_asked(f"acmsao: {{inner: {inner}}}").centres == CENTRES["muon"]
    assert contender_asked("prodigy: {inner: acmsao}").centres == CENTRES["prodigy"]
    assert contender_asked("acmsao").centres == CENTRES["adamw"]


REFUSED = {
    "lyon": ("unknown optimizer `lyon`", "did you mean `lion`? known: adamw, adamw nesterov"),
    "lyon: {lr: 1}": ("unknown rule `lyon`", "did you mean `lion`?"),
    "lion: {storage: fictored}": ("unknown storage `fictored`", "did you mean `factored`?"),
    "lion: {colour: red}": ("unknown key `optimizer.colour`", ""),
    "lion: {betas: 3}": ("`optimizer.betas` must be a list of 2", ""),
    "lion: {eps: 1e-8}": ("`lion` has no eps", ""),
    "[lion]": ("must name an optimizer; found", "for example --optimizer 'lion: {"),
    "adamw: {fused_backward: true}": ("is for training", "drop it"),
    "adamw: {layers: [{ndim: 2, lr: 1}]}": ("a layer has an lr", "give it one too"),
    "adamw: {lr: [}": ("not valid YAML in --optimizer", ""),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_mistake_is_named_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        contender_asked(text)
    message, hint = REFUSED[text]
    assert message in error.value.message
    assert hint in (error.value.hint or "")


def test_a_task_is_built_in_or_a_recipe() -> None:
    assert task_asked("bytes").name == "bytes"
    with pytest.raises(ConfigError, match="unknown task `bites`") as error:
        task_asked("bites")
    assert "did you mean `bytes`?" in str(error.value.hint)
    with pytest.raises(ConfigError, match="there is no recipe at"):
        task_asked(str(Path("nowhere") / "x.yaml"))
