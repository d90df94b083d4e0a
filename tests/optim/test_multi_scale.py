"""What ACMSAO's memory takes in, keeps and says, by hand and for any scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Pipeline, accounting, build_pipeline
from acmsao_cli.optim.admission import counted, large, likely, patient, usual
from acmsao_cli.optim.banks import attention, cosines
from acmsao_cli.optim.phases import Phase

ALWAYS_ONE = (Phase("all", 1.0, 1.0, 1.0),)
FIRM: dict[str, Any] = {"sparsity_factor": 0.0, "phases": ALWAYS_ONE}  # without luck
some = settings(max_examples=15, deadline=None)


def remembering(**options: Any) -> Pipeline:
    """SGD shows what the memory says: at a learning rate of 1 weights go down by it."""
    return build_pipeline("sgd", momentum={"name": "multi_scale", **options})


def taught(
    grads: list[Tensor], pipeline: Pipeline, **more: Any
) -> tuple[list[Tensor], ComposedOptimizer]:
    """What the rule saw instead of each gradient."""
    parameter = torch.nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1.0, **more)
    seen = []
    for grad in grads:
        parameter.detach().zero_()
        parameter.grad = grad.clone()
        optimizer.step()
        seen.append(-parameter.detach().clone())
    return seen, optimizer


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


def kept(optimizer: ComposedOptimizer, slot: str, name: str = "w") -> list[float]:
    found: list[float] = optimizer.state_tensors()[f"{name}/{slot}/value"].flatten().tolist()
    return found


def admitted(*norms: float, stride: int = 1, **options: Any) -> list[int]:
    """The steps at which a bank of one visit took in gradients of these norms."""
    (found,) = admitted_by_scale(norms, (stride,), **options)
    return found


def admitted_by_scale(
    norms: Iterable[float], scales: tuple[int, ...], **options: Any
) -> list[list[int]]:
    """The same for several scales: at the start of a long run a bank holds the last visit alone."""
    given = FIRM | {"scales": scales, "visits": "gradient", "total_steps": 10**9} | options
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = ComposedOptimizer([("w", parameter)], remembering(**given), lr=1.0)
    found: list[list[int]] = [[] for _ in scales]
    for step, norm in enumerate(norms, start=1):
        grad = norm * torch.tensor([math.cos(step), math.sin(step)])  # each is another
        parameter.grad = grad.clone()
        optimizer.step()
        for index, stride in enumerate(scales):
            if kept(optimizer, f"bank_{stride}") == grad.tolist():
                found[index].append(step)
    return found


def after_usual(*norms: float, **options: Any) -> list[int]:
    """Which of these norms, from 1, are taken in after 60 norms of 1."""
    found = admitted(*[1.0] * 60, *norms, **options)
    return [step - 60 for step in found if step > 60]


# Admission


def test_the_first_three_are_taken_in_whatever_their_size():
    assert admitted(1, 1e3, 1e6, 1e9) == [1, 2, 3]
    assert admitted(1e6, 1e3, 1, 1) == [1, 2, 3, 4]


def test_usual_norms_are_taken_in_and_an_outlier_is_not():
    assert after_usual(1, 1, 1, 100, 1, 1) == [1, 2, 3, 5, 6]
    assert after_usual(0, 1e-9, 0.5) == [1, 2, 3]


def test_averages_that_start_at_zero_hide_two_visits_after_the_first_three():
    assert admitted(*[1.0] * 12) == [1, 2, 3, *range(6, 13)]


def test_slowly_growing_norms_are_taken_in():
    assert after_usual(*[1.02**step for step in range(60)]) == list(range(1, 61))


def test_after_four_refused_in_a_row_one_is_taken_in():
    # mu grows to 1.9, 3.6, 6.9, 13, 25, 47, 52, 57, 61, 65: 100 is above 1.25 of it all the time.
    assert after_usual(*[100.0] * 10, kappa=0.0) == [5, 10]


def test_a_usual_one_in_between_starts_the_count_again():
    assert after_usual(100, 100, 100, 1, 100, 100, 100, 100, 100, kappa=0.0) == [4, 9]


@pytest.mark.parametrize(("kappa", "taken"), [(0.0, []), (1.0, []), (3.0, [1])])
def test_kappa_says_how_many_spreads_above_the_mean_are_usual(kappa, taken):
    # mu = .9 + .1 * 2 = 1.1 and the spread sqrt(.1) * .9 = .285: the bound is 1.375 + .285 kappa
    assert after_usual(2.0, kappa=kappa) == taken


def test_of_four_and_of_sixteen_the_first_visit_is_at_the_stride():
    assert admitted(*[1.0] * 50, stride=4)[:3] == [4, 8, 12]
    assert admitted(*[1.0] * 50, stride=16) == [16, 32, 48]
    assert admitted(*[1.0] * 15, stride=16) == []


def test_a_scale_counts_its_own_visits():
    """With an outlier at every fourth step the coarse bank sees nothing else: one in five."""
    fine, coarse = admitted_by_scale([1.0, 1.0, 1.0, 50.0] * 30, (1, 4), kappa=0.0)
    assert coarse == [4, 8, 12, *range(32, 121, 20)]
    assert [step for step in fine if step > 20] == [step for step in range(21, 121) if step % 4]


def test_a_monster_counts_as_ten_means():
    _, optimizer = taught(numbers(*[1.0] * 100, 1e12), remembering(**FIRM))
    _, mean, spread, *_ = kept(optimizer, "numbers")
    assert mean == pytest.approx(0.9 + 0.1 * 10, rel=1e-3)
    assert spread == pytest.approx(math.sqrt(0.1) * (10 - 1.9), rel=1e-3)
    assert after_usual(1e12, 1, 1, 1, 1) == [2, 3, 4, 5]
    assert after_usual(1e12, 2, 2, 2, 2) == [2, 3, 4, 5]


def test_the_first_three_count_as_they_are():
    _, optimizer = taught(numbers(1.0, 1.0, 1000.0), remembering(**FIRM))
    _, mean, *_ = kept(optimizer, "numbers")
    assert mean == pytest.approx(0.9 * 0.19 + 100)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_is_neither_taken_in_nor_counted(bad):
    assert admitted(1.0, bad, 1.0, bad, 1e3, 1e6) == [1, 3, 5]
    assert after_usual(*[bad] * 6, 1.0) == [7]
    assert after_usual(*[100.0] * 3, *[bad] * 5, 100.0, 100.0, kappa=0.0) == [10]


@pytest.mark.parametrize("recency", [0.5, 1.0, 2.0])
def test_luck_takes_in_outliers_with_the_chance_of_scale_and_phase(recency):
    count, sparsity = 900, 0.4
    phases = (Phase("all", 1.0, 1.0, recency),)
    pipeline = remembering(
        scales=(1, 2, 3), bank="ring", history_size=8, phases=phases, sparsity_factor=sparsity
    )
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    optimizer = ComposedOptimizer(parameters, pipeline, lr=0.01)
    for step in range(1, 19):  # 18 is everyone's turn
        for parameter in parameters:
            parameter.grad = torch.ones(1) * (100 if step == 18 else 1)
        optimizer.step()
    state = optimizer.state_tensors()
    for index, stride in enumerate((1, 2, 3)):
        taken = sum(
            bool((state[f"{name}/taken_at_{stride}/value"] == 18).any()) for name in range(count)
        )
        chance = sparsity * recency / (index + 1)
        assert abs(taken / count - chance) < 4 * math.sqrt(chance * (1 - chance) / count)


def test_the_documents_admission_takes_in_what_is_large():
    assert after_usual(2.0, 1.0, 1.0, admission="magnitude") == [1]
    assert after_usual(2.0, admission="magnitude", magnitude_threshold=50.0) == []


def test_by_importance_large_ones_are_sure_and_small_ones_rare():
    found = after_usual(*[10.0, 0.01] * 25, admission="importance")
    large_ones = set(range(1, 51, 2))
    assert large_ones <= set(found)
    assert len(set(found) - large_ones) <= 2


def test_bounds_are_as_they_are_written():
    one = torch.ones(1, 1, 1)
    assert usual(1.25 * one, one, 0 * one, 1.0).all()
    assert not usual(1.2501 * one, one, 0 * one, 1.0).any()
    assert usual(1.75 * one, one, 0.5 * one, 1.0).all()
    assert large(1.6 * one, one, one, 0.5).all() == large(1.51 * one, one, one, 0.5).all()
    assert not large(1.5 * one, one, one, 0.5).any()
    assert likely(0.5 * one, one, 0.5 * one).all()
    assert not likely(0.5 * one, one, 0.51 * one).any()


@some
@given(st.lists(st.booleans(), max_size=40))
def test_counts_say_who_must_be_taken_in(usual_ones):
    """Three admitted, then never more than four refused in a row."""
    waiting = torch.zeros(1, 1, 1)
    admitted_so_far, row = 0, 0
    for good in usual_ones:
        must = bool(patient(waiting))
        assert must == (admitted_so_far < 3 or row == 4)
        taken = torch.tensor(good or must).view(1, 1, 1)
        waiting = counted(waiting, taken, torch.ones(1, 1, 1, dtype=torch.bool))
        admitted_so_far, row = admitted_so_far + bool(taken), 0 if taken else row + 1


# Banks


def test_a_mean_remembers_horizon_visits():
    """horizon 2 of a run that is done: halfway to each gradient; below one visit, all of it."""
    options = FIRM | {"scales": (1,), "horizon": 2.0, "total_steps": 1, "admission": "always"}
    options.pop("sparsity_factor")
    _, optimizer = taught(numbers(8.0, 4.0, 0.0), remembering(**options))
    assert kept(optimizer, "bank_1") == [((4 + 4) / 2) / 2]
    late = options | {"total_steps": 1000}
    _, optimizer = taught(numbers(8.0, 4.0), remembering(**late))
    assert kept(optimizer, "bank_1") == [4.0]


def test_progress_stops_at_the_end_of_the_run():
    for steps, progress in ((3, 0.3), (10, 1.0), (15, 1.0)):
        _, optimizer = taught(numbers(*[1.0] * steps), remembering(total_steps=10))
        assert kept(optimizer, "numbers")[0] == pytest.approx(progress)


def test_the_optimizer_tells_the_length_unless_the_memory_is_told():
    _, optimizer = taught(numbers(*[1.0] * 5), remembering(), total_steps=20)
    assert kept(optimizer, "numbers")[0] == pytest.approx(0.25)
    _, optimizer = taught(numbers(*[1.0] * 5), remembering(total_steps=10), total_steps=20)
    assert kept(optimizer, "numbers")[0] == pytest.approx(0.5)
    _, optimizer = taught(numbers(*[1.0] * 5), remembering(scales=(1, 4), horizon=2.0))
    assert kept(optimizer, "numbers")[0] == pytest.approx(5 / (10 * 2 * 4))


def test_a_ring_forgets_the_oldest():
    options = FIRM | {"scales": (1,), "bank": "ring", "history_size": 3}
    values = [*[1.0] * 20, 1.1, 1.2, 50.0, 1.3]  # of which one is refused
    _, optimizer = taught(numbers(*values), remembering(**options))
    steps = kept(optimizer, "taken_at_1")
    entries = [kept(optimizer, f"bank_1.{index}")[0] for index in range(3)]
    held = sorted(zip(steps, entries, strict=True))
    assert [step for step, _ in held] == [21, 22, 24]
    assert [value for _, value in held] == pytest.approx([1.1, 1.2, 1.3])


def test_a_ring_says_what_the_softmax_of_likeness_over_age_says():
    options = FIRM | {"scales": (1,), "bank": "ring", "history_size": 2, "total_steps": 1}
    options |= {"nesterov": False, "alpha": 4.0, "temperature": 0.5}
    grads = [torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])]
    seen, _ = taught(grads, remembering(**options))
    older, newer = math.exp(0.6 / 2 / 0.5), math.exp(1 / 0.5)
    weight = older / (older + newer)
    memory = weight * grads[0] + (1 - weight) * grads[1]
    plain, _ = taught(grads, remembering(**(options | {"alpha": 0.0})))
    torch.testing.assert_close(seen[1] - plain[1], 4 * memory)


@some
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9),
    st.integers(0, 9),
)
def test_a_rings_weights_sum_to_one_and_are_zero_where_it_is_empty(scores, filled):
    present = torch.arange(len(scores)).view(-1, 1, 1, 1) < filled
    weights = attention(torch.tensor(scores).view(-1, 1, 1, 1), present)
    assert float(weights.sum()) == pytest.approx(1.0 if filled else 0.0, abs=1e-5)
    assert (weights[~present] == 0).all()
    assert (weights >= 0).all()


@some
@given(
    scales=st.sets(st.integers(1, 9), min_size=1, max_size=4),
    size=st.integers(1, 6),
    temperature=st.sampled_from([1e-6, 0.1, 1e6]),
    steps=st.integers(9, 30),
)
def test_of_equal_gradients_every_ring_recalls_the_one_there_is(scales, size, temperature, steps):
    options = {"scales": tuple(sorted(scales)), "bank": "ring", "history_size": size}
    options |= {"temperature": temperature, "alpha": 3.0, "total_steps": 1}
    grad = torch.tensor([0.5, -2.0, 0.25])
    full, none = (
        taught([grad] * steps, remembering(**FIRM, **(options | {"alpha": alpha})))[0][-1]
        for alpha in (3.0, 0.0)
    )
    torch.testing.assert_close(full - none, 3 * grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lagged", [True, False])
@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1e6])
def test_the_softmax_over_scales_sums_to_one(lagged, temperature):
    """Where all banks hold the same the memory is alpha times it, whatever they are alike to."""
    options = {"attention": "softmax", "temperature": temperature, "lagged": lagged}
    options |= {"total_steps": 1, "horizon": 1.0, "scales": (1, 2, 3), "visits": "gradient"}
    grad = torch.tensor([0.5, -2.0, 0.25])
    full, none = (
        taught([grad] * 20, remembering(**FIRM, **options, alpha=alpha))[0][-1]
        for alpha in (3.0, 0.0)
    )
    torch.testing.assert_close(full - none, 3 * grad, rtol=1e-4, atol=1e-4)


def test_a_cosine_survives_huge_and_tiny_numbers_and_zeros():
    one = torch.ones(1, 1, 1)
    huge, tiny = 1e36 * one, 1e-30 * one
    assert float(cosines([huge], huge, [huge])) == pytest.approx(1.0)
    assert float(cosines([tiny], tiny, [tiny])) == pytest.approx(1.0, rel=1e-3)
    assert float(cosines([0 * one], 0 * one, [one])) == 0.0


# What it says


def walk(shape: tuple[int, ...], steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(shape, generator=generator)
    return [way + 2 * torch.randn(shape, generator=generator) for _ in range(steps)]


@some
@given(
    scales=st.sets(st.integers(1, 12), min_size=1, max_size=4),
    alpha=st.floats(0, 10),
    attended=st.sampled_from(["none", "tensor", "scale", "softmax"]),
    bank=st.sampled_from(["mean", "ring"]),
    lagged=st.booleans(),
    period=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_it_is_at_most_the_fresh_part_plus_alpha_times_the_largest_bank(
    scales, alpha, attended, bank, lagged, period, seed
):
    options: dict[str, Any] = {"scales": tuple(sorted(scales)), "bank": bank}
    options["lagged"] = lagged or attended == "none"  # which has no sums that could lag
    options |= {"attention": attended, "cycle_period": period, "cycle": 0.0, "total_steps": 20}
    grads = walk((3, 4), 25, seed)
    full, optimizer = taught(grads, remembering(**options, alpha=alpha))
    fresh, _ = taught(grads, remembering(**options, alpha=0.0))
    state = optimizer.state_tensors()
    banks = [value.abs().max() for name, value in state.items() if "/bank_" in name]
    assert (full[-1] - fresh[-1]).abs().max() <= alpha * max(banks) * (1 + 1e-4) + 1e-5


@some
@given(
    scales=st.sets(st.integers(1, 12), min_size=1, max_size=4),
    kind=st.sampled_from(["none", "tensor", "scale", "softmax", "element_per_scale"]),
    bank=st.sampled_from(["mean", "ring"]),
    admission=st.sampled_from(["robust", "magnitude", "importance", "always"]),
    size=st.sampled_from([0.0, 1e-30, 1e-20, 1e-10, 1e10, 1e18, 1e20, math.inf, math.nan]),
    seed=st.integers(0, 99),
)
def test_nothing_that_comes_in_makes_it_say_what_is_not_finite(
    scales, kind, bank, admission, size, seed
):
    options: dict[str, Any] = {"scales": tuple(sorted(scales)), "bank": bank, "attention": kind}
    options |= {"admission": admission, "total_steps": 20}
    grads = walk((3, 4), 21, seed)
    mixed = [size * grad if index % 4 == 3 else grad for index, grad in enumerate(grads)]
    seen, optimizer = taught(mixed, remembering(**options))
    assert all(one.isfinite().all() for one in seen)
    assert all(value.isfinite().all() for value in optimizer.state_tensors().values())
    assert seen[-1].abs().sum() > 0


def test_the_memory_grows_with_the_run():
    grads = walk((30, 4), 40, 1)
    full, _ = taught(grads, remembering(total_steps=40, cycle=0.0))
    fresh, _ = taught(grads, remembering(total_steps=40, cycle=0.0, alpha=0.0))
    parts = [float((a - b).norm() / b.norm()) for a, b in zip(full, fresh, strict=True)]
    assert parts[0] < 0.15
    assert parts[-1] > 2 * parts[9] > 0


# Where it lives


@pytest.mark.parametrize(
    ("flags", "away", "visits"),
    [
        (None, set(), 1),
        ((False, False, False), set(), 1),
        ((False, False, True), {"bank_16"}, 16),
        ((False, True, True), {"bank_4", "bank_16"}, 4),
        ((True, True, True), {"bank_1", "bank_4", "bank_16"}, 1),
    ],
)
def test_the_scales_that_are_named_live_in_host_memory_and_their_sum_on_the_device(
    flags, away, visits
):
    pipeline = remembering(ram_offload=flags)
    offloaded = {s.name for s in pipeline.slots if pipeline.storage.codec(s).offloaded}
    assert offloaded == away
    assert ("bank_sum" in {slot.name for slot in pipeline.slots}) == bool(away)
    assert {slot.visits for slot in pipeline.slots if slot.name in away} <= {visits}


def test_its_bytes_are_those_of_momentum_banks_and_a_few_numbers():
    shapes = [(64, 32)]
    size = 64 * 32 * 4

    def taken(**options: Any) -> int:
        return accounting.state_bytes(remembering(**options), shapes)

    scalars = 4 * (4 + 3)
    assert taken() == (1 + 3) * size + scalars
    assert taken(scales=(16,)) == 2 * size + 4 * (4 + 1)
    ring = taken(bank="ring", history_size=5)
    assert ring == (1 + 3 * 5) * size + scalars + 3 * 5 * 4


# What means nothing is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales cannot be"),
        ({"scales": (4, 1)}, "scales cannot be"),
        ({"scales": (1, 1)}, "scales cannot be"),
        ({"scales": (0, 4)}, "scales cannot be"),
        ({"scales": "many"}, "scales cannot be many"),
        ({"horizon": 0.0}, "horizon must be positive"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"alpha": float("inf")}, "alpha cannot be inf"),
        ({"alpha": (1.0, 2.0)}, "alpha has 2 numbers for 3 scales"),
        ({"alpha": (1.0, 2.0, -1.0)}, "alpha must be 0 or more"),
        ({"admission": "none"}, "admission cannot be `none`"),
        ({"visits": "weights"}, "visits cannot be `weights`"),
        ({"bank": "list"}, "bank cannot be `list`"),
        ({"pace": "hours"}, "pace cannot be `hours`"),
        ({"attention": "element"}, "attention cannot be `element`"),
        ({"kappa": -0.5}, "kappa must be 0 or more"),
        ({"kappa": 2.0, "admission": "always"}, "kappa=2.0 would change nothing"),
        ({"magnitude_threshold": 0.7}, "magnitude_threshold=0.7 would change nothing"),
        ({"sparsity_factor": 0.3, "admission": "always"}, "sparsity_factor=0.3 would change"),
        ({"sparsity_factor": -0.3}, "sparsity_factor must be 0 or more"),
        ({"history_size": 4}, "history_size=4 would change nothing"),
        ({"history_size": 0, "bank": "ring"}, "history_size must be positive"),
        ({"temperature": 0.2}, "temperature=0.2 would change nothing"),
        ({"temperature": 0.0, "bank": "ring"}, "temperature must be positive"),
        ({"horizon": 5.0, "growth": 10.0}, "horizon=5.0 would change nothing"),
        ({"alpha": 5.0, "ramp": 1.0}, "alpha=5.0 would change nothing"),
        ({"growth": -1.0}, "growth must be 0 or more"),
        ({"ramp": -1.0}, "ramp must be 0 or more"),
        ({"cycle": 1.0}, "cycle must lie in"),
        ({"cycle": -0.1}, "cycle must lie in"),
        ({"cycle": 0.2, "phases": ALWAYS_ONE}, "cycle=0.2 would change nothing"),
        ({"cycle_period": 0}, "cycle_period must be positive"),
        ({"cycle_period": "often"}, "cycle_period cannot be `often`"),
        ({"total_steps": 0}, "total_steps must be positive"),
        ({"ram_offload": (True,)}, "1 flags for 3 scales"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message) as caught:
        remembering(**options)
    assert caught.value.hint
    given = dict(options)
    if given.get("attention") != "element":
        with pytest.raises(OptimizerError, match=message):
            build_pipeline("acmsao", **given)


def test_every_pair_of_bank_and_attention_takes_a_step():
    kinds = ("none", "tensor", "scale", "softmax", "element_per_scale")
    for bank, kind in itertools.product(("mean", "ring"), kinds):
        options = {"bank": bank, "attention": kind, "scales": (1, 2)}
        seen, _ = taught(walk((3, 4), 5, 0), remembering(**options))
        assert seen[-1].isfinite().all()
