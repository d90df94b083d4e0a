"""ACMSAO as its document has it: to the letter, by hand, and where its code would have failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from optim.harness import assert_same_bits, make, run
from optim.rules.stepped import stepped
from reference import acmsao_document as document
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Pipeline, Stacking, accounting, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.phases import Phase
from acmsao_cli.optim.rules.acmsao_document import AcmsaoDocument
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Context

NAME = "acmsao_document"
SHAPES = [(5, 7), (9,), (), (4, 3, 3, 3)]
# Until the bank that is visited every 16 steps was full, and once more.
STEPS = 8 * 16 + 2
OF_ADAM = ("betas", "eps", "amsgrad")
OF_THE_RUN = ("lr", "weight_decay")
USUAL: dict[str, Any] = {"lr": 0.01, "cycle_period": 30}
ONE_BY_ONE: list[dict[str, Any]] = [
    {},
    {"num_scales": 1},
    {"num_scales": 2},
    {"num_scales": 4},
    {"history_size": 1},
    {"history_size": 2},
    {"sparsity_factor": 0.0},
    {"sparsity_factor": 1.0},
    {"magnitude_threshold": 0.0},
    {"magnitude_threshold": 3.0},
    {"cycle_period": 4},
    {"cycle_period": 1000},
    {"betas": (0.5, 0.9)},
    {"betas": (0.0, 0.99)},
    {"eps": 0.1},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"ram_offload": (True, False, True)},
    {"similarity": "cosine"},
    {"temperature": 0.2},
]
TOGETHER: list[dict[str, Any]] = [
    {"num_scales": 2, "history_size": 1, "sparsity_factor": 0.5, "magnitude_threshold": 1.0},
    {"history_size": 2, "cycle_period": 7, "betas": (0.8, 0.95), "weight_decay": 0.2, "eps": 1e-3},
    {
        "num_scales": 4,
        "history_size": 3,
        "sparsity_factor": 0.3,
        "magnitude_threshold": 1.5,
        "cycle_period": 11,
        "betas": (0.7, 0.9),
        "eps": 1e-2,
        "weight_decay": 0.05,
        "amsgrad": True,
        "ram_offload": (False, True, True, True),
        "similarity": "cosine",
        "temperature": 0.1,
    },
]


def composed(**options: Any) -> Pipeline:
    """The document's algorithm; Adam's options are given to the inner rule."""
    of_adam = {key: options.pop(key) for key in OF_ADAM if key in options}
    decay: Any = {"name": "corrected", "beta": of_adam.get("betas", (0.9, 0.999))[0]}
    return build_pipeline(NAME, inner={"name": "adamw", **of_adam}, decay=decay, **options)


def gradients(shape: tuple[int, ...], steps: int, seed: int = 1) -> list[Tensor]:
    """A drifting direction with noise, of sizes that vary: so that admission has a choice."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    sizes = (0.4 * torch.randn(steps, generator=generator)).exp().tolist()
    way, turn = draw(), draw()
    return [
        0.3 * size * (math.cos(t / 40) * way + math.sin(t / 40) * turn + draw())
        for t, size in enumerate(sizes)
    ]


def step_by_step(
    weights: Tensor, grads: Iterable[Tensor], pipeline: Pipeline, **options: Any
) -> tuple[Tensor, ComposedOptimizer]:
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, **({"lr": 0.01} | options))
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach().clone(), optimizer


def bank(optimizer: ComposedOptimizer, slot: str) -> list[float]:
    """The numbers of a scale's entries."""
    numbers: list[float] = optimizer.state_tensors()[f"w/{slot}/value"].flatten().tolist()
    return numbers


def luck(number: int = 0) -> Callable[[int, int], float]:
    """What our rule draws for a parameter, for steps from 0, by scale."""

    def draw(step: int, scale: int) -> float:
        numbers = torch.full((1, 1, 1), number, dtype=torch.int32)
        noise = Noise(numbers, hash_numbers(0, step + 1))
        return float(context(torch.zeros(1, 1, 1), step + 1, noise=noise).uniform(scale))

    return draw


def context(weights: Tensor, step: int | Tensor, first: bool = False, **more: Any) -> Context:
    return Context(step, first, 0.01, 0.0, weights, *weights.shape[1:], **more)


@pytest.mark.parametrize("varied", [*ONE_BY_ONE, *TOGETHER], ids=str)
def test_it_is_the_document_repaired(varied):
    given = USUAL | varied
    group = document.Group(**given)
    own = {key: value for key, value in given.items() if key not in OF_THE_RUN}
    of_run = {key: value for key, value in given.items() if key in OF_THE_RUN}
    for shape in SHAPES if not varied or varied in TOGETHER else SHAPES[:1]:
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        grads = gradients(shape, STEPS)
        expected, state = document.train(weights, grads, group, luck())
        found, optimizer = step_by_step(weights, grads, composed(**own), **of_run)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        for scale, history in enumerate(state.multi_scale_history):
            missing = [0.0] * (group.history_size - len(history))
            steps = [float(entry.step + 1) for entry in history] + missing
            norms = [entry.magnitude for entry in history] + missing
            assert bank(optimizer, f"taken_at_{scale}") == steps
            assert bank(optimizer, f"norms_{scale}") == pytest.approx(norms)


def test_parameters_have_histories_of_their_own_whether_stacked_or_not():
    weights = [torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    streams = [gradients((6, 4), 60, seed=n) for n in range(3)]
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    named = [(f"w{number}", parameter) for number, parameter in enumerate(parameters)]
    optimizer = ComposedOptimizer(named, composed(), lr=0.01, stacking=Stacking())
    for grads in zip(*streams, strict=True):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    for number, (start, grads) in enumerate(zip(weights, streams, strict=True)):
        expected, _ = document.train(start, grads, document.Group(lr=0.01), luck(number))
        found = parameters[number].detach().double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


OTHERWISE: dict[str, Any] = {
    "lr": 0.02,
    "betas": (0.8, 0.999),
    "eps": 0.1,
    "weight_decay": 0.1,
    "amsgrad": True,
    "cycle_period": 7,
    "num_scales": 2,
    "history_size": 4,
    "sparsity_factor": 0.6,
    "magnitude_threshold": 2.0,
    "similarity": "cosine",
    "temperature": 0.5,
    "cycle": 0.3,
    "phases": (Phase("up", 0.5, 1.2, 4.0), Phase("down", 1.0, 0.8, 0.25)),
}


# A maximum needs a mean that goes down, and luck something that is not admitted without.
WHERE_IT_MATTERS: dict[str, Any] = {
    "amsgrad": {"betas": (0.9, 0.9)},
    "sparsity_factor": {"magnitude_threshold": 2.0},
}


@pytest.mark.parametrize("option", OTHERWISE)
def test_every_option_changes_the_trajectory(option):
    weights, grads = torch.ones(5, 7), gradients((5, 7), 60)
    usual, other = WHERE_IT_MATTERS.get(option, {}), {option: OTHERWISE[option]}
    own, of_run = ({}, other) if option in OF_THE_RUN else (other, {})
    plain, _ = step_by_step(weights, grads, composed(**usual))
    changed, _ = step_by_step(weights, grads, composed(**usual, **own), **of_run)
    assert float((plain - changed).abs().max()) > 1e-4


# Admission, by hand. Scale 0 is visited at every step; without luck only the norms decide.

FIRM: dict[str, Any] = {"num_scales": 1, "history_size": 2, "sparsity_factor": 0.0}


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


def entries(*values: float, **options: Any) -> list[tuple[float, float]]:
    """(gradient, step from 0) of each entry after these gradients of one number."""
    _, optimizer = step_by_step(torch.zeros(1), numbers(*values), composed(**(FIRM | options)))
    size = (FIRM | options)["history_size"]
    names = ["history_0"] if size == 1 else [f"history_0.{index}" for index in range(size)]
    values = [bank(optimizer, name)[0] for name in names]
    kept = zip(values, bank(optimizer, "taken_at_0"), strict=True)
    return [(round(value, 6), step - 1) for value, step in kept if step]


def test_what_is_above_the_limit_is_admitted_while_there_is_room():
    # mu = .1, sqrt(var) = .1 ** .5 * .9, so 1 is 4.1 times the limit of .242, then 2.7 times .376
    assert entries(1.0) == [(1.0, 0)]
    assert entries(1.0, -1.0) == [(1.0, 0), (-1.0, 1)]


def test_what_is_not_above_the_limit_is_not():
    # After both mu = .1 and sqrt(var) = .27: the limit is .235.
    assert entries(1.0, 0.1) == [(1.0, 0)]
    assert entries(1.0, magnitude_threshold=3.2) == []  # .1 + 3.2 * .285 = 1.01
    assert entries(1.0, magnitude_threshold=3.1) == [(1.0, 0)]  # .98


def test_in_a_full_bank_the_least_by_norm_and_age_goes():
    # Phase low: a gradient counts half. Entries count norm / (age + 1).
    assert entries(1.0, 1.0, 0.1) == [(1.0, 0), (1.0, 1)]  # .05 does not beat 1 / 3
    assert entries(1.0, 1.0, 0.1, 2.0) == [(2.0, 3), (1.0, 1)]  # 1 beats 1 / 4: the oldest goes
    assert entries(1.0, 1.0, 0.1, 2.0, 0.4) == [(2.0, 3), (1.0, 1)]  # .2, and the least is 1 / 4
    assert entries(1.0, 1.0, 0.1, 2.0, 0.4, 0.5) == [(2.0, 3), (0.5, 5)]  # .25 beats 1 / 5
    # .5 / 2 is less than 2 / 4: the small one goes before the old one
    assert entries(1.0, 1.0, 0.1, 2.0, 0.4, 0.5, 0.6) == [(2.0, 3), (0.6, 6)]


def test_a_gradient_counts_four_times_as_much_in_phase_high():
    high = (Phase("high", 1.0, 1.0, 2.0),)
    assert entries(1.0, 1.0, 0.1) == [(1.0, 0), (1.0, 1)]
    assert entries(1.0, 1.0, 0.2, phases=high) == [(0.2, 2), (1.0, 1)]  # .4 beats 1 / 3


def test_luck_admits_what_is_small_with_the_chance_of_scale_and_phase():
    count, never = 900, 1e9
    pipeline = composed(sparsity_factor=0.6, magnitude_threshold=never)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    optimizer = ComposedOptimizer(parameters, pipeline, lr=0.01)
    for parameter in parameters:
        parameter.grad = torch.ones(1)
    optimizer.step()
    state = optimizer.state_tensors()
    for scale in range(3):  # phase low: recency 1/2
        taken = sum(float(state[f"{n}/taken_at_{scale}/value"].sum()) for n in range(count))
        chance = 0.6 * 0.5 / (scale + 1)
        assert abs(taken / count - chance) < 3 * math.sqrt(chance / count)


def test_a_scale_is_visited_every_power_of_four_steps():
    greedy = {"sparsity_factor": 1.0, "phases": (Phase("all", 1.0, 1.0, 3.0),)}
    _, optimizer = step_by_step(torch.zeros(1), numbers(*[1.0] * 50), composed(**greedy))
    taken = [sorted(bank(optimizer, f"taken_at_{scale}")) for scale in range(3)]
    assert [step - 1 for step in taken[1]] == [20, 24, 28, 32, 36, 40, 44, 48]
    assert [step - 1 for step in taken[2] if step] == [0, 16, 32, 48]
    assert max(taken[0]) == 50


# Attention, by hand. SGD shows what the inner rule sees: the weights go down by it.


def recalled(*values: float, **options: Any) -> list[float]:
    """What an inner rule saw, by step."""
    given = FIRM | ({} if "phases" in options else {"cycle": 0.0}) | options
    pipeline = build_pipeline(NAME, inner={"name": "sgd", "beta": 0.0}, **given)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1.0)
    seen = []
    for grad in numbers(*values):
        before = float(parameter.detach())
        parameter.grad = grad
        optimizer.step()
        seen.append(before - float(parameter.detach()))
    return seen


def test_entries_count_by_the_softmax_of_their_products_over_age():
    older, newer = math.exp(1.0 * 0.5 / 2), math.exp(0.5 * 0.5)  # ages 1 and 0
    expected = (older * 1.0 + newer * 0.5) / (older + newer)
    assert recalled(1.0, 0.5) == pytest.approx([1.0, expected])


def test_ages_are_counted_in_strides():
    """In bank 1 an entry of age 4 is as one of age 1 in bank 0; both were admitted by luck."""
    greedy = {"sparsity_factor": 1.0, "phases": (Phase("all", 1.0, 1.0, 2.0),)}
    seen = recalled(1.0, 0.0, 0.0, 0.0, 0.5, num_scales=2, history_size=8, **greedy)
    in_zero = [(1.0, 4), (0.0, 3), (0.0, 2), (0.0, 1), (0.5, 0)]
    expected = softmax_mean(in_zero, 0.5, 1) + softmax_mean([(1.0, 4), (0.5, 0)], 0.5, 4)
    assert seen[-1] == pytest.approx(expected)


def softmax_mean(aged: list[tuple[float, int]], grad: float, stride: int) -> float:
    weights = [math.exp(grad * value / (1 + age / stride)) for value, age in aged]
    return sum(w * value for w, (value, _) in zip(weights, aged, strict=True)) / sum(weights)


@pytest.mark.parametrize("temperature", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_weights_of_a_scale_sum_to_one(similarity, temperature):
    """Of equal gradients every scale recalls the one there is."""
    options = {"similarity": similarity, "temperature": temperature}
    seen = recalled(*[0.7] * 40, num_scales=3, history_size=5, **options)
    assert seen == pytest.approx([3 * 0.7] * 40, rel=1e-5)


def test_a_cosine_does_not_ask_how_large_gradients_are():
    values = [1.0, -0.3, 0.8, 1.1, -0.9, 0.4]
    small = recalled(*values, similarity="cosine")
    large = recalled(*(1000 * value for value in values), similarity="cosine")
    assert large == pytest.approx([1000 * value for value in small], rel=1e-4)
    assert recalled(*(1000 * v for v in values)) != pytest.approx(
        [1000 * v for v in recalled(*values)], rel=1e-2
    )


def test_where_nothing_was_admitted_the_gradient_stands_in():
    closed = {"sparsity_factor": 0.0, "magnitude_threshold": 1e9, "cycle": 0.0}
    weights, grads = torch.ones(5, 7), gradients((5, 7), 20)
    found, _ = step_by_step(weights, grads, build_pipeline(NAME, **closed))
    plain, _ = step_by_step(weights, grads, build_pipeline("adamw"))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


# Phases


@pytest.mark.parametrize(
    ("share", "phase"),
    [
        (0.0, "low"),
        (0.249, "low"),
        (0.25, "mid"),
        (0.75, "mid"),
        (0.751, "high"),
        (1.0, "high"),
        (1.249, "high"),
        (1.25, "mid"),
        (1.75, "mid"),
        (1.751, "low"),
        (2.0, "low"),
    ],
)
def test_phases_change_where_the_document_says(share, phase):
    period = 1000
    step = round(share * period)
    assert document.get_cycle_phase(step, period) == phase
    rate = AcmsaoDocument(cycle_period=period).rate(context(torch.zeros(1, 1, 1), step))
    assert rate == pytest.approx({"high": 1.1, "mid": 1.0, "low": 0.9}[phase])


@pytest.mark.parametrize("period", [1, 2, 3, 4, 7, 10, 1000])
def test_phases_are_the_documents_over_many_cycles(period):
    rule, group = AcmsaoDocument(cycle_period=period), document.Group()
    for step in range(1, 6 * period + 10):
        expected = group.factors[document.get_cycle_phase(step, period)]
        for count in (step, torch.tensor(float(step), dtype=torch.float64)):
            rate = float(rule.rate(context(torch.zeros(1, 1, 1), count)))
            assert rate == pytest.approx(expected)


def test_the_update_is_of_the_phase_after_the_step_and_admission_of_the_one_before():
    """With period 4 the phase turns from low to mid at step 1 from 0, which the first update is."""
    (first, *_) = recalled(1.0, cycle=0.1, cycle_period=4)
    assert first == pytest.approx(1.0)
    (first, *_) = recalled(1.0, cycle=0.1, cycle_period=8)
    assert first == pytest.approx(0.9)
    # Step 1 from 0 is high with period 1, mid with 2: .3 counts .6 or .3 against 1 / 2.
    assert entries(1.0, 0.3, history_size=1, cycle_period=1) == [(0.3, 1)]
    assert entries(1.0, 0.3, history_size=1, cycle_period=2) == [(1.0, 0)]


# What the document's code would not survive


@pytest.mark.parametrize("size", [0.0, 1e18, 1e-20, 1e-38])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_zero_huge_and_tiny_gradients_stay_finite(size, threshold, similarity):
    pipeline = composed(magnitude_threshold=threshold, similarity=similarity, amsgrad=True)
    mixed = [size * grad if t % 3 else grad for t, grad in enumerate(gradients((5, 7), 40))]
    for grads in (mixed, [size * grad for grad in gradients((5, 7), 40)]):
        weights, optimizer = step_by_step(torch.ones(5, 7), grads, pipeline, weight_decay=0.1)
        for value in (weights, *optimizer.state_tensors().values()):
            assert value.isfinite().all()
        assert (weights - 1).abs().max() < 1.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    grads = gradients((5, 7), 20)
    weights, optimizer = step_by_step(torch.ones(5, 7), grads, composed(), weight_decay=0.1)
    before = {name: value.clone() for name, value in optimizer.state_tensors().items()}
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(5, 7)
    parameter.grad[2, 3] = bad
    optimizer.step()
    assert torch.equal(parameter.detach(), weights)
    assert_same_bits(before, optimizer.state_tensors())
    parameter.grad = grads[0].clone()
    optimizer.step()
    assert parameter.isfinite().all()
    assert not torch.equal(parameter.detach(), weights)


@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored_4bit"])
def test_offloaded_equals_resident_to_the_bit(storage):
    options = {"storage": storage, "history_size": 3, "cycle_period": 5}
    resident = make(composed(**options))
    away = make(composed(**options, ram_offload=(False, True, True)))
    for model, optimizer in (resident, away):
        run(model, optimizer, stop=25)
    assert_same_bits(resident[0].state_dict(), away[0].state_dict())
    assert_same_bits(resident[1].state_tensors(), away[1].state_tensors())


def test_only_the_scales_that_are_named_live_in_host_memory():
    pipeline = composed(ram_offload=(False, False, True))
    away = {s.name for s in pipeline.slots if pipeline.storage.codec(s).offloaded}
    assert away == {"history_2"}


@pytest.mark.parametrize("stop", [7, 16, 18])
def test_resumed_in_the_middle_of_cycle_and_stride_it_goes_on_to_the_bit(stop):
    options = {"history_size": 2, "cycle_period": 6, "storage": "bf16"}
    whole, first, second = (make(composed(**options)) for _ in range(3))
    run(*whole, stop=30)
    run(*first, stop=stop)
    saved = {name: value.clone() for name, value in first[1].state_tensors().items()}
    second[0].load_state_dict(first[0].state_dict())
    assert second[1].load_state(saved, first[1].state_header()) == []
    run(*second, start=stop, stop=30)
    assert_same_bits(whole[0].state_dict(), second[0].state_dict())
    assert_same_bits(whole[1].state_tensors(), second[1].state_tensors())


def test_a_bank_is_bounded_and_its_bytes_are_known():
    shapes = [(64, 32)]
    small, large = (
        accounting.state_bytes(composed(history_size=size, storage="bf16"), shapes)
        for size in (8, 9)
    )
    numbers = 3 * 2 * 4  # norm and step of an entry of each scale
    assert large - small == 3 * 2 * 64 * 32 + numbers


# In company


@pytest.mark.parametrize("scale", [1e-6, 100.0])
def test_the_scale_of_gradients_is_taken_out(scale):
    pipeline, grads = composed(eps=0.5, history_size=2), gradients((1, 5, 7), 20)
    scaled = stepped(pipeline, grads, grad_scale=scale)
    torch.testing.assert_close(scaled, stepped(pipeline, grads), rtol=1e-4, atol=1e-4)


def test_the_step_may_be_a_tensor():
    """As under compile, where nothing may depend on its value by `if`."""
    pipeline, grads = composed(history_size=2, cycle_period=3), gradients((2, 6, 5), 20)
    as_tensors = stepped(pipeline, grads, as_tensors=True, weight_decay=0.1)
    as_numbers = stepped(pipeline, grads, weight_decay=0.1)
    torch.testing.assert_close(as_tensors, as_numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", ["adopt", "lion", "muon"])
def test_other_rules_go_inside(inner):
    model, optimizer = make(build_pipeline(NAME, inner=inner))
    run(model, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("outer", ["prodigy", "warm_start"])
def test_it_goes_inside_what_wraps_any_rule(outer):
    pipeline = build_pipeline(outer, inner=NAME)
    model, optimizer = make(pipeline)
    run(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.step()
    assert pipeline.rule.guarded
    assert_same_bits(before, model.state_dict())


def test_decay_stands_inside_the_step_size():
    """w <- w - factor lr / (1 - b1^t) decay w, beside the update."""
    weights, zeros = torch.ones(3, 2), [torch.zeros(3, 2)] * 3
    found, _ = step_by_step(weights, zeros, composed(cycle=0.0), weight_decay=0.5)
    expected = weights
    for step in range(1, 4):
        expected = expected * (1 - 0.01 / (1 - 0.9**step) * 0.5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scales": 0}, "num_scales must be positive"),
        ({"history_size": 0}, "history_size must be positive"),
        ({"cycle_period": 0}, "cycle_period must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"sparsity_factor": 1.5}, "sparsity_factor must lie in"),
        ({"sparsity_factor": math.nan}, "sparsity_factor must lie in"),
        ({"magnitude_threshold": -0.1}, "magnitude_threshold must be 0 or more"),
        ({"ram_offload": (True,)}, "1 flags for 3 scales"),
        ({"similarity": "euclid"}, "similarity cannot be `euclid`"),
        ({"cycle": 1.0}, "cycle must lie in"),
        ({"cycle": 0.2, "phases": (Phase("all", 1.0),)}, "cannot both be given"),
        ({"phases": (Phase("half", 0.5),)}, "phases must end"),
        ({"inner": NAME}, "cannot be put around acmsao_document"),
        ({"inner": "prodigy"}, "cannot be put around prodigy"),
        ({"inner": {"name": "adamw", "momentum": "multi_scale"}}, "would remember twice"),
        ({"betas": (0.9, 0.99)}, "no option `betas`"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message) as caught:
        build_pipeline(NAME, **options)
    assert caught.value.hint


def test_what_the_inner_rule_refuses_is_refused():
    pipeline = composed()
    with pytest.raises(OptimizerError, match="around picky, which refuses everything"):
        replace(pipeline, rule=AcmsaoDocument(inner=Picky()))


class Picky(AdamW):
    """An inner rule that goes with nothing."""

    registered_name = "picky"

    def rejects(self, pipeline: Pipeline) -> str | None:
        return "refuses everything"
