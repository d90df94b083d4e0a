"""ACMSAO's scalable form: its equations written out, their laws, and its ways of stepping."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from optim.harness import assert_same_bits, everything, make, run
from optim.rules.stepped import stepped
from reference import acmsao as reference
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Pipeline, Stacking, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.phases import Phase
from acmsao_cli.optim.rules.base import Context


def told(options: object) -> str:
    """The same in every process: without a function's address."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(options))


SHAPES = [(5, 7), (9,), (), (4, 3, 3, 3)]
STEPS = 120
OF_ADAM = ("betas", "eps", "amsgrad")
OF_THE_RUN = ("lr", "weight_decay")
USUAL: dict[str, Any] = {"lr": 0.01, "cycle_period": 20, "total_steps": 150}
TABLE = (Phase("a", 0.3, 1.3, 4.0), Phase("b", 0.6, 0.8, 1.0), Phase("c", 1.0, 1.1, 0.0))
ONE_BY_ONE: list[dict[str, Any]] = [
    {},
    {"scales": (1,)},
    {"scales": (16,)},
    {"scales": (2, 3, 7, 20)},
    {"scales": "auto"},
    {"scales": "auto", "lagged": False},
    {"horizon": 3.0},
    {"horizon": 25.0, "alpha": 4.0},
    {"scales": (1,), "total_steps": 400},
    {"horizon": 100.0},
    {"alpha": 0.0},
    {"alpha": 1.5},
    {"alpha": (0.5, 8.0, 2.0)},
    {"nesterov": False},
    {"visits": "gradient"},
    {"admission": "always"},
    {"admission": "magnitude"},
    {"admission": "magnitude", "magnitude_threshold": 1.5},
    {"admission": "importance"},
    {"kappa": 0.0},
    {"kappa": 3.0},
    {"sparsity_factor": 0.0},
    {"sparsity_factor": 0.6},
    {"attention": "none"},
    *(
        {"attention": attention, "lagged": lagged}
        for attention in ("element", "element_per_scale", "tensor", "scale", "softmax")
        for lagged in (True, False)
    ),
    {"attention": "softmax", "temperature": 1.0},
    {"bank": "ring"},
    {"bank": "ring", "history_size": 2},
    {"bank": "ring", "history_size": 3, "temperature": 1.0},
    {"bank": "ring", "history_size": 3, "attention": "softmax"},
    {"cycle": 0.0},
    {"cycle": 0.5},
    {"cycle_period": 7},
    {"cycle_period": 1000},
    {"cycle_period": "schedule"},
    {"phases": TABLE},
    {"total_steps": 40},
    {"total_steps": None},
    {"pace": "learning_rate"},
    {"growth": lambda step: 2.0 + step / 10},
    {"ramp": lambda step: 3.0 * step / 150},
    {"betas": (0.5, 0.9)},
    {"betas": (0.95, 0.99)},
    {"betas": (0.0, 0.99)},
    {"eps": 0.1},
    {"amsgrad": True, "betas": (0.9, 0.9)},
    {"weight_decay": 0.1},
]
TOGETHER: list[dict[str, Any]] = [
    {
        "scales": (1, 5),
        "horizon": 8.0,
        "alpha": (3.0, 1.0),
        "nesterov": False,
        "visits": "gradient",
        "admission": "magnitude",
        "magnitude_threshold": 0.2,
        "sparsity_factor": 0.4,
        "attention": "softmax",
        "temperature": 0.5,
        "cycle": 0.3,
        "cycle_period": 9,
        "total_steps": 90,
        "betas": (0.8, 0.95),
        "eps": 1e-2,
        "amsgrad": True,
        "weight_decay": 0.2,
    },
    {
        "scales": (2, 6),
        "bank": "ring",
        "history_size": 4,
        "temperature": 0.3,
        "admission": "importance",
        "phases": TABLE,
        "cycle_period": 13,
        "attention": "scale",
        "lagged": False,
        "ramp": lambda step: 2.0 * min(1.0, step / 50),
        "betas": (0.7, 0.99),
        "weight_decay": 0.05,
    },
    {
        "scales": "auto",
        "horizon": 12.0,
        "kappa": 0.5,
        "sparsity_factor": 0.9,
        "attention": "element_per_scale",
        "cycle_period": "schedule",
        "pace": "learning_rate",
        "eps": 1e-3,
    },
]


def composed(**options: Any) -> Pipeline:
    """The rule; Adam's options are given to the inner one."""
    of_adam = {key: options.pop(key) for key in OF_ADAM if key in options}
    return build_pipeline("acmsao", inner={"name": "adamw", **of_adam}, **options)


def gradients(shape: tuple[int, ...], steps: int = STEPS, seed: int = 1) -> list[Tensor]:
    """A turning direction with noise, now and then an outlier: some are refused."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    sizes = (0.3 * torch.randn(steps, generator=generator)).exp()
    sizes[torch.rand(steps, generator=generator) < 0.15] *= 6
    way, turn = draw(), draw()
    return [
        0.3 * size * (math.cos(t / 40) * way + math.sin(t / 40) * turn + draw())
        for t, size in enumerate(sizes.tolist())
    ]


def start(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def falling(steps: int, peak: float = 0.01) -> list[float]:
    """A learning rate with warm-up that falls."""
    return [peak * min((t + 1) / 10, 1 - t / (2 * steps)) for t in range(steps)]


def step_by_step(
    weights: Tensor,
    grads: Iterable[Tensor],
    pipeline: Pipeline,
    rates: Sequence[float] | None = None,
    **options: Any,
) -> tuple[Tensor, ComposedOptimizer]:
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, **({"lr": 0.01} | options))
    for index, grad in enumerate(grads):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[index]
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach().clone(), optimizer


def luck(number: int = 0, seed: int = 0) -> Callable[[int, int], float]:
    """What a parameter's chance is at a step, for a scale."""

    def draw(step: int, scale: int) -> float:
        numbers = torch.full((1, 1, 1), number, dtype=torch.int32)
        noise = Noise(numbers, hash_numbers(seed, step))
        return float(context(torch.zeros(1, 1, 1), step, noise=noise).uniform(scale))

    return draw


def context(weights: Tensor, step: int | Tensor, first: bool = False, **more: Any) -> Context:
    return Context(step, first, 0.01, 0.0, weights, *weights.shape[1:], **more)


def written_out(given: dict[str, Any]) -> reference.Options:
    """The reference's options."""
    told = dict(given)
    if told.get("phases"):
        told["phases"] = [(p.name, p.until, p.factor, p.recency) for p in told["phases"]]
    return reference.Options(**told)


@pytest.mark.parametrize("varied", [*ONE_BY_ONE, *TOGETHER], ids=told)
def test_it_is_its_equations(varied):
    given = USUAL | varied
    own = {key: value for key, value in given.items() if key not in OF_THE_RUN}
    of_run = {key: value for key, value in given.items() if key in OF_THE_RUN}
    rates = falling(STEPS) if "pace" in varied else None
    for shape in SHAPES if not varied or varied in TOGETHER else SHAPES[:1]:
        weights, grads = start(shape), gradients(shape)
        expected, state = reference.train(weights, grads, written_out(given), luck(), rates)
        found, optimizer = step_by_step(weights, grads, composed(**own), rates, **of_run)
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-5)
        kept = optimizer.state_tensors()
        progress, mean, spread, *_ = kept["w/numbers/value"].flatten().tolist()
        assert progress == pytest.approx(state.progress, rel=1e-4)
        if given.get("admission") != "always":
            assert mean == pytest.approx(state.mean, rel=1e-4)
            assert spread == pytest.approx(math.sqrt(state.variance), rel=1e-4)
        for stride, bank in zip(written_out(given).strides, state.banks, strict=True):
            if given.get("bank") != "ring":
                held = kept[f"w/bank_{stride}/value"].view(shape).double()
                torch.testing.assert_close(held, bank.mean, rtol=1e-4, atol=1e-5)
            else:
                steps = sorted(map(int, kept[f"w/taken_at_{stride}/value"].flatten().tolist()))
                assert [step for step in steps if step] == [entry.step for entry in bank.entries]


def test_the_course_has_outliers_that_are_refused():
    _, state = reference.train(start((5, 7)), gradients((5, 7)), written_out(USUAL), luck())
    finest, *coarser = state.banks
    assert 0.6 * STEPS < len(finest.steps) < 0.95 * STEPS
    assert all(bank.steps for bank in coarser)


def test_parameters_have_memories_and_luck_of_their_own_whether_stacked_or_not():
    streams = [gradients((6, 4), 60, seed=n) for n in range(3)]
    parameters = [torch.nn.Parameter(start((6, 4))) for _ in range(3)]
    named = [(f"w{number}", parameter) for number, parameter in enumerate(parameters)]
    pipeline = composed(sparsity_factor=0.5, cycle_period=9, total_steps=60)
    optimizer = ComposedOptimizer(named, pipeline, lr=0.01, stacking=Stacking())
    for grads in zip(*streams, strict=True):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    options = {"sparsity_factor": 0.5, "cycle_period": 9, "total_steps": 60, "lr": 0.01}
    for number, grads in enumerate(streams):
        expected, _ = reference.train(start((6, 4)), grads, written_out(options), luck(number))
        found = parameters[number].detach().double()
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


# Special cases


def close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_without_memory_attention_and_cycle_it_is_nesterovs_adam(betas):
    weights, grads = start((5, 7)), gradients((5, 7), 40)
    b1, b2 = betas
    expected = weights.double()
    m, v = torch.zeros_like(expected), torch.zeros_like(expected)
    for t, grad in enumerate((g.double() for g in grads), start=1):
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        look_ahead = (b1 * m + (1 - b1) * grad) / (1 - b1 ** (t + 1))
        expected = expected - 0.01 * look_ahead / ((v / (1 - b2**t)).sqrt() + 1e-8)
    off = {"alpha": 0.0, "cycle": 0.0, "attention": "none"}
    found, _ = step_by_step(weights, grads, composed(**off, betas=betas))
    close(found.double(), expected)


def test_with_everything_off_it_is_adamw():
    off = {"alpha": 0.0, "cycle": 0.0, "attention": "none", "nesterov": False}
    weights, grads = start((5, 7)), gradients((5, 7), 40)
    found, _ = step_by_step(weights, grads, composed(**off), weight_decay=0.1)
    expected, _ = step_by_step(weights, grads, build_pipeline("adamw"), weight_decay=0.1)
    close(found, expected)


SLOW, WARMUP, WEIGHT = 0.99, 30, 3.0
AS_ADEMAMIX: dict[str, Any] = {
    "scales": (1,),
    "nesterov": False,
    "attention": "none",
    "cycle": 0.0,
    "admission": "always",
}


def half_lives(step: float) -> float:
    """1 / (1 - b3): AdEMAMix's b3 rises from .9 by equal amounts of its half-life."""
    share = min(step / WARMUP, 1.0)
    return 1 / (1 - math.exp(1 / ((1 - share) / math.log(0.9) + share / math.log(SLOW))))


@pytest.mark.parametrize(
    ("warmup", "schedules"),
    [
        (0, {"growth": lambda step: 1 / (1 - SLOW), "ramp": lambda step: WEIGHT}),
        (WARMUP, {"growth": half_lives, "ramp": lambda step: WEIGHT * min(step / WARMUP, 1.0)}),
    ],
)
def test_with_one_scale_and_its_schedules_it_is_ademamix(warmup, schedules):
    momentum = {"name": "ademamix", "slow_beta": SLOW, "alpha": WEIGHT, "warmup": warmup}
    weights, grads = start((5, 7)), gradients((5, 7), 60)
    found, _ = step_by_step(weights, grads, composed(**AS_ADEMAMIX, **schedules))
    expected, _ = step_by_step(weights, grads, build_pipeline("adamw", momentum=momentum))
    close(found, expected)


def test_other_libraries_ademamix_is_that_special_case_too():
    peers = pytest.importorskip("pytorch_optimizer")
    schedules = {"growth": half_lives, "ramp": lambda step: WEIGHT * min(step / WARMUP, 1.0)}
    weights, grads = start((5, 7)), gradients((5, 7), 60)
    found, _ = step_by_step(weights, grads, composed(**AS_ADEMAMIX, **schedules))
    parameter = torch.nn.Parameter(weights.double())
    betas = (0.9, 0.999, SLOW)
    other = peers.AdEMAMix(
        [parameter], lr=0.01, betas=betas, alpha=WEIGHT, t_alpha_beta3=WARMUP, weight_decay=0.0
    )
    for grad in grads:
        parameter.grad = grad.double()
        other.step()
    close(found.double(), parameter.detach(), 1e-4)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "alpha": (1.0, 2.0, 3.0), "visits": "gradient"},
    {"scales": (2, 5), "horizon": 4.0, "admission": "importance", "cycle": 0.3},
    {"bank": "ring", "history_size": 2},
    {"ram_offload": (False, True, True)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=told)
@pytest.mark.parametrize("name", ["adamw", "adopt", "lion", "muon"])
def test_it_is_the_momentum_multi_scale_in_the_inner_rule(name, options):
    given = {"total_steps": 30, "cycle_period": 7} | options
    if name == "muon":
        given = {"alpha": 1.0} | given
    if name == "lion":  # which looks ahead by itself, and refuses to be told
        given.pop("nesterov", None)
    weights, grads = start((5, 7)), gradients((5, 7), 30)
    within = build_pipeline(name, momentum={"name": "multi_scale", **given})
    around = build_pipeline("acmsao", inner=name, attention="none", **given)
    found, _ = step_by_step(weights, grads, around, weight_decay=0.1)
    expected, _ = step_by_step(weights, grads, within, weight_decay=0.1)
    assert torch.equal(found, expected)


def test_attention_of_dense_gradients_is_the_cautious_mask():
    weights, grads = start((5, 7)), gradients((5, 7), 40)
    found, _ = step_by_step(weights, grads, composed(lagged=False))
    edited = composed(attention="none", direction_edits=["cautious"])
    expected, _ = step_by_step(weights, grads, edited)
    close(found, expected, 1e-6)


def test_a_gradient_of_zero_contradicts_nothing():
    """Rows that a batch lacks go on by their momentum; the mask of the paper would stop them."""
    weights, grads = torch.zeros(4, 3), [torch.ones(4, 3) for _ in range(8)]
    for grad in grads[4:]:
        grad[2:] = 0
    options = {"lagged": False, "cycle": 0.0}
    found, _ = step_by_step(weights, grads, composed(**options))
    plain, _ = step_by_step(weights, grads, composed(attention="none", cycle=0.0))
    close(found, plain, 1e-7)
    edited = composed(attention="none", cycle=0.0, direction_edits=["cautious"])
    halted, _ = step_by_step(weights, grads, edited)
    assert (found[2:] < halted[2:]).all()


def test_around_muon_alpha_is_one_and_nothing_is_dropped():
    weights, grads = start((5, 7)), gradients((5, 7), 20)
    bare, _ = step_by_step(weights, grads, build_pipeline("acmsao", inner="muon"))
    said = build_pipeline("acmsao", inner="muon", alpha=1.0, attention="none")
    assert torch.equal(bare, step_by_step(weights, grads, said)[0])
    masked = build_pipeline("acmsao", inner="muon", attention="element")
    assert not torch.equal(bare, step_by_step(weights, grads, masked)[0])


@pytest.mark.parametrize("options", [{}, *TOGETHER], ids=told)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_size_of_gradients_does_not_matter(scale, options):
    """But for eps, which is scaled with them."""
    weights, grads = start((5, 7)), gradients((5, 7), 60)
    given = {key: value for key, value in options.items() if key not in OF_THE_RUN}
    given["total_steps"] = 60
    eps = given.pop("eps", 1e-8)
    found, _ = step_by_step(weights, [scale * g for g in grads], composed(**given, eps=eps * scale))
    expected, _ = step_by_step(weights, grads, composed(**given, eps=eps))
    close(found, expected, 1e-5)


# With grad_scale, as a rule that finds its learning rate gives it


@pytest.mark.parametrize("bank", ["mean", "ring"])
def test_gradients_weighted_by_the_time_of_their_d_do_not_mix_in_the_banks(bank):
    """What is stored is of the gradients as they are, whatever d was at each visit."""
    weights, grads = start((1, 5, 7)), gradients((1, 5, 7), 40)

    def banks(sizes: Sequence[float]) -> dict[str, Tensor]:
        # Without an average in between: that mixes gradients of different d, as Prodigy wants it.
        options = {"visits": "gradient", "admission": "always", "total_steps": 40, "bank": bank}
        pipeline = composed(**options)
        state = pipeline.allocate(1, 5, 7, torch.device("cpu"))
        for step, (grad, size) in enumerate(zip(grads, sizes, strict=True), start=1):
            noise = Noise(torch.zeros(1, 1, 1, dtype=torch.int32), hash_numbers(0, step))
            scale = torch.tensor(size)
            ctx = context(weights.clone(), step, step == 1, noise=noise, grad_scale=scale)
            pipeline.step(ctx.weights, grad * scale, state, ctx, noise)
        return {key: piece["value"] for key, piece in state.items() if key.startswith("bank_")}

    growing = [1e-6 * 1.3**step for step in range(40)]
    found, expected = banks(growing), banks([1.0] * 40)
    assert len(found) == (3 if bank == "mean" else 24)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=told)
@pytest.mark.parametrize("scale", [1e-6, 100.0])
def test_the_scale_of_gradients_is_taken_out(scale, options):
    pipeline, grads = composed(eps=0.5, total_steps=20, **options), gradients((1, 5, 7), 20)
    scaled = stepped(pipeline, grads, grad_scale=scale)
    torch.testing.assert_close(scaled, stepped(pipeline, grads), rtol=1e-4, atol=1e-4)


def test_it_goes_inside_what_finds_the_learning_rate():
    pipeline = build_pipeline("prodigy", inner="acmsao")
    parameter = torch.nn.Parameter(3 * start((5, 7)))
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1.0, total_steps=200)
    first = float(parameter.detach().norm())
    for _ in range(200):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert float(optimizer.shared[0]["d"]) > 1e-3
    assert float(parameter.detach().norm()) < 0.8 * first


# Ways of stepping

WAYS: list[dict[str, Any]] = [
    {},
    {"lagged": False},
    {"attention": "softmax"},
    {"attention": "element_per_scale", "lagged": False},
    {"bank": "ring", "history_size": 2},
    {"ram_offload": (False, True, True)},
    {"scales": "auto", "lagged": False},
    {"inner": "adopt"},
    {"inner": "lion"},
]
of_every_kind = pytest.mark.parametrize("options", WAYS, ids=told)
SHORT: dict[str, Any] = {"cycle_period": 5, "total_steps": 30, "scales": (1, 2, 5)}


def short(**options: Any) -> Pipeline:
    """Short strides and cycles, so that a few steps see everything."""
    return build_pipeline("acmsao", **(SHORT | options))


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Sums in another order may differ in their last digit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


@of_every_kind
def test_in_blocks_it_is_as_the_whole(options):
    def stepped(block: int) -> dict[str, Tensor]:
        parameter = torch.nn.Parameter(start((300, 256)))
        stacking = Stacking(below=0, block=block)
        optimizer = ComposedOptimizer(
            [("w", parameter)], short(**options), lr=0.01, weight_decay=0.1, stacking=stacking
        )
        for grad in gradients((300, 256), 11):
            parameter.grad = grad
            optimizer.step()
        return {"w": parameter.detach(), **optimizer.state_tensors()}

    assert_near(stepped(1 << 20), stepped(8192))


@of_every_kind
def test_stacked_it_is_as_one_by_one_and_in_backward_as_after(options):
    plain, stacked, hooked = (
        make(short(**options), stacking=stacking) for stacking in (None, Stacking(), None)
    )
    run(*plain, stop=12)
    run(*stacked, stop=12)
    handle = hooked[1].attach_to_backward(lambda: True)
    run(*hooked, stop=12)
    handle.remove()
    assert_same_bits(everything(*plain), everything(*hooked))
    assert_near(everything(*plain), everything(*stacked))


FLAGS = [(False, False, True), (False, True, True), (True, True, True)]


@pytest.mark.parametrize("flags", FLAGS, ids=told)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lagged": False, "attention": "tensor"},
        {"attention": "softmax"},
        {"attention": "element_per_scale"},
        {"bank": "ring", "history_size": 2},
        {"alpha": (1.0, 2.0, 3.0), "inner": "lion"},
    ],
    ids=told,
)
def test_offloaded_equals_resident_to_the_bit(flags, options):
    resident, away = make(short(**options)), make(short(**options, ram_offload=flags))
    for model, optimizer in (resident, away):
        run(model, optimizer, stop=22)
    assert_same_bits(resident[0].state_dict(), away[0].state_dict())
    held = resident[1].state_tensors()
    kept = {name: away[1].state_tensors()[name] for name in held}
    assert_same_bits(held, kept)


def test_where_only_fine_scales_are_away_the_sum_has_another_order():
    resident, away = make(short()), make(short(ram_offload=(True, False, False)))
    for model, optimizer in (resident, away):
        run(model, optimizer, stop=22)
    assert_near(resident[0].state_dict(), away[0].state_dict())


RESUMED: list[dict[str, Any]] = [
    *WAYS,
    {"storage": "bf16"},
    {"storage": "factored_4bit"},
    {"pace": "learning_rate"},
]


@pytest.mark.parametrize("stop", [4, 7, 13])
@pytest.mark.parametrize("options", RESUMED, ids=told)
def test_resumed_in_the_middle_of_cycle_and_stride_it_goes_on_to_the_bit(options, stop):
    whole, first, second = (make(short(**options)) for _ in range(3))
    run(*whole, stop=18)
    run(*first, stop=stop)
    saved = {name: value.clone() for name, value in first[1].state_tensors().items()}
    second[0].load_state_dict(first[0].state_dict())
    assert second[1].load_state(saved, first[1].state_header()) == []
    run(*second, start=stop, stop=18)
    assert_same_bits(everything(*whole), everything(*second))


def test_a_run_that_is_prolonged_goes_on_without_a_jump():
    """Progress is a state: a longer run changes its slope alone."""
    first, second = make(short(total_steps=20)), make(short(total_steps=80))
    run(*first, stop=10)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state(dict(first[1].state_tensors()), first[1].state_header())

    def progress() -> float:
        return float(second[1].state_tensors()["first/numbers/value"].flatten()[0])

    assert progress() == pytest.approx(10 / 20)
    run(*second, start=10, stop=20)
    assert progress() == pytest.approx(10 / 20 + 10 / 80)


@pytest.mark.parametrize(("before", "after"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_state_is_converted_to_another_storage(before, after):
    first, second = make(short(storage=before)), make(short(storage=after))
    run(*first, stop=13)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state(dict(first[1].state_tensors()), first[1].state_header())
    for name, value in first[1].state_tensors().items():
        converted = second[1].state_tensors()[name]
        torch.testing.assert_close(converted.float(), value.float(), rtol=2**-7, atol=1e-30)
        if "numbers" in name:
            assert torch.equal(converted, value)
    run(*second, start=13, stop=18)


@pytest.mark.parametrize("storage", ["bf16", "int8", "factored_8bit", "factored_4bit"])
def test_with_few_bits_it_stays_near_full_precision(storage):
    grads, weights = gradients((64, 64), 60), torch.zeros(64, 64)
    full, _ = step_by_step(weights, grads, short(total_steps=60))
    lossy, _ = step_by_step(weights, grads, short(total_steps=60, storage=storage))
    assert float(torch.cosine_similarity(full.flatten(), lossy.flatten(), dim=0)) > 0.9
    assert float(lossy.norm() / full.norm()) == pytest.approx(1.0, abs=0.2)


@of_every_kind
def test_the_step_may_be_a_tensor(options):
    """As under compile, where nothing may depend on its value by `if`."""
    pipeline, grads = short(**options), gradients((2, 6, 5), 20)
    as_tensors = stepped(pipeline, grads, as_tensors=True, weight_decay=0.1)
    as_numbers = stepped(pipeline, grads, weight_decay=0.1)
    torch.testing.assert_close(as_tensors, as_numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lagged": False}], ids=told)
def test_the_whole_step_compiles_to_one_graph(options):
    pipeline, shape = short(**options), (2, 6, 5)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def train(step_function: Callable[..., None]) -> Tensor:
        weights, state = torch.ones(shape), pipeline.allocate(*shape, torch.device("cpu"))
        numbers = torch.arange(2, dtype=torch.int32).view(-1, 1, 1)
        for step, grad in enumerate(gradients(shape, 6), start=1):
            count = torch.tensor(float(step), dtype=torch.float64)
            noise = Noise(numbers, torch.tensor(hash_numbers(0, step), dtype=torch.int32))
            ctx = Context(
                count, step == 1, torch.tensor(0.1), 0.1, weights, *shape[1:], noise=noise
            )
            step_function(weights, grad, state, ctx, noise)
        return weights

    torch.compiler.reset()
    compiled = torch.compile(pipeline.step, fullgraph=True, dynamic=False, backend=count)
    with torch.no_grad():
        close(train(pipeline.step), train(compiled), 1e-6)
    assert 1 <= len(graphs) <= 2  # the first step may have its own


# What means nothing is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "whole"}, "attention cannot be `whole`"),
        ({"direction_edits": ["cautious"]}, "drop `cautious`"),
        ({"inner": "prodigy"}, "cannot be put around prodigy"),
        ({"inner": "acmsao"}, "cannot be put around acmsao"),
        ({"inner": "soap", "momentum": "ema"}, "no option `momentum`"),
        ({"inner": {"name": "adamw", "momentum": "ademamix"}}, "replaces the momentum"),
        ({"betas": (0.9, 0.99)}, "no option `betas`"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline("acmsao", **options)


def test_a_step_after_one_that_contradicts_everything_is_no_leap():
    """The kept share is that of the step before, and then nearly nothing is kept."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = ComposedOptimizer([("w", weight)], build_pipeline("acmsao", cycle=0.0), lr=1e-3)
    usual = torch.ones(1000)
    usual[0] = -1.0
    sizes = []
    for grad in [*[usual] * 30, -torch.ones(1000), usual, usual]:
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
        sizes.append(float((weight.detach() - before).abs().mean()) / 1e-3)
    assert max(sizes) < 5


@pytest.mark.parametrize("inner", ["soap", "adadiag"])
def test_a_rotated_rule_remembers_the_numbers_as_they_are(inner):
    shapes = [(16, 4), (4,), (3, 5)]
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    pipeline = build_pipeline("acmsao", inner=inner)
    optimizer = ComposedOptimizer(weights, pipeline, lr=1e-3, total_steps=20)
    for _ in range(5):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.1)
        optimizer.step()
    for name, tensor in optimizer.state_tensors().items():
        if "/numbers/" in name:
            assert tensor.shape == (1, 7)
