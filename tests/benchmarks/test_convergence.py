"""The comparison of optimizers tunes all alike, goes on where it was, and reports what is there."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_contender_is_tuned_at_as_many_rates_around_its_own_centre():
    from contenders import CONTENDERS
    from convergence import Plan

    for contender in CONTENDERS.values():
        rates = Plan(trials=5).rates(contender.centre)
        assert len(rates) == 5
        assert rates[2] == pytest.approx(contender.centre)
        assert rates[-1] / rates[0] == pytest.approx(100, rel=0.01)


def test_the_rate_rises_then_falls_to_nothing():
    from convergence import Attempt, rate

    attempt = Attempt("text", "adamw", "", 1.0, 0, 100)
    rates = [rate(attempt, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 1e-3


def test_steps_to_a_loss_lie_between_two_evaluations():
    from convergence import steps_to

    curve = [(0, 4.0), (10, 2.0), (20, 1.0)]
    assert steps_to(1.5, curve) == pytest.approx(15)
    assert steps_to(2.0, curve) == pytest.approx(10)
    assert steps_to(0.5, curve) is None


def test_a_line_that_was_cut_short_is_run_again(tmp_path: Path):
    from convergence import Attempt, recorded

    whole = {"task": "text", "contender": "adamw", "text": "", "lr": 1e-3, "seed": 0, "steps": 3}
    cache = tmp_path / "runs.jsonl"
    cache.write_text(json.dumps(whole | {"final": 1.0}) + "\n" + '{"task": "te')
    assert list(recorded(cache)) == [Attempt(**whole).key]


@pytest.mark.parametrize("task", ["pictures", "text", "lora"])
def test_tasks_learn_and_repeat(task: str):
    import torch
    from contenders import CONTENDERS
    from tasks import TASKS

    torch.set_num_threads(1)
    finals = []
    for _ in range(2):
        opened = TASKS[task].open(3)
        optimizer = CONTENDERS["adamw"].optimizer(opened.parameters, 3e-3, 3)
        before = opened.validation_loss()
        for _ in range(4):
            opened.training_loss().backward()
            optimizer.step()
            optimizer.zero_grad()
        finals.append(opened.validation_loss())
        assert finals[-1] < before
    assert finals[0] == finals[1]


def test_runs_are_recorded_once_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import convergence
    import torch
    from tasks import Opened, Task

    def open_line(seed: int) -> Opened:
        torch.manual_seed(seed)
        line = torch.nn.Linear(2, 1)
        inputs, weight = torch.randn(16, 2), torch.tensor([[1.0, -2.0]])

        def loss() -> torch.Tensor:
            return (line(inputs) - inputs @ weight.T).square().mean()

        return Opened(list(line.named_parameters()), loss, lambda: float(loss()))

    monkeypatch.setitem(convergence.TASKS, "line", Task("line", "a line", "mse", 20, open_line))
    plan, cache = convergence.Plan(trials=2, seeds=2), tmp_path / "runs.jsonl"
    for _ in range(2):
        for name in ("adamw", "lion"):
            convergence.contest("line", name, plan, cache)
    assert len(cache.read_text().splitlines()) == 2 * (2 + 2)

    task = convergence.TASKS["line"]
    result = convergence.report([task], ["adamw", "lion", "sgd momentum"], plan, cache)
    assert set(result["tasks"]["line"]) == {"adamw", "lion"}  # the third has not run
    assert result["tasks"]["line"]["adamw"]["reached_the_baseline"] >= 1
    assert "| lion |" in convergence.markdown(result)
    convergence.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_optimizer_that_breaks_is_told_and_does_not_end_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import convergence

    def broken(attempt: convergence.Attempt) -> dict[str, object]:
        raise ArithmeticError("no such root")

    monkeypatch.setattr(convergence, "run", broken)
    plan, cache = convergence.Plan(trials=2, seeds=1), tmp_path / "runs.jsonl"
    convergence.contest("text", "adamw", plan, cache)
    result = convergence.report([convergence.TASKS["text"]], ["adamw"], plan, cache)
    assert result["tasks"]["text"] == {}
    assert "no such root" in result["failed"]["text"]["adamw"]
    assert "no such root" in convergence.markdown(result)
