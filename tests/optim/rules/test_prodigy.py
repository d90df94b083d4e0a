"""Prodigy around Adam and around anything else."""

import pytest
import torch
from optim.rules.trajectory import SHAPES, bowl, deviation, draws, follow, steepness
from reference.prodigy import prodigy as prodigy_paper

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.rules.lion import Lion
from acmsao_cli.optim.rules.prodigy import Prodigy
from acmsao_cli.optim.slots import Role, Slot

NUM_STEPS = 40
# Small, so that the first steps, of length d0, are far above fp32's resolution at the weights: the
# first estimates of d come from a difference of weights.
START = [1e-3 * weights for weights in draws(SHAPES, seed=1)]
OPTIONS = [
    {},
    {"d0": 1e-4, "d_coef": 0.5},
    {"growth_rate": 1.5},
    {"safeguard_warmup": True},
]


def number(optimizer, name: str) -> float:
    (shared,) = optimizer.shared
    return float(shared[name])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lr", [1.0, 0.3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_around_adam_it_equals_the_paper(options, lr, weight_decay):
    expected, d = prodigy_paper(START, bowl, NUM_STEPS, lr=lr, weight_decay=weight_decay, **options)
    found, optimizer = follow(
        build_pipeline("prodigy", **options),
        START,
        bowl,
        NUM_STEPS,
        lr=lr,
        weight_decay=weight_decay,
    )
    assert deviation(found, expected, START) < 1e-3
    assert number(optimizer, "d") == pytest.approx(d, rel=1e-3)
    assert d > 10 * options.get("d0", 1e-6)


def test_around_lion_it_equals_the_paper_with_lions_update():
    expected, d = prodigy_paper(START, bowl, 20, inner="lion", betas=(0.9, 0.99))
    found, optimizer = follow(build_pipeline("prodigy", inner="lion"), START, bowl, 20, lr=1.0)
    assert deviation(found, expected, START) < 1e-3
    assert number(optimizer, "d") == pytest.approx(d, rel=1e-3)


@pytest.mark.parametrize("inner", ["adopt", "muon", "adadiag", "soap"])
def test_any_rule_with_steps_of_a_given_size_goes_down_a_bowl_inside(inner):
    pipeline = build_pipeline("prodigy", inner=inner)
    found, optimizer = follow(pipeline, START, bowl, 200, lr=1.0)
    assert steepness(found) < 0.5 * steepness(START)
    assert number(optimizer, "d") > 1e-5


def test_gradients_a_thousand_times_larger_change_nothing():
    found, _ = follow(build_pipeline("prodigy"), START, bowl, NUM_STEPS, lr=1.0)
    larger, _ = follow(
        build_pipeline("prodigy"),
        START,
        lambda weights, step: [1000 * g for g in bowl(weights, step)],
        NUM_STEPS,
        lr=1.0,
    )
    assert deviation(larger, found, START) < 1e-2


@pytest.mark.parametrize("name", ["prodigy", "dadaptation"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_does_not_stop_the_search_for_d(name, bad):
    def once_bad(weights, step):
        first, *others = bowl(weights, step)
        return [torch.full_like(first, bad) if step == 3 else first, *others]

    _, early = follow(build_pipeline(name), START, once_bad, 5, lr=1.0)
    _, late = follow(build_pipeline(name), START, once_bad, NUM_STEPS, lr=1.0)
    assert 1e-6 <= number(early, "d") < number(late, "d") < 100


def test_without_gradients_d_stays():
    _, optimizer = follow(
        build_pipeline("prodigy"), START, lambda ws, _: [torch.zeros_like(w) for w in ws], 3, lr=1.0
    )
    assert number(optimizer, "d") == pytest.approx(1e-6)


def test_a_sample_of_columns_gives_nearly_the_same_d_at_a_fraction_of_the_bytes():
    start = draws([(40, 110), (30,)], seed=1)
    _, all_columns = follow(build_pipeline("prodigy"), start, bowl, NUM_STEPS, lr=1.0)
    _, sampled = follow(build_pipeline("prodigy", slice_p=11), start, bowl, NUM_STEPS, lr=1.0)
    assert number(sampled, "d") == pytest.approx(number(all_columns, "d"), rel=0.2)
    state = sampled.state_tensors()
    assert state["w0/start/value"].shape == (40, 10)
    assert state["w0/gradient_sum/value"].shape == (40, 10)
    assert state["w1/start/value"].shape == (1, 30)


def test_rounded_stochastically_weights_in_bf16_find_nearly_the_same_d():
    start = [0.02 * weights for weights in draws([(64, 64), (64,)], seed=1)]
    d = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = [w.to(dtype) for w in start]  # their unit is a hundred times the first steps
        _, optimizer = follow(build_pipeline("prodigy"), weights, bowl, NUM_STEPS, lr=1.0)
        d[dtype] = number(optimizer, "d")
    assert d[torch.bfloat16] == pytest.approx(d[torch.float32], rel=0.2)


def test_it_keeps_what_it_measures_with_exactly():
    mine = {slot.name: slot for slot in Prodigy(Lion()).slots}
    assert mine["start"].role is mine["gradient_sum"].role is Role.EXACT
    assert Slot("momentum", gradient_like=True) in mine.values()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d0": 0.0}, "d0 must be positive"),
        ({"beta3": 1.0}, "beta3 must be in"),
        ({"growth_rate": 1.0}, "growth_rate must be above 1"),
        ({"slice_p": 0}, "slice_p must be positive"),
        ({"inner": "prodigy"}, "prodigy cannot be put around prodigy"),
        ({"inner": "dadaptation"}, "prodigy cannot be put around dadaptation"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline("prodigy", **options)


def test_what_the_inner_rule_refuses_is_refused():
    class Picky(Lion):
        def rejects(self, pipeline: Pipeline) -> str | None:
            return "dislikes this pipeline"

    with pytest.raises(OptimizerError, match="around lion, which dislikes"):
        Pipeline(Prodigy(Picky()))
