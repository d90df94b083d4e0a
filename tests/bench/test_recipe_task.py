"""A recipe as a task: its model, method, data and batch, and a tenth of it held out."""

from __future__ import annotations

import pytest

from acmsao_cli.bench.contenders import CONTENDERS
from acmsao_cli.bench.recipe_task import recipe_task
from acmsao_cli.bench.tasks import Task
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore")


def task(*settings: str, recipe: str = "quickstart-llm") -> Task:
    return recipe_task(resolve(Request(recipe, None, settings)))


def losses(task: Task, seed: int, steps: int = 3) -> list[float]:
    """On what is held out, before and after a few steps."""
    opened = task.open(seed)
    optimizer = CONTENDERS["adamw"].optimizer(opened.parameters, 1e-2, seed, steps)
    before = opened.validation_loss()
    for _ in range(steps):
        opened.training_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [before, opened.validation_loss()]


def test_it_learns_and_repeats_by_its_seed() -> None:
    found = task("data.max_length=64")
    first = losses(found, 1)
    assert first[1] < first[0]
    assert losses(found, 1) == first
    assert losses(found, 2)[1] != first[1]


def test_pictures_are_a_task_too() -> None:
    before, after = losses(task("training.batch_size=2", recipe="quickstart"), 1, steps=2)
    assert before != after


def test_its_length_and_batch_are_the_recipes() -> None:
    found = task("training.steps=17", "training.batch_size=2", "training.accumulation=3")
    assert found.steps == 17
    assert "at batch 6" in found.about


def test_what_the_contest_decides_makes_no_other_task() -> None:
    identity = task().identity
    same = ("optimizer.lr=1", "schedule.kind=cosine", "training.steps=50", "training.seed=1")
    assert {task(setting).identity for setting in same} == {identity}
    others = ("method.rank=4", "training.batch_size=4", "data.max_length=64", "model.dtype=fp32")
    assert identity not in {task(setting).identity for setting in others}


def test_data_too_short_for_a_batch_and_rates_of_their_own_are_refused() -> None:
    with pytest.raises(DataError, match=r"training\.batch_size is 1000"):
        task("training.batch_size=1000")
    own = ("method.text_encoders=true", "method.text_encoder_lr=1e-5", "method.targets=all-linear")
    found = task(*own, recipe="quickstart")
    with pytest.raises(ConfigError, match="learning rate of their own"):
        found.open(0)
